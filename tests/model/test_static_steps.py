"""Recorded passes decode what unrecorded ones do.

CUDA graphs need a GPU. `Tape` stands in for one: it repeats the recorded operations on the recorded memory,
and Python has no more say in it.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddcap.data.concepts import ConceptTokens
from ddcap.decoding.generate import generate
from ddcap.errors import DDCapError
from ddcap.machine import computing
from ddcap.model import static_steps
from ddcap.model.ddcap import TorchSteps
from ddcap.model.features import ImageFeatures
from ddcap.model.loading import build_model, replay_cuda_graphs
from ddcap.model.static_steps import LARGEST, PassShape, StaticDecoder
from ddcap.settings import DecodingSettings
from ddcap.training.state import compile_blocks


class Tape(TorchDispatchMode):
    """Notes every operation with the tensors that it read and made."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        self.notes.append((function, arguments, keywords or {}, made))
        return made

    def replay(self):
        """Repeat them; what is no view of other memory is written to where it was."""
        for function, arguments, keywords, made in self.notes:
            again = function(*arguments, **keywords)
            for old, new in zip(tensors(made), tensors(again), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


def tensors(made):
    return [one for one in (made if isinstance(made, tuple | list) else [made]) if torch.is_tensor(one)]


class TapeDecoder(StaticDecoder):
    """Replays tapes in place of CUDA graphs."""

    def record(self, compute):
        tape = Tape()
        with tape:
            outputs = compute()
        for one in outputs:
            one.zero_()  # what is read comes from a replay

        def replay():
            tape.replay()
            return outputs

        return replay


def replaying(model, decoder=TapeDecoder):
    model.static_decoder = decoder(model)
    return model


def repeated(features, images):
    """Features of so many images, no two alike."""
    rows = torch.arange(images) % features.images
    shift = 0.1 * torch.arange(images)
    return ImageFeatures(
        features.memory[rows] + shift[:, None, None], features.summary[rows] + shift[:, None]
    )


def part(features, images):
    return ImageFeatures(features.memory[images], features.summary[images])


def decode(model, features, **settings):
    return generate(model, features, DecodingSettings(**settings), model.mask_id - 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": 1.0},
        {"guidance": 1.3},
        {"guidance": 1.0, "length": 7, "candidates": 3, "steps": 4, "distinct": True},
        {"guidance": 1.3, "length": 5, "candidates": 3, "prune": (3, 2)},
        {"guidance": 1.3, "length": 6, "order": "margin"},
        {"guidance": 1.0, "length": 6, "exact_length": True},
    ],
)
@pytest.mark.parametrize("images", [1, 3])
def test_captions_are_those_of_unrecorded_steps(model, features, settings, images):
    features = repeated(features, images)
    expected = decode(model, features, **settings)
    found = decode(replaying(model), features, **settings)
    assert model.static_decoder.recorded
    assert torch.equal(found.history, expected.history)
    torch.testing.assert_close(found.confidences, expected.confidences)


@pytest.mark.parametrize(
    "changes",
    [
        {"padding": "known", "concentrated_attention": False},
        {"self_conditioning": True},
        {"length_difference": False},
    ],
)
def test_other_kinds_of_model(config, perturbed, features, changes):
    own = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    model = perturbed(build_model, own)
    features = repeated(features, 3)
    expected = decode(model, features, guidance=1.3)
    assert torch.equal(decode(replaying(model), features, guidance=1.3).history, expected.history)


def test_a_model_that_sees_concepts(config, perturbed, features):
    own = dataclasses.replace(
        config, concepts=5, model=dataclasses.replace(config.model, length_prediction=False)
    )
    model = perturbed(build_model, own)
    ids = torch.tensor([[0, 1, -1], [4, -1, -1]])
    features = dataclasses.replace(features, concepts=ConceptTokens(ids, torch.rand(2, 3)))
    expected = decode(model, features, guidance=1.3, length=6)
    assert torch.equal(decode(replaying(model), features, guidance=1.3, length=6).history, expected.history)


def test_a_caption_does_not_depend_on_its_batch(model, features):
    features = repeated(features, 5)
    replaying(model)
    together = decode(model, features, guidance=1.3)
    for image in range(5):
        alone = decode(model, part(features, [image]), guidance=1.3)
        length = int(alone.lengths[0])
        assert torch.equal(alone.tokens[0, :length], together.tokens[image, :length])


def test_nothing_is_left_of_earlier_batches(model, features):
    """Memory is shared by all batches of a shape; a larger one leaves its own in what is padding now."""
    features = repeated(features, 8)
    batches = [part(features, slice(*edges)) for edges in ((0, 4), (4, 7), (1, 2), (7, 8), (0, 4))]
    expected = [decode(model, batch, guidance=1.3) for batch in batches]
    replaying(model)
    for batch, one in zip(batches, expected, strict=True):
        assert torch.equal(decode(model, batch, guidance=1.3).history, one.history)


def test_batches_that_are_decoded_in_turns_keep_apart(model, features):
    features = repeated(features, 2)
    one, other = (part(features, [image]) for image in range(2))
    tokens = torch.full((1, 4), model.mask_id)
    asked = (tokens, torch.tensor([7]), torch.tensor([4]), torch.arange(4)[None])
    plain = [
        model.denoising_steps(batch, with_image_free=True).likeliest(*asked, scale=1.3)
        for batch in (one, other)
    ]
    replaying(model)
    steps = [model.denoising_steps(batch, with_image_free=True) for batch in (one, other)]
    for _ in range(2):
        for batch, expected in zip(steps, plain, strict=True):
            for found, value in zip(batch.likeliest(*asked, scale=1.3), expected, strict=True):
                torch.testing.assert_close(found, value)


def test_in_bfloat16_weights_are_cast_once(model, features):
    """And to what autocast makes of them: the very same numbers."""
    tokens = torch.full((2, 8), model.mask_id)
    asked = (tokens, torch.tensor([7, 7]), torch.tensor([8, 8]), torch.arange(8).expand(2, -1))
    with torch.no_grad(), computing(torch.device("cpu"), bfloat16=True):
        plain = TorchSteps(model, model.project_memory(features), with_image_free=True)
        expected = plain.logits(*asked)
        steps = StaticDecoder(model).steps(features, with_image_free=True)
        found = steps.logits(*asked)  # computed where it is recorded, outside of any graph
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        taped = TapeDecoder(model)
        taped.steps(features, with_image_free=True).logits(*asked)
    (recorded,) = taped._passes.values()
    notes = recorded._replay.__closure__[1].cell_contents.notes
    largest = min(
        weight.numel() for weight in taped._weights[torch.bfloat16].linear.values() if weight.ndim == 2
    )
    casts = [made for function, _, _, made in notes if function is torch.ops.aten._to_copy.default]
    assert not [
        one for one in casts if one.dtype == torch.bfloat16 and one.numel() == largest and one.ndim == 2
    ]


def test_what_cannot_be_recorded_is_computed_and_said_once(model, features, caplog):
    class Failing(StaticDecoder):
        def record(self, compute):  # noqa: ARG002
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA says more about it")

    expected = decode(model, features, guidance=1.3)
    replaying(model, Failing)
    for _ in range(2):
        assert torch.equal(decode(model, features, guidance=1.3).history, expected.history)
    assert model.static_decoder.recorded == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "CUDA graphs: a pass cannot be recorded (operation not permitted when stream is capturing); "
        "decoding goes on without them, more slowly"
    )


def test_large_passes_are_not_recorded(model, features):
    images = LARGEST // 8 + 1
    many = repeated(features, images)
    expected = decode(model, many, guidance=1.0, length=8, steps=1)
    found = decode(replaying(model), many, guidance=1.0, length=8, steps=1)
    assert model.static_decoder.recorded == 0
    assert torch.equal(found.tokens, expected.tokens)


def test_no_more_passes_are_recorded_than_there_is_room_for(model, features, monkeypatch):
    expected = decode(model, features, guidance=1.3, length=8)
    monkeypatch.setattr(static_steps, "MOST", 2)
    found = decode(replaying(model), features, guidance=1.3, length=8)
    assert model.static_decoder.recorded == 2
    assert torch.equal(found.history, expected.history)


def test_threads_share_a_decoder(model, features):
    features = repeated(features, 6)
    batches = [part(features, slice(first, first + 2)) for first in (0, 2, 4)] * 2
    expected = [decode(model, batch, guidance=1.3).history for batch in batches]
    replaying(model)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda batch: decode(model, batch, guidance=1.3).history, batches))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bfloat16", [False, True])
def test_cuda_graphs_decode_what_unrecorded_steps_do(model, features, bfloat16):
    model, features = model.cuda(), ImageFeatures(features.memory.cuda(), features.summary.cuda())
    with computing(torch.device("cuda"), bfloat16=bfloat16):
        expected = decode(model, features, guidance=1.3)
        replaying(model, StaticDecoder)
        found = [decode(model, features, guidance=1.3) for _ in range(2)]
    assert model.static_decoder.recorded
    for one in found:
        assert torch.equal(one.history, expected.history)
        torch.testing.assert_close(one.confidences, expected.confidences, rtol=1e-2, atol=1e-3)


def test_a_model_decodes_so_when_it_is_asked_to(model, features):
    expected = decode(model, features, guidance=1.3)
    replay_cuda_graphs(model, "mine")
    assert torch.equal(decode(model, features, guidance=1.3).history, expected.history)
    assert model.static_decoder.recorded


def test_autoregressive_models_are_refused(config):
    shape = {"kind": "autoregressive", "length_prediction": False, "concentrated_attention": False}
    decoding = DecodingSettings(method="left_to_right", guidance=1.0)
    own = dataclasses.replace(config, model=dataclasses.replace(config.model, **shape), decoding=decoding)
    with pytest.raises(DDCapError, match=r"^cuda_graphs: 'mine' is autoregressive; use a diffusion model"):
        replay_cuda_graphs(build_model(own), "mine")


@pytest.mark.slow
def test_compiled_blocks_are_recorded_alike(model, features):
    expected = decode(model, features, guidance=1.0, length=3)
    compile_blocks(model, "eager")
    found = decode(replaying(model, StaticDecoder), features, guidance=1.0, length=3)
    assert model.static_decoder.recorded == 3
    assert torch.equal(found.history, expected.history)


def test_few_shapes_cover_all():
    assert PassShape.around(1, 1, 12, 12, 20) == PassShape(1, 1, 12, 12)
    assert PassShape.around(3, 3, 9, 5, 20) == PassShape(4, 4, 12, 8)
    assert PassShape.around(16, 4, 19, 19, 19) == PassShape(16, 4, 19, 19)
    shapes = {
        PassShape.around(1, 1, length, asked, 20) for length in range(1, 21) for asked in range(1, length + 1)
    }
    assert len(shapes) == 23
    for length in range(1, 21):
        shape = PassShape.around(5, 3, length, length, 20)
        assert shape.length >= length and shape.asked >= length


def test_one_guided_caption_takes_four_recordings(model, features):
    """One token a step: 8 positions asked for, 7 .. 5 by the same, 4 and 3, 2, 1."""
    decode(replaying(model), part(features, [0]), guidance=1.3, length=8)
    assert model.static_decoder.recorded == 4
    decode(model, part(features, [1]), guidance=1.3, length=7)
    assert model.static_decoder.recorded == 4
