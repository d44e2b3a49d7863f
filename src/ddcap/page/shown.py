"""What the page shows of a caption: its words, and when each of their tokens was committed."""

from __future__ import annotations

from typing import Any

from ddcap.decoding.caption import Caption


def shown_caption(caption: Caption) -> dict[str, Any]:
    """A caption as the page draws it.

    Returns:
        text, sure, why_not; steps, how many there were; end, the step that committed the end token; words,
        each with whether it is doubtful, whether it was given, and its tokens: piece, step (from 1) that
        committed it, probability. What was given, as in infilling, has step 0.
    """
    numbers = {
        step: number for number, step in enumerate(sorted({one.step for one in caption.trace.events}), 1)
    }
    step_of = {one.position: numbers[one.step] for one in caption.trace.events}  # the last that changed it
    words: list[dict[str, Any]] = []
    end = 0
    for position, (piece, probability) in enumerate(zip(caption.tokens, caption.confidences, strict=True)):
        step = step_of.get(position, 0)
        if piece == "":
            end = step
            break
        if piece.startswith(" ") or not words:
            words.append({"tokens": []})
        words[-1]["tokens"].append(
            {"piece": piece.strip(), "step": step, "probability": round(probability, 4)}
        )
    for word in words:
        word["given"] = all(token["step"] == 0 for token in word["tokens"])
        word["doubtful"] = "".join(token["piece"] for token in word["tokens"]) in caption.doubtful
    return {
        "text": caption.text,
        "sure": caption.sure,
        "why_not": caption.why_not,
        "steps": len(numbers),
        "end": end,
        "words": words,
    }
