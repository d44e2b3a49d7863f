"""How often decoding in PyTorch asks for the value of a tensor.

On a GPU each time waits for all that is under way. CI has none, so what would wait is counted on the CPU.
"""

import copy
import dataclasses
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddcap import arrays
from ddcap.data.concepts import ConceptTokens, ConceptVocabulary
from ddcap.decoding.generate import generate
from ddcap.model.static_steps import StaticDecoder
from ddcap.settings import DecodingSettings

WORDS = ("dog", "ball", "man", "snow")


class Waits(TorchDispatchMode):
    """Counts operations whose result has a size or a value that Python wants to know."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        indices = arguments[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(one is not None and one.dtype == torch.bool for one in indices)
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "equal"):
            self.found[name] += 1
        return function(*arguments, **(keywords or {}))


@contextmanager
def counted_waits(monkeypatch):
    """Yields the counts; tensors are looked at as if they were on a GPU."""
    with monkeypatch.context() as patch, Waits() as waits:
        patch.setattr(arrays, "_is_waited_for", lambda _: True)
        for name in ("cpu", "tolist"):
            plain = getattr(torch.Tensor, name)

            def noted(tensor, *arguments, name=name, plain=plain, **keywords):
                waits.found[name] += 1
                return plain(tensor, *arguments, **keywords)

            patch.setattr(torch.Tensor, name, noted)
        yield waits.found


def waits_of(monkeypatch, model, features, end_id, **settings):
    with counted_waits(monkeypatch) as found, torch.no_grad():
        generate(model, features, DecodingSettings(**settings), end_id)
    return sum(found.values())


def test_what_waits_is_counted(monkeypatch):
    with counted_waits(monkeypatch) as found:
        three = torch.arange(3)
        arrays.to_host(three)
        int(three.max())
        three[three > 1]
        three.nonzero()
        three.tolist()
    assert found == {"cpu": 1, "_local_scalar_dense": 1, "index": 1, "nonzero": 1, "tolist": 1}


@pytest.mark.parametrize("guidance", [1.0, 1.17])
@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("focus", [0, 2])
def test_a_step_waits_for_nothing(monkeypatch, tiny_model, features, guidance, is_static, focus):
    """The plan says from lengths alone how many tokens each step commits."""
    model = copy.deepcopy(tiny_model)
    if is_static:
        model.static_decoder = StaticDecoder(model)
    short, long = (
        waits_of(
            monkeypatch, model, features, model.mask_id - 1, length=length, guidance=guidance, focus=focus
        )
        for length in (3, 8)
    )
    assert short == long <= 4


def test_a_step_without_repeated_words_waits_once(monkeypatch, tiny_model, features):
    end = tiny_model.mask_id - 1
    asked = {"length": 8, "guidance": 1.0, "distinct": True}
    steps = [
        len(generate(tiny_model, features, DecodingSettings(steps=steps, **asked), end).step_confidences)
        for steps in (2, 8)
    ]
    few, many = (waits_of(monkeypatch, tiny_model, features, end, steps=steps, **asked) for steps in (2, 8))
    assert steps[1] > steps[0]
    assert many - few == steps[1] - steps[0]


def test_concepts_add_no_wait_to_a_step(monkeypatch, model_with_concepts, features, tiny_tokenizer):
    model = model_with_concepts(ConceptVocabulary(WORDS, {"dogs": "dog"}), tiny_tokenizer)
    seen = ConceptTokens(torch.tensor([[0, 1], [3, 2], [2, 0]]), torch.rand(3, 2))
    features = dataclasses.replace(features, concepts=seen)
    asked = {"guidance": 1.0, "concept_bonus": 2.0, "repeat_penalty": 1.0, "concept_weight": 1.0}
    short, long = (
        waits_of(monkeypatch, model, features, tiny_tokenizer.end_id, length=length, **asked)
        for length in (3, 8)
    )
    assert short == long


def test_concepts_say_the_same_where_all_words_are_looked_at(
    monkeypatch, model_with_concepts, features, tiny_tokenizer
):
    """On a GPU; see `arrays.places_of`."""
    model = model_with_concepts(ConceptVocabulary(WORDS, {"dogs": "dog"}), tiny_tokenizer)
    seen = ConceptTokens(torch.tensor([[0, 1], [3, 2], [2, 0]]), torch.rand(3, 2))
    features = dataclasses.replace(features, concepts=seen)
    asked = {"length": 8, "guidance": 1.0, "concept_bonus": 4.0, "repeat_penalty": 3.0, "concept_weight": 1.0}
    settings = DecodingSettings(candidates=3, **asked)
    few = generate(model, features, settings, tiny_tokenizer.end_id)
    monkeypatch.setattr(arrays, "_is_waited_for", lambda _: True)
    everywhere = generate(model, features, settings, tiny_tokenizer.end_id)
    assert torch.equal(few.history, everywhere.history)
    assert torch.equal(few.confidences, everywhere.confidences)


def test_columns_are_the_same_in_numpy_and_torch():
    generator = np.random.default_rng(0)
    columns = generator.integers(0, 5, 7)
    values, found = generator.random((3, 7), dtype=np.float32), generator.random((3, 7)) > 0.5
    start = generator.random((3, 5), dtype=np.float32)
    raised, named = arrays.raise_columns(start, columns, values), arrays.any_in_column(found, columns, 5)
    for row in range(3):
        for column in range(5):
            there = columns == column
            assert raised[row, column] == max([start[row, column], *values[row, there]])
            assert named[row, column] == found[row, there].any()
    tensors = [torch.from_numpy(one) for one in (start, columns, values, found)]
    assert np.array_equal(arrays.raise_columns(*tensors[:3]), raised)
    assert np.array_equal(arrays.any_in_column(tensors[3], tensors[1], 5), named)
