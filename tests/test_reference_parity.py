"""Our functions against the release's numbers: computed by a slow implementation of its mathematics,
everywhere, and recorded from the authors' code, where that file is there (see DDCAP_REFERENCE below).

The slow implementation has to reproduce the recording itself.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import slow_release
import torch

from ddcap.decoding.predictor import Predictor
from ddcap.decoding.sampler import Drafts, denoise
from ddcap.decoding.schedulers.best_first import BestFirstScheduler
from ddcap.diffusion import linear_schedule, marginal, posterior
from ddcap.model.attention_mask import self_attn_mask
from ddcap.model.convert import released_config, rename_released
from ddcap.model.ddcap import DDCapModel, TorchSteps
from ddcap.model.encoders import ImageEncoder
from ddcap.model.features import ImageFeatures
from ddcap.settings import DiffusionSettings, EncoderSettings

_DEFAULT = Path(__file__).parents[2] / "shared" / "reference" / "reference_tiny.npz"
PATH = Path(os.environ.get("DDCAP_REFERENCE", _DEFAULT))

RELATIVE = 1e-4
SIZES = slow_release.Sizes(
    vocabulary=23, width=16, layers=2, heads=2, image_positions=5, steps=12, length=12, positions=15
)


def recorded():
    if not PATH.is_file():
        pytest.skip(f"no reference file at {PATH}; set DDCAP_REFERENCE to reference_tiny.npz")
    return dict(np.load(PATH))


def computed():
    inputs = slow_release.random_inputs(SIZES)
    return {**inputs, **slow_release.record(inputs)}


@pytest.fixture(scope="module", params=[False, True], ids=["computed slowly", "recorded"])
def is_recorded(request):
    return request.param


def tensors(arrays):
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    return {
        name: torch.from_numpy(
            value.astype(np.float32) if value.dtype == np.float64 and value.ndim > 1 else value
        )
        for name, value in arrays.items()
    }


@pytest.fixture(scope="module")
def reference(is_recorded):
    return tensors(recorded() if is_recorded else computed())


@pytest.fixture(scope="module")
def sizes(reference):
    return vars(slow_release.Sizes(*reference["config"].tolist()))


def test_the_slow_implementation_is_the_authors_code():
    arrays = recorded()
    ours = slow_release.record(arrays)
    for name, value in ours.items():
        theirs = arrays[name]
        if name in ("decoded", "attention_bias"):
            assert np.array_equal(value, theirs), name
        elif name == "log_posterior":  # the release floors log 0 at another place
            np.testing.assert_allclose(np.exp(value), np.exp(theirs), atol=1e-5, err_msg=name)
        elif name == "logits":
            size = np.abs(theirs).max()
            for mine, released, length in zip(value, theirs, arrays["length"], strict=True):
                np.testing.assert_allclose(mine[:length], released[:length], rtol=1e-4, atol=1e-4 * size)
        else:
            np.testing.assert_allclose(value, theirs, rtol=1e-4, atol=1e-6, err_msg=name)
    assert len(ours) == 13


def test_the_slow_numbers_tell_captions_and_words_apart():
    arrays = computed()
    assert len({tuple(tokens[tokens >= 0]) for tokens in arrays["decoded"]}) == 6
    assert len(set(arrays["decoded"][-1].tolist())) > 3
    assert arrays["logits"].std(axis=2).min() > 0.1


@pytest.fixture(scope="module")
def schedule(sizes):
    settings = DiffusionSettings(steps=sizes["steps"])
    return linear_schedule(settings, sizes["vocabulary"], count_mask_as_replacement=True)


class NoEncoder(ImageEncoder):
    """The reference starts from features; only the shapes are needed."""

    def __init__(self, positions: int, memory_width: int, summary_width: int) -> None:
        super().__init__()
        self.memory_positions, self.memory_width, self.summary_width = positions, memory_width, summary_width


def model_of(reference, sizes):
    released = {name.removeprefix("state/"): v for name, v in reference.items() if name.startswith("state/")}
    released["mask_embedding"] = reference["mask_embedding"]
    released["image_free_memory"] = reference["image_free_memory"]
    state = rename_released(released)
    config = released_config(state, heads=sizes["heads"], encoder=EncoderSettings(), steps=sizes["steps"])
    encoder = NoEncoder(
        sizes["image_positions"], reference["patch_features"].shape[2], reference["cls_features"].shape[1]
    )
    model = DDCapModel(config, encoder)
    model.load_stored_state(state)
    return model.eval()


@pytest.fixture(scope="module")
def model(reference, sizes):
    return model_of(reference, sizes)


def padding(reference):
    positions = torch.arange(reference["x0"].shape[1])
    return positions >= reference["length"].unsqueeze(1)


def close(ours, theirs, absolute=0.1):
    scale = theirs.abs().max().item()
    torch.testing.assert_close(
        ours.double(), theirs.double(), rtol=RELATIVE, atol=RELATIVE * scale * absolute
    )


def test_schedule_equals_the_authors(reference, schedule):
    for ours, theirs in (
        (schedule.keep, "at"),
        (schedule.replace, "bt"),
        (schedule.mask, "ct"),
        (schedule.cumulative_keep, "att"),
        (schedule.cumulative_replace, "btt"),
        (schedule.cumulative_mask, "ctt"),
    ):
        torch.testing.assert_close(ours, reference[theirs].double(), rtol=RELATIVE, atol=1e-15)


def test_marginal_equals_the_authors(reference, schedule):
    ours = marginal(reference["x0"], reference["t"], schedule)  # (B, L, V + 1)
    torch.testing.assert_close(ours.transpose(1, 2), reference["q_xt_given_x0"], rtol=RELATIVE, atol=1e-7)


def test_posterior_equals_the_authors(reference, schedule):
    log_p_x0 = reference["log_p_x0"][:, :-1].transpose(1, 2)  # the MASK row holds no clean token
    t = reference["t_post"]
    ours = posterior(log_p_x0, reference["xt"], t, t - 1, schedule)
    theirs = reference["log_posterior"].exp()
    torch.testing.assert_close(ours.transpose(1, 2), theirs, rtol=0, atol=1e-5)


def test_attention_mask_equals_the_authors(reference, sizes):
    is_padding = padding(reference)
    allowed = self_attn_mask(reference["xt"] == sizes["vocabulary"], is_padding, concentrated=True)
    theirs = reference["attention_bias"] == 0
    # a padded row is read by nobody; there we let the position attend to itself, the release to nothing
    assert torch.equal(allowed[~is_padding], theirs[~is_padding])
    itself = torch.eye(sizes["length"], dtype=torch.bool)
    assert torch.equal((allowed & ~itself)[is_padding], (theirs & ~itself)[is_padding])


def test_projection_equals_the_authors(reference, model):
    close(model.memory_projection(reference["patch_features"]), reference["projected"])


def test_length_head_equals_the_authors(reference, model):
    features = ImageFeatures(reference["patch_features"], reference["cls_features"])
    close(model.length_logits(features), reference["length_logits"])


def logits_are_close(reference, model):
    keys_values = model.denoiser.project_memory(reference["image_memory"])
    with torch.no_grad():
        hidden = model(reference["xt"], reference["t"], reference["length"], keys_values)
        real = ~padding(reference)
        close(model.denoiser.logits(hidden)[real], reference["logits"][real])


def test_logits_equal_the_authors(reference, model):
    logits_are_close(reference, model)


# V, D, layers, heads, P, T, L, positions. Where the slow implementation rounds the timestep's angles in
# another order than the release, a tenth of the last one's logits differ by more than 1e-4 of the largest
OTHER_SIZES = [
    (83, 64, 2, 4, 9, 20, 12, 32),
    (17, 32, 3, 4, 7, 50, 20, 32),
    (83, 48, 3, 3, 7, 100, 10, 32),
    (61, 64, 4, 8, 9, 30, 16, 32),
]


@pytest.mark.parametrize("numbers", OTHER_SIZES, ids=str)
def test_logits_of_other_sizes_equal_the_authors(numbers):
    # the network alone: the process's matrices of all states take long at these sizes
    sizes = slow_release.Sizes(*numbers)
    inputs = slow_release.random_inputs(sizes)
    logits = slow_release.logits(inputs)
    reference = tensors({**inputs, "logits": logits})
    logits_are_close(reference, model_of(reference, vars(sizes)))


def test_float32_explains_how_far_the_timesteps_angles_are_off():
    # an exponent of up to 9.2, its exponential, t / T, the 8000-fold and the product are rounded
    sizes = slow_release.Sizes(*OTHER_SIZES[-1])
    network = slow_release.Network(sizes, {}, np.zeros(sizes.width))
    rounding = 2.0**-24
    worst = 0.0
    for t in range(sizes.steps):
        exact = network.angles(t, np.float64)
        exponents = -np.log(exact / exact[0]) if t else np.zeros_like(exact)
        off = np.abs(network.angles(t, np.float32) - exact)
        assert (off <= exact * rounding * (2 * exponents + 5)).all()
        worst = max(worst, off.max())
    assert worst > 1e-4  # so the order of rounding does show


@torch.inference_mode()
def test_decoded_tokens_equal_the_authors(reference, model, sizes):
    lengths = reference["length"]
    is_padding = padding(reference)
    keys_values = model.denoiser.project_memory(reference["image_memory"])
    steps = TorchSteps(model, keys_values, with_image_free=True)
    predictor = Predictor(steps, lengths, float(reference["guidance_scale"]))
    tokens = torch.where(is_padding, 0, sizes["vocabulary"])
    scheduler = BestFirstScheduler(sizes["steps"], sizes["vocabulary"], schedule="released")
    decoded = denoise(predictor, Drafts(tokens, lengths), scheduler).tokens
    assert torch.equal(decoded.masked_fill(is_padding, -1), reference["decoded"])
