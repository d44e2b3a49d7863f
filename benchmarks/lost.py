"""Find where photographs lose what they show: in the tagger, in its weight, or in decoding.

    python benchmarks/lost.py [MODEL] [PHOTOGRAPH ...]

For each photograph of examples/accepted_nouns.json (or those named, as there): the surest accepted concept,
its place in the tagger's list and its confidence; how many candidates name an accepted noun; and the captions
as they are, with twice the bonus for concepts, with a tagger that is certain of it, and with nothing but it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ddcap import Captioner

EXAMPLES = Path(__file__).parents[1] / "examples"


def main() -> None:
    """Print a block for each photograph."""
    model, *names = sys.argv[1:] or ["default"]
    captioner = Captioner.from_pretrained(model)
    accepted = json.loads((EXAMPLES / "accepted_nouns.json").read_text(encoding="utf-8"))
    own = captioner.decoding
    for name in names or accepted:
        nouns, image = set(accepted[name]), EXAMPLES / name
        vocabulary = captioner.model.vocabulary
        wanted = {vocabulary.number(noun) for noun in accepted[name]} - {None}
        listed = captioner.concepts(image)
        ranks = [(rank, one) for rank, one in enumerate(listed, 1) if vocabulary.number(one.word) in wanted]
        seen = f"{ranks[0][1].word}, number {ranks[0][0]}, {ranks[0][1].confidence:.2f}" if ranks else "none"
        lengths = range(own.length - own.candidates // 2, own.length + own.candidates // 2 + 1)
        (drafts,) = captioner.caption_each(image, lengths=[*lengths])
        naming = sum(bool(nouns & {*draft.text.split()}) for draft in drafts.captions)
        print(f"{name}\n  tagger: {seen}; surest {listed[0].word} {listed[0].confidence:.2f}")
        print(f"  named by {naming} of {len(drafts.captions)} candidates")
        word = ranks[0][1].word if ranks else next(noun for noun in accepted[name] if vocabulary.number(noun))
        for title, changes in (
            ("as it is", {}),
            ("twice the bonus", {"concept_bonus": 2 * own.concept_bonus}),
            (f"certain of {word}", {"concepts": f"+{word}"}),
            (f"only {word}", {"concepts": word}),
        ):
            text = captioner(image, **changes)[0].text
            print(f"  {'right' if nouns & {*text.split()} else 'wrong'}  {title}: {text}")


if __name__ == "__main__":
    main()
