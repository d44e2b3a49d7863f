"""The default's second tagger: its evidence, and the one tagger that is the mean of two."""

import sys
from pathlib import Path

import pytest
import torch

from ddcap.model.concepts import Tagger

FOLDER = Path(__file__).parents[2] / "recipes" / "default"


@pytest.fixture(scope="module", autouse=True)
def recipe_folder():
    pytest.importorskip("onnx")
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def tagger(evidence, seed):
    torch.manual_seed(seed)
    made = Tagger(evidence, 6, classes_at=4, width=5).eval()
    made.set_names([(3, 1, 0.5), (7, 2, 1.0)])
    with torch.no_grad():
        made.mean.normal_()
        made.scale.uniform_(0.5, 2)
        made.from_names.normal_()
    return made


def test_the_mean_of_two_taggers_has_the_mean_of_their_logits():
    from second_tagger import mean_of

    first, second = tagger(1004, 0), tagger(1010, 1)
    seen = torch.randn(8, 1010)
    seen[:, 4:1004] = seen[:, 4:1004].log_softmax(dim=1)
    both = mean_of(first, second)
    expected = (first(seen[:, :1004]) + second(seen)) / 2
    torch.testing.assert_close(both(seen), expected, atol=1e-4, rtol=1e-4)


def test_evidence_of_a_detector_is_its_surest_box_and_how_many_there_are():
    from detector_graph import found_of

    logits = torch.full((1, 150, 4), -20.0)
    logits[0, :, 0] = 50.0  # the background says nothing
    logits[0, :2, 1] = 2.0
    logits[0, 5, 2] = 9.0
    surest, count = found_of(logits)[0].split(3)
    assert surest.tolist() == [2.0, 3.0, -9.0]  # no surer than 3, no fainter than -9
    expected = torch.tensor([2 * torch.tensor(2.0).sigmoid(), 1.0, 0.0])
    torch.testing.assert_close(count.exp(), expected + 1e-3, atol=1e-3, rtol=0)
