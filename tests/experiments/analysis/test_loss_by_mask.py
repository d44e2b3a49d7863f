import numpy as np
import pytest
import torch

from ddcap.decoding.scoring import sampler_evidence
from ddcap.settings import DecodingSettings
from experiments.analysis.loss_by_mask import bin_of, loss_by_mask, losses_in_order, twin_losses


@pytest.fixture(scope="module")
def human(pair, val):
    """Two human captions of one length, their tokens and images."""
    tokenizer, by_length = pair["g"].tokenizer, {}
    for row, record in enumerate(val.records):
        for text in record.captions:
            ids = tokenizer.encode(text)
            by_length.setdefault(len(ids), []).append((row, text, ids))
    several = next(own for length, own in by_length.items() if len(own) > 1 and length <= 20)[:2]
    return several, torch.tensor([ids for _, _, ids in several])


def losses(pair, val, human, order, seed=0):
    rows, generator = [row for row, _, _ in human[0]], torch.Generator().manual_seed(seed)
    features = val.features(pair["g"], rows)
    return losses_in_order(pair["g"].model, features, human[1], order, generator)


def test_best_first_is_the_samplers_likelihood(pair, val, human):
    settings = DecodingSettings(guidance=1.0)
    found = losses(pair, val, human, "best_first").sum(dim=1)
    for (row, text, _), loss in zip(human[0], found, strict=True):
        features = val.features(pair["g"], [row])
        (expected,) = sampler_evidence(pair["g"].model, features, [text], settings, pair["g"].tokenizer)
        assert float(loss) == pytest.approx(-expected, rel=1e-4)


def test_the_orders_begin_and_end_as_they_say(pair, val, human):
    model, (several, tokens) = pair["g"].model, human
    features = val.features(pair["g"], [row for row, _, _ in several])
    steps = model.denoising_steps(features, with_image_free=False)
    captions, length = tokens.shape
    everywhere = torch.arange(length).expand(captions, -1)
    last, lengths = torch.full((captions,), 19), torch.full((captions,), length)
    logits, _ = steps.logits(torch.full_like(tokens, model.mask_id), last, lengths, everywhere)
    own = -logits.log_softmax(dim=2).gather(2, tokens.unsqueeze(2)).squeeze(2)  # all are MASK
    in_order, at_random = (losses(pair, val, human, order) for order in ("left_to_right", "random"))
    torch.testing.assert_close(in_order[:, 0], own[:, 0])
    torch.testing.assert_close(at_random[:, 0], own.mean(dim=1))
    assert in_order.shape == at_random.shape == tokens.shape
    other = losses(pair, val, human, "random", seed=1)
    assert not torch.equal(at_random[:, 1:], other[:, 1:])
    # the last token from left to right is the end, with all else known
    all_but_end = tokens.clone()
    all_but_end[:, -1] = model.mask_id
    logits, _ = steps.logits(all_but_end, torch.full((captions,), 20 // length), lengths, everywhere)
    expected = -logits.log_softmax(dim=2)[:, -1].gather(1, tokens[:, -1:]).squeeze(1)
    torch.testing.assert_close(in_order[:, -1], expected)


def test_autoregressive_losses_equal_its_decoders(pair, val, human):
    model, (several, tokens) = pair["twin"].model, human
    features = val.features(pair["twin"], [row for row, _, _ in several])
    with torch.no_grad():
        keys_values = model.project_memory(features)
        logits, past = model.first_logits(len(tokens), keys_values)
        expected = []
        for place in range(tokens.shape[1]):
            expected.append(-logits.log_softmax(dim=1).gather(1, tokens[:, place : place + 1]))
            if place + 1 < tokens.shape[1]:
                logits, past = model.next_logits(tokens[:, place], keys_values, past)
    torch.testing.assert_close(
        twin_losses(model, features, tokens), torch.cat(expected, dim=1), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("known", "length", "number"), [(0, 7, 9), (6, 7, 1), (9, 10, 0), (1, 10, 8), (19, 20, 0), (10, 20, 4)]
)
def test_positions_are_binned_by_the_share_still_unknown(known, length, number):
    assert bin_of(known, length) == number
    assert number / 10 < (length - known) / length <= (number + 1) / 10


def test_sums_and_differences_agree(pair, val):
    found = loss_by_mask(pair, val)
    assert found["pictures"] == len(val.records)
    assert found["captions"] + found["too_long"] == sum(len(record.captions) for record in val.records)
    whole, of_length = found["nats_of_a_caption"], found["nats_of_its_length"]["mean"]
    for name, difference in found["minus_twin"].items():
        expected = whole[name]["mean"] + of_length - whole["twin"]["mean"]
        assert difference["mean"] == pytest.approx(expected)
        low, high = difference["interval_95"]
        assert low <= difference["mean"] <= high
    for points in found["by_share"].values():
        tokens = sum(point["tokens"] for point in points)
        assert tokens == round(found["tokens_of_a_caption"] * found["captions"])
        assert all(np.isfinite(point["mean"]) for point in points if point["tokens"])
