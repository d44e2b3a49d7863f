import json
from dataclasses import replace

import pytest
import torch

from ddcap.settings import DecodingSettings, dump_settings, parse_settings
from experiments.analysis.candidates import CANDIDATES, candidates_of
from experiments.analysis.equal_compute import GROUPS, plain_decoding, work_of
from experiments.notebook import Notebook
from experiments.split import caption_split


def settings_of(captioner, row, **changes):
    plain = dump_settings(plain_decoding(captioner, row))
    return parse_settings(DecodingSettings, {**plain, **changes}, "test")


@pytest.mark.parametrize(("guidance", "branches"), [(1.0, 1), (1.17, 2)])
def test_diffusion_computes_all_positions_at_every_step(pair, val, guidance, branches):
    part = replace(val, records=val.records[:2])
    found = work_of(pair["g"], part, settings_of(pair["g"], "g", guidance=guidance))
    with torch.no_grad():
        lengths = pair["g"].model.length_logits(part.features(pair["g"], range(2))).argmax(dim=1) + 1
    assert found["passes"] == float(lengths.sum()) / 2
    assert found["positions"] == branches * float((lengths**2).sum()) / 2
    assert found["operations"] > 0


def test_an_autoregressive_model_computes_one_position_per_beam_and_token(pair, val):
    part = replace(val, records=val.records[:2])
    twin = pair["twin"]
    found = work_of(twin, part, settings_of(twin, "twin"))
    captions = caption_split(twin, part, settings_of(twin, "twin")).values()
    tokens = [min(len(twin.tokenizer.encode(text)), 20) for text in captions]
    assert found["passes"] == found["positions"] == sum(tokens) / 2
    beams = work_of(twin, part, settings_of(twin, "twin", beams=3))
    assert beams["positions"] == 3 * beams["passes"]


@pytest.mark.parametrize("count", [1, 2, CANDIDATES])
def test_fewer_candidates_are_the_first_of_many(pair, val, tmp_path, count):
    captioner, plain = pair["g"], settings_of(pair["g"], "g")
    found = candidates_of(captioner, val, plain, Notebook(tmp_path), str)
    texts = found.texts(captioner.tokenizer)
    kept = [own[place] for own, place in zip(texts, found.likeliest(count), strict=True)]
    expected = caption_split(captioner, val, settings_of(captioner, "g", candidates=count))
    assert kept == list(expected.values())


def test_every_point_is_compared_with_greedy_decoding(analysed):
    found = json.loads((analysed / "analysis.json").read_text())["compute"]
    assert found["groups"].keys() == GROUPS.keys()
    greedy = found["groups"]["twin"][0]
    assert greedy["minus_greedy_twin"] == {"mean": 0, "interval_95": [0, 0]}
    for points in found["groups"].values():
        for point in points:
            difference = point["CIDEr"] - greedy["CIDEr"]
            assert point["minus_greedy_twin"]["mean"] == pytest.approx(difference, abs=1e-6)
            assert point["passes"] <= point["positions"]
