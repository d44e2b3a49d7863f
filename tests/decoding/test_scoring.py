"""What an image says for given captions, word by word."""

import itertools
import json

import numpy as np
import pytest
import torch

from ddcap import Captioner
from ddcap.commands import main
from ddcap.decoding.predictor import Predictor
from ddcap.decoding.rewriting import Rewriting
from ddcap.decoding.schedulers.best_first import plan_steps
from ddcap.decoding.scoring import (
    CaptionEvidence,
    ManyCaptions,
    WordEvidence,
    caption_evidence,
    sampler_log_likelihood,
)
from ddcap.decoding.words import content_tokens, words_in
from ddcap.errors import DDCapError


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


@torch.no_grad()
def by_hand(model, features, ids, words, image_free):
    """Log-probability of each token, one forward pass each."""
    memory = model.image_free_keys_values() if image_free else model.project_memory(features)
    found = []
    for word in words:
        for place, position in enumerate(word):
            noised = torch.tensor([ids])
            noised[0, word[place:]] = model.mask_id
            hidden = len(word) - place
            timestep = torch.tensor([min(hidden * model.config.diffusion.steps // len(ids), 7)])
            states = model(noised, timestep, torch.tensor([len(ids)]), memory)
            found.append(model.denoiser.logits(states).log_softmax(dim=2)[0, position, ids[position]].item())
    return found


def test_a_template_keeps_words_that_stand_twice():
    """Doubted words in a row are one blank; equal words that are not doubted stay as they are."""
    words = tuple(WordEvidence(word, -1.0, -1.0, 1) for word in ["a", "very", "very", "big", "red", "dog"])
    before = CaptionEvidence(words, WordEvidence("", -1.0, -1.0, 1))
    assert Rewriting(before, (3, 4), None, before).template == "a very very ___ dog"
    assert Rewriting(before, (0, 5), None, before).template == "___ very very big red ___"


def test_scores_equal_a_pass_for_each_token(tiny_model, features, tiny_tokenizer):
    texts = ["a dog on grass", "two dogs run"]
    one = type(features)(features.memory[:1], features.summary[:1])
    (found,) = caption_evidence(tiny_model, one, [texts], tiny_tokenizer)
    for text, evidence in zip(texts, found, strict=True):
        ids = tiny_tokenizer.encode(text)
        words = words_in(ids, tiny_tokenizer)
        assert any(len(word) > 1 for word in words)
        own, free = (by_hand(tiny_model, one, ids, words, image_free) for image_free in (False, True))
        assert evidence.log_likelihood == pytest.approx(sum(own), rel=1e-4)
        assert evidence.gain == pytest.approx(sum(own) - sum(free), rel=1e-3, abs=1e-3)
        assert [one.word for one in evidence.words] == text.split()
        assert evidence.tokens == len(ids) and evidence.fit == evidence.gain / len(ids)


def test_captions_of_several_images_at_once(tiny_model, features, tiny_tokenizer):
    texts = ["a dog", "two dogs run"]
    one, other = (type(features)(features.memory[i : i + 1], features.summary[i : i + 1]) for i in (0, 1))
    both = type(features)(features.memory[:2], features.summary[:2])
    together = caption_evidence(tiny_model, both, [[texts[0]], [texts[1]]], tiny_tokenizer)
    for image, text, found in zip((one, other), texts, together, strict=True):
        ((alone,),) = caption_evidence(tiny_model, image, [[text]], tiny_tokenizer)
        assert found[0].gain == pytest.approx(alone.gain, abs=1e-4)


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_samplers_likelihoods_sum_to_one(tiny_model, features, steps, distinct):
    """Over all captions of two tokens."""
    words = tiny_model.mask_id
    tokens = torch.tensor([*itertools.product(range(words), repeat=2)])
    one = type(features)(features.memory[:1], features.summary[:1])
    total = 0.0
    for part in tokens.split(10_000):
        lengths = torch.full((len(part),), 2)
        predictor = Predictor(tiny_model.denoising_steps(one, with_image_free=True), lengths, 1.17)
        plan = plan_steps(lengths, lengths, 8, steps)
        found = sampler_log_likelihood(predictor, part, plan, words, distinct=distinct)
        total += float(found.exp().sum())
    assert total == pytest.approx(1, abs=1e-3)


def test_likelihood_equals_the_samplers_score(tiny_model, features, tiny_tokenizer):
    """Of a greedy caption it is the product of the confidences that the caption was committed with."""
    from ddcap.decoding.generate import generate
    from ddcap.settings import DecodingSettings

    settings = DecodingSettings(length=6, exact_length=False, guidance=1.0, steps=3)
    result = generate(tiny_model, features, settings, tiny_tokenizer.end_id)
    steps = tiny_model.denoising_steps(features, with_image_free=False)
    plan = plan_steps(result.lengths, result.lengths, 8, 3)
    found = sampler_log_likelihood(Predictor(steps, result.lengths), result.tokens, plan, tiny_model.mask_id)
    torch.testing.assert_close(found, result.confidences.log().sum(dim=1), rtol=1e-4, atol=1e-4)


def test_true_captions_fit_better_than_those_of_other_images(default):
    from tests.test_default_model import EXAMPLES

    pairs = {"cat.jpg": "a cat laying on a couch", "giraffes.jpg": "two giraffes standing near trees"}
    photos = {name: next(EXAMPLES.rglob(name)) for name in pairs}
    for name, photo in photos.items():
        own, other = default.score(
            photo, [pairs[name], *(text for key, text in pairs.items() if key != name)]
        )
        assert own.fit > other.fit + 0.3
    cat = {one.word: one.gain for one in default.score(photos["cat.jpg"], "a dog laying on a couch")[0].words}
    assert cat["dog"] < -0.5 < 0.5 < cat["couch"]


def test_a_wrong_caption_is_rewritten(default):
    from tests.test_default_model import EXAMPLES

    photo = next(EXAMPLES.rglob("cat.jpg"))
    result = default.rewrite(photo, "a dog laying on a couch")
    assert result.template == "a ___ laying on a couch" and "cat" in result.text
    assert result.evidence.fit > result.before.fit
    assert "dog" in default.rewrite(photo, "a dog laying on a couch", keep=["dog"]).text
    assert default.rewrite(photo, "a cat laying on a couch").after is None
    assert "couch" not in default.rewrite(photo, "a cat laying on a couch", ban=["couch"]).text


def test_several_captions_say_different_things(default, photos):
    for result in default.caption_each(photos[:3], num=5):
        assert len(result.captions) == 5
        said = [
            frozenset(content_tokens(default.tokenizer.encode(caption.text), default.tokenizer))
            for caption in result.captions
        ]
        assert len(set(said)) == 5
    first = next(default.caption_each(photos[:1], num=2)).captions[0]
    assert first.text == default(photos[0])[0].text
    alone = [next(default.caption_each([photo], num=3)).captions for photo in photos[:2]]
    together = [result.captions for result in default.caption_each(photos[:2], num=3)]
    assert [[one.tokens for one in each] for each in alone] == [
        [one.tokens for one in each] for each in together
    ]


def test_a_phrase_is_hidden_as_a_whole(default, photos):
    ((plain,), (phrase,)) = (
        default.score(photos[0], text) for text in ("a dog on the grass", "a dog [on the grass]")
    )
    assert [one.word for one in phrase.words] == ["a", "dog", "on the grass"]
    assert phrase.words[0].gain == pytest.approx(plain.words[0].gain, abs=1e-2)
    assert phrase.tokens == plain.tokens
    with pytest.raises(DDCapError, match="has no word"):
        default.score(photos[0], "[]")


def test_many_captions_are_scored_as_each_alone(default, photos):
    texts = ["a dog on the grass", "two men", "a boat", "a red bicycle near a tree"]
    many = ManyCaptions(default.model, texts, default.tokenizer)
    for photo in photos[:2]:
        alone = [one.gain for one in default.score(photo, texts)]
        np.testing.assert_allclose(many.gains(default.features([photo])), alone, atol=0.05)
        np.testing.assert_allclose(
            many.gains(default.features([photo]), [2, 0]), [alone[2], alone[0]], atol=0.05
        )


def test_own_captions_are_likelier_than_others(default, photos):
    (caption,) = default(photos[0], length=9, distinct=False)
    own, other = default.log_likelihood(photos[0], [caption.text, "a boat"], distinct=False)
    assert own == pytest.approx(caption.score * caption.length, abs=0.2) and own > other
    with pytest.raises(DDCapError, match="has no likelihood here"):
        default.log_likelihood(photos[0], "a dog", method="ancestral", distinct=False)


def test_captions_that_cannot_be_scored_are_refused(default, tiny_ar_folder, photos):
    with pytest.raises(DDCapError, match="has no word"):
        default.score(photos[0], "...")
    with pytest.raises(DDCapError, match="longest caption"):
        default.score(photos[0], "dog " * 40)
    with pytest.raises(DDCapError, match="use a diffusion model"):
        Captioner.from_pretrained(tiny_ar_folder).score(photos[0], "a dog")


def test_scores_on_the_command_line(photos, captions_json, capsys):
    photo = str(photos[0])
    assert main(["score", photo, "a dog", "a boat", "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["caption"] for one in lines] == ["a dog", "a boat"]
    assert [word["word"] for word in lines[0]["words"]] == ["a", "dog"]
    assert lines[0]["sampler_log_likelihood"] < 0
    assert main(["score", photo, "a dog on the beach"]) == 0
    assert "█" in capsys.readouterr().out
    pairs = ["--pairs", str(captions_json), "--images", str(photos[0].parent)]
    assert main(["score", *pairs, "--format", "jsonl", "--split", "train"]) == 0
    fits = [json.loads(line)["fit"] for line in capsys.readouterr().out.splitlines()]
    assert len(fits) > 10 and fits == sorted(fits)
    assert main(["rewrite", photo, "a bus on the moon"]) == 0
    assert "before  a bus" in capsys.readouterr().out
    assert main(["rewrite", photo, "a bus", "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["template"] == "a ___"
    for wrong in (["score"], ["score", photo], ["score", photo, "a dog", *pairs], ["score", photo, "!"]):
        assert main(wrong) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_tokens_are_grouped_into_words(tiny_tokenizer):
    ids = tiny_tokenizer.encode("two children playing")
    words = words_in(ids, tiny_tokenizer)
    assert [tiny_tokenizer.decode([ids[at] for at in word]) for word in words] == [
        "two",
        "children",
        "playing",
        "",
    ]
    assert [*content_tokens(ids, tiny_tokenizer)] == ["children", "playing"]
    assert np.concatenate(words).tolist() == [*range(len(ids))]
