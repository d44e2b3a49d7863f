"""The judge's graphs against PyTorch, and captions that it chooses."""

import pytest
import torch

from ddcap.captioner import Captioner

pytestmark = pytest.mark.slow

CHOSEN = {"guidance": 1.0, "candidates": 4, "length": 8, "judge_weight": 0.7, "edit_rounds": 1}


@pytest.fixture(scope="module", params=["tiny_graphs_folder", "shallow_graphs_folder"])
def folder(request):
    """A model with graphs and a judge that has a will of its own: one apart, and the denoiser itself."""
    return request.getfixturevalue(request.param)


def captioners(folder):
    return (
        Captioner.from_pretrained(folder, precision="float32", runtime=runtime)
        for runtime in ("onnx", "torch")
    )


def test_onnx_judge_gives_pytorchs_likelihoods(folder, photos):
    tokens = torch.tensor([[3, 5, 7, 9, 0], [3, 0, 7, 9, 0], [8, 8, 8, 8, 0], [1, 2, 3, 4, 5]])
    light, heavy = captioners(folder)
    ours = light.model.caption_judge(light.features(photos[:2])).log_probabilities(tokens.numpy())
    theirs = heavy.model.caption_judge(heavy.features(photos[:2])).log_probabilities(tokens)
    torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=2e-3, rtol=1e-3)
    rounded = Captioner.from_pretrained(folder, precision="int8")
    rough = rounded.model.caption_judge(rounded.features(photos[:2])).log_probabilities(tokens.numpy())
    assert abs(rough - ours).max() < 0.3 and (rough != ours).any()


def test_onnx_and_pytorch_judges_choose_and_edit_alike(folder, photos):
    light, heavy = ([one(photo, **CHOSEN)[0] for photo in photos] for one in captioners(folder))
    assert [one.tokens for one in light] == [one.tokens for one in heavy]
    plain = Captioner.from_pretrained(folder, precision="float32")
    unasked = {**CHOSEN, "judge_weight": 0.0, "edit_rounds": 0}
    unjudged = [plain(photo, **unasked)[0].tokens for photo in photos]
    assert unjudged != [one.tokens for one in light]
