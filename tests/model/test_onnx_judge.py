"""The judge's graphs against PyTorch, and captions that it chooses."""

import dataclasses

import pytest
import torch

from ddcap.captioner import Captioner
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.model.ddcap import DDCapModel
from ddcap.model.onnx_export import export_onnx
from ddcap.settings import DecodingSettings

pytestmark = pytest.mark.slow

pytest.importorskip("onnxscript")


@pytest.fixture(scope="module", params=["own", "shared"])
def folder(request, tiny_model_folder, tmp_path_factory):
    """A tiny model with a judge that has a will of its own, and its graphs."""
    plain = DDCapModel.from_pretrained(tiny_model_folder)
    settings = dataclasses.replace(plain.config.model, judge=request.param, judge_layers=1, layers=1)
    decoding = DecodingSettings(guidance=1.0, candidates=4, length=8, judge_weight=0.7, edit_rounds=1)
    config = dataclasses.replace(plain.config, model=settings, decoding=decoding)
    model = DDCapModel(config, plain.encoder)
    with torch.no_grad():
        model.load_state_dict(plain.state_dict(), strict=False)
        for name, weight in model.named_parameters():
            if name.startswith("judge.") or name == "denoiser.reading_embedding":
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(weight.numel()))
    folder = tmp_path_factory.mktemp("judging")
    model.save_pretrained(folder)
    CaptionTokenizer.load(tiny_model_folder).save(folder)
    export_onnx(folder)
    return folder


def captioners(folder):
    return (
        Captioner.from_pretrained(folder, precision="float32", runtime=runtime)
        for runtime in ("onnx", "torch")
    )


def test_the_same_likelihoods(folder, photos):
    tokens = torch.tensor([[3, 5, 7, 9, 0], [3, 0, 7, 9, 0], [8, 8, 8, 8, 0], [1, 2, 3, 4, 5]])
    light, heavy = captioners(folder)
    ours = light.model.caption_judge(light.features(photos[:2])).log_probabilities(tokens.numpy())
    theirs = heavy.model.caption_judge(heavy.features(photos[:2])).log_probabilities(tokens)
    torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=2e-3, rtol=1e-3)
    rounded = Captioner.from_pretrained(folder, precision="int8")
    rough = rounded.model.caption_judge(rounded.features(photos[:2])).log_probabilities(tokens.numpy())
    assert abs(rough - ours).max() < 0.3 and (rough != ours).any()


def test_the_same_captions_chosen_and_edited(folder, photos):
    light, heavy = ([one(photo)[0] for photo in photos] for one in captioners(folder))
    assert [one.tokens for one in light] == [one.tokens for one in heavy]
    plain = Captioner.from_pretrained(folder, precision="float32")
    unjudged = [plain(photo, judge_weight=0.0, edit_rounds=0)[0].tokens for photo in photos]
    assert unjudged != [one.tokens for one in light]
