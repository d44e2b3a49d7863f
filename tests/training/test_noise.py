import pytest
import torch

from ddcap.diffusion import linear_schedule
from ddcap.settings import DiffusionSettings
from ddcap.training.loss import draw_noise

V, LENGTH, IMAGES, CAPTIONS = 50, 7, 400, 3
SIZES = {"images": IMAGES, "captions_per_image": CAPTIONS, "length": LENGTH, "self_conditioning": True}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def schedule():
    return linear_schedule(DiffusionSettings(mask_end=0.8), V)


@pytest.fixture(scope="module")
def noise(schedule):
    generator = torch.Generator().manual_seed(0)
    return draw_noise(generator, schedule, **SIZES)


def test_noise_of_an_image_does_not_depend_on_its_part(noise, schedule):
    tokens = torch.randint(V, (IMAGES * CAPTIONS, LENGTH), generator=torch.Generator().manual_seed(1))
    whole = noise.of(range(IMAGES), CPU).add_to(tokens, schedule)
    some = [5, 2, 399]
    rows = torch.tensor([CAPTIONS * image + caption for image in some for caption in range(CAPTIONS)])
    part = noise.of(some, CPU)
    assert torch.equal(part.add_to(tokens[rows], schedule), whole[rows])
    assert torch.equal(part.image, noise.image[some])
    # shorter captions: the same noise where there are words
    assert torch.equal(part.add_to(tokens[rows, :4], schedule), whole[rows, :4])


def test_noise_follows_the_forward_process(noise, schedule):
    tokens = torch.zeros(IMAGES * CAPTIONS, LENGTH, dtype=torch.long)
    everyone = noise.of(range(IMAGES), CPU)
    noised = everyone.add_to(tokens, schedule)
    timestep = everyone.timestep.flatten()
    assert set(timestep.tolist()) == set(range(schedule.steps))
    expected = schedule.cumulative_mask[timestep].mean()
    assert (noised == V).double().mean() == pytest.approx(float(expected), abs=0.02)
    replaced = (noised != V) & (noised != 0)
    assert replaced.double().mean() == pytest.approx(
        float(schedule.cumulative_replace[timestep].mean() * (V - 1)), abs=0.02
    )
    assert float(noise.image.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(noise.use_self_cond.double().mean()) == pytest.approx(0.5, abs=0.05)


def test_noise_depends_on_the_seed_alone(schedule):
    def draw(seed):
        torch.manual_seed(seed + 100)  # of no account
        generator = torch.Generator().manual_seed(seed)
        return draw_noise(generator, schedule, **SIZES, judge_share=0.5)

    for name, numbers in vars(draw(0)).items():
        assert torch.equal(getattr(draw(0), name), numbers), name
        assert not torch.equal(getattr(draw(1), name), numbers), name


def test_a_judges_share_is_drawn_last_and_changes_nothing_else(schedule, noise):
    with_judge = draw_noise(torch.Generator().manual_seed(0), schedule, **SIZES, judge_share=0.25)
    assert float(with_judge.is_read.double().mean()) == pytest.approx(0.25, abs=0.05)
    for name, numbers in vars(noise).items():
        if numbers is not None:
            assert torch.equal(getattr(with_judge, name), numbers), name
