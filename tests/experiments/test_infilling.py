import dataclasses

import pytest
from pycocoevalcap.cider.cider import Cider

from ddcap.captioner import Captioner
from ddcap.evaluation.tokenization import tokenize
from experiments.infilling import blank_words, evaluate_infilling
from experiments.plan import load_plan
from experiments.split import load_split

CAPTION = "A white rocket stands near a very old wall"


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.01, 1.0])
def test_whole_words_are_masked(tiny_tokenizer, share):
    blanked = blank_words(CAPTION, tiny_tokenizer, share, seed=0)
    words = tiny_tokenizer.decode(list(blanked.tokens)).split()
    assert len(blanked.blanks) == max(1, round(share * len(words)))
    masked = blanked.masked(tiny_tokenizer.mask_id)
    assert len(masked) == len(blanked.tokens)
    assert masked[-1] == tiny_tokenizer.end_id
    hidden = [tiny_tokenizer.decode([blanked.tokens[i] for i in blank]) for blank in blanked.blanks]
    kept = tiny_tokenizer.decode(masked).split()
    assert sorted(hidden + kept) == sorted(words)  # nothing but whole words on either side


def test_the_choice_follows_the_seed(tiny_tokenizer):
    one, again, other = (blank_words(CAPTION, tiny_tokenizer, 0.5, seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_a_caption_without_words_has_no_blanks(tiny_tokenizer):
    assert blank_words(" . ", tiny_tokenizer, 0.5, 0) is None


@pytest.mark.parametrize("row", ["g", "twin"])
def test_scores_by_hand(finished, plan_file, row):
    output, _ = finished
    trial = load_plan(plan_file, output).named(row)[0]
    captioner = Captioner.from_pretrained(f"{trial.recipe.training.output}/best")
    split = load_split(trial.recipe, "test")
    scores = evaluate_infilling(captioner, split, trial.recipe.decoding, 0.5)
    assert scores.image_ids == [record.image_id for record in split.records]
    assert all(0 <= share <= 100 for share in scores.exact)
    # an oracle that "fills" what was masked scores 100 % and at least as well as any filling
    nothing_masked = dataclasses.replace(scores, exact=[100.0] * len(scores.exact))
    assert sum(scores.exact) <= sum(nothing_masked.exact)
    texts = {
        record.image_id: captioner.tokenizer.decode(
            blank_words(record.captions[0], captioner.tokenizer, 0.5, 0).masked(captioner.tokenizer.mask_id)
        )
        for record in split.records
    }
    truth, used = tokenize(split.references)
    kept, _ = tokenize({image: [text] for image, text in texts.items()}, used)
    _, each = Cider().compute_score(truth, kept)
    assert scores.kept == pytest.approx([100 * float(value) for value in each])
