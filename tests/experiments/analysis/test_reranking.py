import numpy as np
import pytest
import torch

from ddcap.decoding.predictor import Predictor
from ddcap.decoding.schedulers.best_first import plan_steps
from ddcap.decoding.scoring import sampler_log_likelihood
from experiments.analysis.candidates import candidates_of
from experiments.analysis.equal_compute import plain_decoding
from experiments.analysis.reranking import rerank
from experiments.notebook import Notebook


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    return Notebook(tmp_path_factory.mktemp("reranking"))


def test_captions_have_the_samplers_likelihood(pair, val, notebook):
    captioner, settings = pair["g"], plain_decoding(pair["g"], "g")
    found = candidates_of(captioner, val, settings, notebook, str)
    for row in range(4):
        steps = captioner.model.denoising_steps(val.features(captioner, [row]), with_image_free=True)
        for place, ids in enumerate(found.ids[row]):
            size = np.array([len(ids)])
            predictor = Predictor(steps, torch.from_numpy(size), settings.guidance)
            plan = plan_steps(size, size, captioner.model.config.diffusion.steps)
            tokens = torch.tensor([ids])
            likelihood = sampler_log_likelihood(predictor, tokens, plan, captioner.model.mask_id)
            assert found.sampler[row, place] == pytest.approx(float(likelihood), rel=1e-3, abs=1e-3)
    assert (found.length[:, :-1] >= found.length[:, 1:]).all()  # the likeliest length first


def test_no_judge_exceeds_the_oracle(pair, val, notebook):
    found = rerank(pair, val, plain_decoding(pair["g"], "g"), notebook, str)
    judges = found["judges"]
    first, oracle = judges["likeliest_length"], judges["oracle"]
    assert first["minus_likeliest_length"]["mean"] == 0
    assert len(judges) == 9 and found["pictures"] == len(val.records)
    for judge in judges.values():
        assert judge["CIDEr"] <= oracle["CIDEr"]
        difference = judge["CIDEr"] - first["CIDEr"]
        assert judge["minus_likeliest_length"]["mean"] == pytest.approx(difference)
