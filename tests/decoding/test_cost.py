"""What decoding costs, counted and not timed: calls of graphs, positions, bytes of weights, operations."""

import copy
from collections import Counter

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from ddcap import Captioner
from ddcap.decoding.generate import generate
from ddcap.settings import DecodingSettings


class CountedGraph:
    """A session that notes what it is asked."""

    def __init__(self, session):
        self.session, self.asked = session, []

    def get_outputs(self):
        return self.session.get_outputs()

    def run(self, names, inputs):
        self.asked.append({name: array.shape for name, array in inputs.items()})
        return self.session.run(names, inputs)

    @property
    def weight_bytes(self):
        return sum(value.numpy().nbytes for value in self.session.kept)


class Counted:
    """A model whose graphs count from now on."""

    def __init__(self, model):
        self.graphs = {}
        load = model.graph
        model.graph = lambda name: self.graphs.setdefault(name, CountedGraph(load(name)))

    @property
    def calls(self):
        return Counter({name: len(graph.asked) for name, graph in self.graphs.items()})

    def steps(self, name="tokens"):
        """The shape of `name` in each step."""
        return [asked[name] for asked in self.graphs["step"].asked]

    def positions(self, name="tokens"):
        return sum(int(np.prod(shape)) for shape in self.steps(name))


@pytest.mark.parametrize(
    "settings, steps, positions, asked",
    [
        ({}, 70, 2143, 1186),
        ({"preset": "fast"}, 30, 795, 587),
        ({"steps": 1, "distinct": False}, 7, 294, 294),
    ],
)
def test_passes_and_positions_of_the_default(photos, settings, steps, positions, asked):
    """Recorded: steps, positions computed, and those whose words are, of four candidates each.

    Three in a hundred more are let through: other processors round otherwise, and a rounded confidence can
    make a caption take one step more.
    """
    captioner = Captioner.from_pretrained(precision="int8")
    counted = Counted(captioner.model)
    for photo in photos:
        captioner(photo, **settings)
    assert len(photos) == counted.calls["encoder"] == counted.calls["memory"] == 7
    assert counted.calls["choose"] == counted.calls["step"] <= 1.03 * steps
    assert counted.positions("rows") <= 1.03 * positions
    assert counted.positions("asked") <= 1.03 * asked


def test_bytes_of_weights_read_by_the_default(photos):
    captioner = Captioner.from_pretrained(precision="int8")
    counted = Counted(captioner.model)
    captioner(photos[0])
    weights = {name: graph.weight_bytes for name, graph in counted.graphs.items()}
    assert weights["step"] <= 18_100_000  # of every step
    assert weights["memory"] <= 12_110_000 and weights["encoder"] <= 28_400_000  # of an image
    assert weights["choose"] == 0


@pytest.mark.slow
def test_guidance_of_one_image_takes_one_call_a_step(tiny_graphs_folder, photos):
    captioner = Captioner.from_pretrained(tiny_graphs_folder)
    counted = Counted(captioner.model)
    captioner(photos[0], guidance=1.17, length=6)  # the last of the six tokens is the end
    assert counted.steps() == [(2, 1, 6)] * 5
    assert [shape[0] for shape in counted.steps("asked")] == [2 * left for left in range(5, 0, -1)]


@pytest.mark.slow
def test_equal_captions_without_the_image_are_computed_once(tiny_graphs_folder, photos):
    """All captions of one length are alike before the first step: one of them is computed."""
    captioner = Captioner.from_pretrained(tiny_graphs_folder)
    counted = Counted(captioner.model)
    captioner(photos[:3], guidance=1.17, length=6)  # the last of the six tokens is the end
    with_image, without = counted.steps()[::2], counted.steps()[1::2]
    assert with_image == [(3, 1, 6)] * 5
    assert without[0] == (1, 1, 6) and all(shape[0] == 1 and shape[1] <= 3 for shape in without)


def operations(model, features, **settings):
    """Of decoding in PyTorch, as its counter sees them: two for each multiplication and addition."""
    model = copy.deepcopy(model).requires_grad_(
        False
    )  # the counter wants gradients of parameters that have one
    with FlopCounterMode(display=False) as counter:
        generate(model, features, DecodingSettings(**settings), model.mask_id - 1)
    return counter.get_total_flops()


def test_operations_of_pytorch(tiny_model, features):
    """Against a count by hand: blocks at all positions; behind the last one's keys, MASK only."""
    shape, length, images = tiny_model.config.model, 6, features.images
    width, seen = shape.width, features.memory.shape[1]
    in_keys, behind = (
        3,
        1 + 2 + 8,
    )  # products (width, width): queries, keys, values; output, cross-attention, MLP
    unit = images * 2 * width**2

    def step(blanks):  # the counter does not see into the fused attention
        everywhere = (shape.layers - 1) * (in_keys + behind) + in_keys
        head = images * blanks * 2 * width * tiny_model.mask_id
        return unit * (everywhere * length + behind * blanks) + head

    once = operations(tiny_model, features, length=length, guidance=1.0, steps=1, distinct=False)
    full = operations(tiny_model, features, length=length, guidance=1.0)
    memory = once - step(length)  # the image's keys and values, and the timesteps' table
    assert full == sum(step(blanks) for blanks in range(1, length + 1)) + memory
    positions = images * seen
    keys_values = positions * 2 * width * 2 * width * shape.layers
    projection = positions * 2 * shape.projection_hidden * (features.memory.shape[2] + width)
    assert memory <= 1.5 * (keys_values + projection)
    guided = operations(tiny_model, features, length=length, guidance=1.17)
    assert guided <= 2 * full
