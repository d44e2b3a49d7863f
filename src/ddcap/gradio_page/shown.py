"""A caption as the page shows it: its words, and when each of their tokens was committed."""

from __future__ import annotations

from typing import Any

from ddcap.decoding.caption import Caption
from ddcap.decoding.words import word_positions


def shown_caption(caption: Caption, steps: int | None) -> dict[str, Any]:
    """Describe a caption as the interface draws it; told.js does so in the browser.

    Args:
        caption: of a captioner.
        steps: that were set; None: as many as there are tokens.

    Returns:
        text, sure, known; steps, how many there were; planned, how many there should have been; end, the
        step that committed the end token; words, each with whether it is doubtful, whether it was given, and
        its tokens: piece, step (from 1) that committed it, probability. What was given, as in infilling, has
        step 0.
    """
    numbers = {
        step: number for number, step in enumerate(sorted({one.step for one in caption.trace.events}), 1)
    }
    step_of = {one.position: numbers[one.step] for one in caption.trace.events}  # the last that changed it
    words = []
    for positions in word_positions(caption.tokens):
        tokens = [
            {
                "piece": caption.tokens[position].strip(),
                "step": step_of.get(position, 0),
                "probability": round(caption.confidences[position], 4),
            }
            for position in positions
        ]
        is_given = all(token["step"] == 0 for token in tokens)
        is_doubtful = "".join(str(token["piece"]) for token in tokens) in caption.doubtful
        words.append({"tokens": tokens, "given": is_given, "doubtful": is_doubtful})
    end = step_of.get(caption.tokens.index(""), 0) if "" in caption.tokens else 0
    return {
        "text": caption.text,
        "sure": caption.sure,
        "known": caption.known,
        "steps": len(numbers),
        "planned": len(step_of) if steps is None else min(len(step_of), steps),
        "end": end,
        "words": words,
    }
