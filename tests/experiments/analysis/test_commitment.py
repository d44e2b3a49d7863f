import numpy as np
import pytest
import torch

from ddcap.decoding.generate import generate
from ddcap.decoding.trace import DecodingResult
from experiments.analysis.commitment import commitment, commitment_ranks, rate, words_of
from experiments.analysis.equal_compute import plain_decoding


def result_of(tokenizer, ids, steps, confidences):
    """A decoded caption whose position i was committed in step `steps[i]`."""
    tokens, steps = torch.tensor([ids]), torch.tensor(steps)
    history = torch.stack(
        [torch.where(steps < done, tokens, tokenizer.mask_id) for done in range(int(steps.max()) + 2)]
    )
    count = len(history) - 1
    return DecodingResult(
        tokens=tokens,
        lengths=torch.tensor([len(ids)]),
        confidences=torch.tensor([confidences]),
        history=history,
        step_confidences=torch.zeros(count, 1, len(ids)),
        timesteps=torch.zeros(count, 1, dtype=torch.long),
    )


def test_words_know_when_they_came_and_what_was_there(tiny_tokenizer):
    words = ["a", "rocket", "rocket", "on", "a", "rocket"]
    one = {word: tiny_tokenizer.encode_part(word) for word in words}
    ids, steps, step = [], [], {0: 0, 4: 1, 1: 2, 3: 3, 2: 4, 5: 5}
    for number, word in enumerate(words):
        ids += one[word]
        steps += [step[number]] * len(one[word])
    result = result_of(tiny_tokenizer, [*ids, tiny_tokenizer.end_id], [*steps, 6], [0.5] * (len(ids) + 1))
    found = words_of(result, 0, tiny_tokenizer)
    assert [word.text for word in found] == words
    assert [word.again for word in found] == [False, False, True, False, False, True]  # "a" says nothing
    assert [word.beside_itself for word in found] == [False, False, True, False, False, False]
    assert found[0].tenth == 0 and found[0].probability == 0.5
    assert found[1].probability == pytest.approx(0.5 ** len(one["rocket"]))
    assert found[5].tenth == 10 * (len(ids) - 1) // (len(ids) + 1)


def test_nothing_is_read_behind_the_first_end(tiny_tokenizer):
    a, end = tiny_tokenizer.encode_part("a"), tiny_tokenizer.end_id
    result = result_of(tiny_tokenizer, [*a, end, *a, end], [0, 1, 2, 3], [1.0] * 4)
    assert [word.text for word in words_of(result, 0, tiny_tokenizer)] == ["a"]


def test_of_one_step_the_surest_came_first(tiny_tokenizer):
    a, end = tiny_tokenizer.encode_part("a"), tiny_tokenizer.end_id
    result = result_of(tiny_tokenizer, [*a, *a, *a, end], [1, 0, 1, 0], [0.2, 0.3, 0.9, 0.8])
    assert commitment_ranks(result, 0) == [3, 1, 2, 0]


def test_an_autoregressive_model_commits_from_left_to_right(pair, val):
    twin = pair["twin"]
    features = val.features(twin, range(3))
    with torch.no_grad():
        result = generate(twin.model, features, plain_decoding(twin, "twin"), twin.tokenizer.end_id)
    for row in range(3):
        assert commitment_ranks(result, row) == list(range(int(result.lengths[row])))


def test_diffusion_commits_in_the_order_of_its_steps(pair, val):
    captioner = pair["g"]
    features = val.features(captioner, range(3))
    result = generate(captioner.model, features, plain_decoding(captioner, "g"), captioner.tokenizer.end_id)
    for row in range(3):
        ranks = commitment_ranks(result, row)
        for step, place in enumerate(np.argsort(ranks).tolist()):
            before, after = result.history[step, row, place], result.history[step + 1, row, place]
            assert before == captioner.model.mask_id and after == result.tokens[row, place]


def test_error_rates_equal_those_by_hand():
    found = rate([[1, 0, 0], [], [1]])
    assert found["mean"] == 0.5
    assert found["interval_95"] == [pytest.approx(1 / 3), 1]
    assert rate([[], []]) == {"mean": None, "interval_95": None}


def test_tenths_add_up_to_the_whole(pair, val):
    found = commitment(pair, {row: plain_decoding(one, row) for row, one in pair.items()}, val)
    for row in ("g", "twin"):
        tenths, whole = found[row]["tenths"], found[row]["all"]
        for count in ("words", "content_words"):
            assert sum(tenth[count] for tenth in tenths) == whole[count] > 0
        wrong = sum(
            tenth["unsupported"]["mean"] * tenth["content_words"]
            for tenth in tenths
            if tenth["content_words"]
        )
        assert wrong == pytest.approx(whole["unsupported"]["mean"] * whole["content_words"])
    assert found["twin"]["all"]["probability"]["mean"] <= 1
