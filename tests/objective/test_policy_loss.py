"""The loss of drawn captions: the gradient of their expected reward, however a step is divided."""

import json

import pytest
import torch
import yaml

from ddcap.data.steps import training_steps
from ddcap.objective.policy import DrawnCaptions
from ddcap.objective.self_critical import policy_loss
from ddcap.recipe.file import load_recipe
from ddcap.training.divergence import DivergenceGuard
from ddcap.training.loop import _take_step
from ddcap.training.run import Run, step_seed

WORDS = [2, 7, 3, 5, 1, 4]  # of six captions


@pytest.fixture
def log_probabilities():
    return (-torch.rand(sum(WORDS), generator=torch.Generator().manual_seed(0))).requires_grad_()


ADVANTAGE = torch.tensor([0.5, -0.5, 1.0, -1.0, 2.0, -2.0])


def drawn_captions(log_probabilities, captions, share=1.0, keep=lambda _place: True):
    """Those captions, with those of their words of which `keep` says so by their place."""
    words = [
        (row, start + place)
        for row, caption in enumerate(captions)
        for start in [sum(WORDS[:caption])]
        for place in range(WORDS[caption])
        if keep(place)
    ]
    rows, chosen = (torch.tensor(numbers) for numbers in zip(*words, strict=True))
    return DrawnCaptions(torch.zeros(len(captions), 8), log_probabilities[chosen], rows, share)


def gradient_of(loss, log_probabilities):
    (gradient,) = torch.autograd.grad(loss, log_probabilities)
    return gradient


def test_it_is_the_mean_of_advantage_times_log_probability(log_probabilities):
    loss = policy_loss(drawn_captions(log_probabilities, range(6)), ADVANTAGE, 8)
    by_caption = torch.stack([part.sum() for part in log_probabilities.split(WORDS)])
    torch.testing.assert_close(loss, -(ADVANTAGE * by_caption).mean() / 8)


@pytest.mark.parametrize("cuts", [[2, 4], [1, 5], [3, 3], [2, 2, 2], [1] * 6])
def test_parts_by_their_number_of_captions_make_the_whole(log_probabilities, cuts):
    whole = policy_loss(drawn_captions(log_probabilities, range(6)), ADVANTAGE, 8)
    ends = [sum(cuts[: number + 1]) for number in range(len(cuts))]
    parts = [range(end - size, end) for end, size in zip(ends, cuts, strict=True)]
    losses = [
        len(part) / 6 * policy_loss(drawn_captions(log_probabilities, part), ADVANTAGE[list(part)], 8)
        for part in parts
    ]
    torch.testing.assert_close(sum(losses), whole)
    torch.testing.assert_close(
        gradient_of(sum(losses), log_probabilities), gradient_of(whole, log_probabilities)
    )


def test_learning_from_some_of_the_steps_is_right_on_average(log_probabilities):
    """Two steps of three, every choice of them equally often: the mean is the loss of all words."""
    whole = policy_loss(drawn_captions(log_probabilities, range(6)), ADVANTAGE, 8)
    choices = [
        drawn_captions(log_probabilities, range(6), 2 / 3, lambda place, left_out=step: place % 3 != left_out)
        for step in range(3)
    ]
    mean = sum(policy_loss(drawn, ADVANTAGE, 8) for drawn in choices) / 3
    torch.testing.assert_close(mean, whole)


def distinct_words(tokens, _image_ids):
    """A reward that any model earns some of."""
    return torch.tensor([len(set(row)) / len(row) for row in tokens.tolist()])


@pytest.mark.parametrize("kind", ["tiny_model_folder", "tiny_twin_folder"])
def test_the_human_captions_lengths_weigh_nothing(request, tmp_path, photos, captions_json, kind):
    """A step of two parts, whose human captions are of unequal length: each part counts by its pictures."""
    pytest.importorskip("pycocoevalcap")
    recipe = {
        "data": {"root": str(photos[0].parent), "json": str(captions_json), "workers": 0},
        "model": {"init": str(request.getfixturevalue(kind))},
        "self_critical": {"captions": 3, "steps": 4},
        "training": {"objective": "self_critical", "batch_size": 4, "gradient_accumulation": 2},
    }
    recipe["training"].update(image_free_probability=0, log_every=1, gradient_clip=0)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))

    def run(name):
        run = Run(load_recipe(path, [f"training.output={tmp_path / name}"]), resume=False, progress_bar=iter)
        run.state.wrapped._reward = distinct_words
        return run

    taken, by_hand = run("taken"), run("by_hand")
    (parts,) = training_steps(taken.inputs.train_data, taken.plan, 0, 1)
    assert parts[0].words != parts[1].words and parts[0].pictures == parts[1].pictures == 2
    _take_step(taken, 0, parts, DivergenceGuard())
    (line,) = map(json.loads, (tmp_path / "taken" / "log.jsonl").read_text().splitlines())

    seed = step_seed(by_hand.recipe.training.seed, 0)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    by_hand.state.wrapped.train()
    losses = [by_hand.state.wrapped(part, None, generator) for part in parts]
    total = sum(loss.drawn for loss in losses) / 2
    total.backward()
    assert line["loss"] == pytest.approx(total.item(), abs=1e-5)
    assert line["gradient_norm"] == pytest.approx(float(by_hand.state.clip_gradients(0)), abs=2e-5)
    assert line["gradient_norm"] > 1e-3
    assert line["reward"] == pytest.approx(sum(loss.reward.item() for loss in losses) / 2, abs=1e-5)
