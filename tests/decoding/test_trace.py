import math

import numpy as np
import pytest
import torch

from ddcap.decoding.generate import generate
from ddcap.decoding.trace import DecodingResult, build_trace
from ddcap.settings import DecodingSettings

METHODS = [
    DecodingSettings(),
    DecodingSettings(steps=3),
    DecodingSettings(method="ancestral"),
    DecodingSettings(temperature=1.0, length=12),
]


@pytest.mark.parametrize("settings", METHODS)
def test_events_replayed_make_the_caption(tiny_model, tiny_tokenizer, features, settings):
    result = generate(
        tiny_model,
        features,
        settings,
        0,
        generator=np.random.default_rng(0),
        captions_per_image=2,
    )
    ids = list(range(tiny_tokenizer.mask_id + 1))
    pieces_of = dict(zip(ids, tiny_tokenizer.pieces(ids), strict=True))
    for row in range(len(result.tokens)):
        trace = build_trace(result, row, pieces_of)
        length = int(result.lengths[row])
        caption = [tiny_model.mask_id] * length
        frames = []
        for step in sorted({event.step for event in trace.events}):
            events = [event for event in trace.events if event.step == step]
            probabilities = [event.probability for event in events]
            assert probabilities == sorted(probabilities, reverse=True)
            for event in events:
                assert caption[event.position] != event.token_id
                assert event.token == pieces_of[event.token_id]
                assert event.timestep == result.timesteps[step, row]
                caption[event.position] = event.token_id
            frames.append(tuple(pieces_of[token] for token in caption))
        assert caption == result.tokens[row, :length].tolist()
        assert list(trace.frames) == frames
        last = {event.position: event.probability for event in trace.events}
        assert [last[i] for i in range(length)] == result.confidences[row, :length].tolist()


def test_events_in_a_batch_of_unequal_captions():
    history = torch.tensor([[[9, 9, 9], [9, 5, 0]], [[9, 2, 9], [4, 5, 0]], [[1, 2, 3], [4, 5, 0]]])
    result = DecodingResult(
        tokens=history[-1],
        lengths=torch.tensor([3, 2]),
        confidences=torch.ones(2, 3),
        history=history,
        step_confidences=torch.tensor([[[0.1, 0.5, 0.2], [0.75, 0, 0]], [[0.25, 0.9, 0.5], [0.9, 0, 0]]]),
        timesteps=torch.tensor([[7, 6], [3, 2]]),
    )
    pieces_of = {token: f" w{token}" for token in range(9)} | {9: " ▁"}
    first = build_trace(result, 0, pieces_of)
    assert [(e.step, e.timestep, e.position, e.token_id, e.token, e.probability) for e in first.events] == [
        (0, 7, 1, 2, " w2", 0.5),
        (1, 3, 2, 3, " w3", 0.5),
        (1, 3, 0, 1, " w1", 0.25),
    ]
    assert first.frames == ((" ▁", " w2", " ▁"), (" w1", " w2", " w3"))
    second = build_trace(result, 1, pieces_of)
    (event,) = second.events
    assert (event.step, event.timestep, event.position, event.token_id) == (0, 6, 0, 4)
    assert event.probability == 0.75
    assert second.frames == ((" w4", " w5"),)


BATCH = DecodingResult(
    tokens=torch.tensor([[4, 5, 6, 0], [7, 0, 1, 1], [2, 3, 0, 1]]),
    lengths=torch.tensor([4, 2, 3]),
    confidences=torch.tensor([[0.5, 0.25, 1.0, 0.75], [0.5, 0.0, 0.25, 0.5], [0.5, 0.5, 0.5, 0.25]]),
    history=torch.arange(36).view(3, 3, 4),
    step_confidences=torch.linspace(0, 1, 24).view(2, 3, 4),
    timesteps=torch.tensor([[7, 6, 5], [3, 2, 1]]),
)


def test_evidence_sums_over_the_tokens_and_is_divided_by_the_penalty():
    totals = [math.log(0.5 * 0.25 * 0.75), math.log(0.5) + math.log(1e-30), 3 * math.log(0.5)]
    for penalty in (0.0, 1.0, 2.0):
        expected = [total / count**penalty for total, count in zip(totals, (4, 2, 3), strict=True)]
        assert BATCH.evidence(penalty).tolist() == pytest.approx(expected)
    assert torch.equal(BATCH.evidence(), BATCH.evidence(1.0))


def test_selected_rows_lose_the_padding_that_only_others_need():
    found = BATCH.select(torch.tensor([2, 1]))
    assert found.tokens.tolist() == [[2, 3, 0], [7, 0, 1]]
    assert found.lengths.tolist() == [3, 2]
    assert found.confidences.tolist() == [[0.5, 0.5, 0.5], [0.5, 0.0, 0.25]]
    assert torch.equal(found.history, BATCH.history[:, [2, 1], :3])
    assert torch.equal(found.step_confidences, BATCH.step_confidences[:, [2, 1], :3])
    assert found.timesteps.tolist() == [[5, 6], [1, 2]]
