import numpy as np
import pytest
import torch
from whole_pass import ar_pass

from ddcap.decoding.generate import generate
from ddcap.decoding.infilling import infill, parse_template
from ddcap.decoding.left_to_right import decode_left_to_right
from ddcap.model.features import ImageFeatures
from ddcap.settings import DecodingSettings

END = 0  # the compact tokenizer's end token


def settings(**changes):
    return DecodingSettings(method="left_to_right", guidance=1, **changes)


def seeded(seed=0):
    return np.random.default_rng(seed)


def one_of(features, number):
    return ImageFeatures(features.memory[[number]], features.summary[[number]])


@torch.no_grad()
def log_probabilities(model, features, caption):
    """log p of every token of one caption (L,) by one pass over the whole, without any cache."""
    logits = ar_pass(model, torch.tensor([caption]), features)[0]
    return logits.log_softmax(dim=1)[torch.arange(len(caption)), torch.tensor(caption)]


def words_of(result, row):
    return result.tokens[row, : int(result.lengths[row])].tolist()


def test_greedy_is_the_likeliest_next_word_again_and_again(tiny_ar, features):
    result = generate(tiny_ar, features, settings(), END)
    for row in range(3):
        caption = []
        while len(caption) < tiny_ar.config.model.max_length and END not in caption:
            with torch.no_grad():
                logits = ar_pass(tiny_ar, torch.tensor([[*caption, END]]), one_of(features, row))
            caption.append(int(logits[0, -1].argmax()))
        assert words_of(result, row) == caption
    assert len({tuple(words_of(result, row)) for row in range(3)}) == 3  # the image matters


@pytest.mark.parametrize("changes", [{}, {"beams": 4}])
def test_confidences_are_the_models_own(tiny_ar, features, changes):
    result = generate(tiny_ar, features, settings(**changes), END)
    for row in range(3):
        caption = words_of(result, row)
        expected = log_probabilities(tiny_ar, one_of(features, row), caption).exp()
        torch.testing.assert_close(result.confidences[row, : len(caption)], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0])
def test_enough_beams_find_the_best_caption(tiny_ar, features, penalty):
    """With as many beams as words, captions of at most two tokens are searched exhaustively."""
    words = tiny_ar.config.vocabulary_size
    image = one_of(features, 0)
    with torch.no_grad():
        tokens = torch.full((1, 2), tiny_ar.mask_id)
        found = decode_left_to_right(
            tiny_ar,
            image,
            tokens,
            torch.tensor([2]),
            END,
            may_end=True,
            beams=words,
            length_penalty=penalty,
        )
        pairs = torch.stack([torch.arange(words), torch.full((words,), END)], dim=1)
        logits = ar_pass(tiny_ar, pairs, ImageFeatures(image.memory, image.summary))
    first = logits[0, 0].log_softmax(dim=0)  # (V,)
    second = logits[:, 1].log_softmax(dim=1)  # (V, V)
    evidence = (first.unsqueeze(1) + second) / 2**penalty
    evidence[END] = -torch.inf  # nothing comes after the end
    pair = list(divmod(int(evidence.argmax()), words))
    best = max((float(first[END]), [END]), (float(evidence.max()), pair))[1]
    assert words_of(found, 0) == best


@torch.no_grad()
def slow_search(model, image, template, end, may_end, beams, penalty):
    """Words and their log-probabilities of the best caption: beam search with lists, nothing cached.

    `template` has a word where one is given, None where one is wanted.
    """
    followed = [([], [])]
    for given in template:
        grown = []
        for words, gains in followed:
            if end in words:
                grown.append((words, gains))
                continue
            log_probabilities = (
                ar_pass(model, torch.tensor([[*words, end]]), image)[0, -1].log_softmax(dim=0).tolist()
            )
            for word, gain in enumerate(log_probabilities):
                if (word == given) if given is not None else (may_end or word != end):
                    grown.append(([*words, word], [*gains, gain]))
        followed = sorted(grown, key=lambda one: -sum(one[1]) / len(one[1]) ** penalty)[:beams]
    return followed[0]


@pytest.mark.parametrize("rank", range(3))
@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("penalty", [0.5, None, 2.0])
@pytest.mark.parametrize("templates", ["open", "given"])
def test_beam_search_equals_a_slow_search(tiny_ar, features, templates, penalty, beams, rank):
    """Three images at once, of unequal length; the end token is one of those the model likes to say."""
    mask, last = tiny_ar.mask_id, tiny_ar.mask_id - 1
    lengths = torch.tensor([9, 4, 7])
    tokens = torch.full((3, 9), mask)
    first = generate(tiny_ar, features, settings(beams=2), END)
    end = int(first.tokens[:, 2:].flatten().bincount().topk(rank + 1).indices[rank])
    if templates == "given":
        tokens[0, 4], tokens[1, 1], tokens[2, 2] = 5, last, 3
        tokens[[0, 1], lengths[:2] - 1] = end  # the third just stops at its length
    with torch.no_grad():
        found = decode_left_to_right(
            tiny_ar,
            features,
            tokens,
            lengths,
            end,
            may_end=templates == "open",
            beams=beams,
            **({} if penalty is None else {"length_penalty": penalty}),
        )
    penalty = 1.0 if penalty is None else penalty
    for row in range(3):
        template = [None if word == mask else word for word in tokens[row, : int(lengths[row])].tolist()]
        image = one_of(features, row)
        words, gains = slow_search(tiny_ar, image, template, end, templates == "open", beams, penalty)
        assert words_of(found, row) == words
        is_wanted = torch.tensor([given is None for given in template[: len(words)]])
        expected = torch.where(is_wanted, torch.tensor(gains).exp(), 1.0)  # given words are certain
        torch.testing.assert_close(found.confidences[row, : len(words)], expected, rtol=1e-3, atol=1e-6)
        assert (found.confidences[row, len(words) :] == 1).all()
        assert found.history[0, row, : len(words)].tolist() == tokens[row, : len(words)].tolist()
        assert torch.equal(found.history[-1], found.tokens)


def test_greedy_is_the_default(tiny_ar, features):
    with torch.no_grad():
        found = decode_left_to_right(
            tiny_ar,
            features,
            torch.full((3, 12), tiny_ar.mask_id),
            torch.full((3,), 12),
            END,
            may_end=True,
        )
    greedy = generate(tiny_ar, features, settings(), END)
    assert torch.equal(found.tokens, greedy.tokens) and torch.equal(found.confidences, greedy.confidences)


def test_beams_keep_the_best_mean(tiny_ar, features):
    """At least one image gains from following several captions, and gains what the model says."""

    def mean(result, row):
        return float(log_probabilities(tiny_ar, one_of(features, row), words_of(result, row)).mean())

    greedy, beam = (generate(tiny_ar, features, settings(beams=beams), END) for beams in (1, 8))
    assert max(mean(beam, row) - mean(greedy, row) for row in range(3)) > 0


@pytest.mark.parametrize("changes", [{}, {"beams": 3}])
def test_a_batch_is_its_images_one_by_one(tiny_ar, features, changes):
    together = generate(tiny_ar, features, settings(**changes), END)
    for row in range(3):
        alone = generate(tiny_ar, one_of(features, row), settings(**changes), END)
        assert words_of(alone, 0) == words_of(together, row)


def test_draws_depend_on_the_seed_alone(tiny_ar, features):
    first, again, other = (
        generate(
            tiny_ar,
            features,
            settings(temperature=1),
            END,
            generator=seeded(seed),
            captions_per_image=2,
        )
        for seed in (1, 1, 2)
    )
    assert first.tokens.shape[0] == 6
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    assert words_of(first, 0) != words_of(first, 1)


def test_history_goes_from_left_to_right(tiny_ar, features):
    result = generate(tiny_ar, features, settings(), END)
    steps, rows, longest = result.history.shape
    assert (steps, rows, longest) == (longest + 1, 3, result.tokens.shape[1])
    for step in range(steps):
        assert torch.equal(result.history[step, :, :step], result.tokens[:, :step])
        assert (result.history[step, :, step:] == tiny_ar.mask_id).all()


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("text", ["a [2] cat", "[3] dog", "a ___ very ___", "a dog ___"])
def test_given_words_are_kept_and_no_blank_ends_the_caption(tiny_ar, tiny_tokenizer, features, text, beams):
    template = parse_template(text, tiny_tokenizer)
    for row in range(3):
        filled = infill(tiny_ar, one_of(features, row), template, settings(beams=beams), END)
        length = int(filled.result.lengths[filled.row])
        tokens = filled.result.tokens[filled.row, :length].tolist()
        assert tokens.index(END) == length - 1
        assert tiny_ar.mask_id not in tokens
        rest = tokens
        for part in template.parts:  # every given part comes in order
            if isinstance(part, tuple):
                place = next(i for i in range(len(rest)) if tuple(rest[i : i + len(part)]) == part)
                rest = rest[place + len(part) :]
        assert rest == []


def test_greedy_infilling_sees_its_left_context_only(tiny_ar, tiny_tokenizer, features):
    image = one_of(features, 0)
    one, other = (
        infill(tiny_ar, image, parse_template(f"a [2] {ending}", tiny_tokenizer), settings(), END)
        for ending in ("cat", "very bright wall")
    )
    assert one.result.tokens[0, :3].tolist() == other.result.tokens[0, :3].tolist()


def test_settings_reach_the_search(tiny_ar, features):
    first = generate(tiny_ar, features, settings(beams=2), END)
    ends = first.tokens[:, 2:].flatten().bincount().topk(4).indices.tolist()  # words that it likes to say

    def searched(end, penalty, may_end):
        with torch.no_grad():
            return decode_left_to_right(
                tiny_ar,
                features,
                torch.full((3, 12), tiny_ar.mask_id),
                torch.full((3,), 12),
                end,
                may_end=may_end,
                beams=5,
                length_penalty=penalty,
            ).tokens.tolist()

    chosen = settings(beams=5, length_penalty=0.5)
    found = [generate(tiny_ar, features, chosen, end).tokens.tolist() for end in ends]
    assert found == [searched(end, 0.5, True) for end in ends]
    assert found != [searched(end, 1.0, True) for end in ends]
    assert found != [searched(end, 0.5, False) for end in ends]
