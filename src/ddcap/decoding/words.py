"""Words in rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from ddcap.data.tokenizer import CaptionTokenizer

FUNCTION_WORDS = frozenset(
    """
    a about above across after against all along an and another any are around as at back background be
    been before behind being below between both but by do does down each few for foreground from front
    had has have he her here hers herself him himself his in into is it its itself many middle near next
    no not of off on one onto or other out over several she side so some than that the their theirs them
    themselves there these they this those three through to top two under up very was were which while
    who whose with without
    """.split()  # noqa: SIM905 (easier to read)
)
"""Words that say little of what is in an image."""


def straight(text: str) -> str:
    """A text with the apostrophe of the keyboard, which tokenizers know, in place of the typographic one."""
    return text.replace("\u2019", "'")


def words_in(ids: Sequence[int], tokenizer: CaptionTokenizer) -> list[list[int]]:
    """Positions of each word of a caption, the end token as a word of its own."""
    words: list[list[int]] = []
    for position, piece in enumerate(tokenizer.pieces(ids)):
        if not words or piece.startswith(" ") or ids[position] == tokenizer.end_id:
            words.append([])
        words[-1].append(position)
    return words


def word_positions(tokens: Sequence[str]) -> list[list[int]]:
    """Positions of each word of a caption's tokens as text, up to its first end token, which is empty."""
    words: list[list[int]] = []
    for position, piece in enumerate(tokens):
        if piece == "":
            break
        if not words or piece.startswith(" "):
            words.append([])
        words[-1].append(position)
    return words


def content_tokens(ids: Sequence[int], tokenizer: CaptionTokenizer) -> dict[str, list[int]]:
    """The tokens of each word of a caption that says what is in the image."""
    pieces = tokenizer.pieces(ids)
    found: dict[str, list[int]] = {}
    for positions in words_in(ids, tokenizer):
        word = "".join(pieces[position] for position in positions).strip().lower()
        if word and word not in FUNCTION_WORDS:
            found[word] = [ids[position] for position in positions]
    return found
