"""Calibrated probabilities: fitted, stored, and what captions carry of them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcap import Captioner
from ddcap.commands import main
from ddcap.decoding.confidence import Confidence, KnownImages, Logistic, word_confidences
from ddcap.errors import CheckpointError
from ddcap.evaluation.calibration import area_under_curve, calibration_error, mean_at_coverage

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


def test_a_logistic_regression_finds_the_weights_it_was_drawn_with():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(20_000, 3)) * [1, 10, 0.1] + [0, 5, 1]
    truth = Logistic(np.array([1.0, -0.2, 0.0]), 0.5)
    found = Logistic.fit(inputs, random.random(20_000) < truth.probability(inputs))
    np.testing.assert_allclose(found.weights * [1, 10, 0.1], [1, -2, 0], atol=0.1)
    chances = found.probability(inputs)
    assert calibration_error(chances, random.random(20_000) < truth.probability(inputs)) < 0.02


def test_distances_against_a_covariance():
    """Along all directions it is the Mahalanobis distance, and nothing is left beside them."""
    random = np.random.default_rng(1)
    points = random.normal(size=(500, 4)) @ random.normal(size=(4, 4))
    known = KnownImages.of(points, directions=3)
    offset = points - points.mean(axis=0)
    full = np.einsum("ij,jk,ik->i", offset, np.linalg.inv(offset.T @ offset / len(points)), offset)
    four = KnownImages(known.centre, *directions_of(offset))
    np.testing.assert_allclose(np.exp(four.distances(points)[:, 0]), full, rtol=1e-3)
    assert (four.distances(points)[:, 1] < -10).all()
    far = np.exp(known.distances(points + 100)).sum(axis=1)
    assert (far > np.exp(known.distances(points)).sum(axis=1)).all()


def directions_of(offset):
    _, values, rows = np.linalg.svd(offset, full_matrices=False)
    return rows, values / np.sqrt(len(offset))


def test_measures_of_calibration():
    chances, happened = np.array([0.2] * 10 + [0.8] * 10), np.array([True] * 2 + [False] * 8 + [True] * 10)
    assert calibration_error(chances, happened, bins=2) == pytest.approx(0.1)
    assert mean_at_coverage(np.arange(10.0), np.arange(10.0), 0.5) == 7
    assert area_under_curve(np.array([3, 2]), np.array([1, 2])) == pytest.approx(7 / 8)


def test_confidence_survives_saving_and_loading(default, tmp_path, photos):
    default.confidence.save(tmp_path)
    again = Confidence.load(tmp_path)
    features = default.features(photos[:3])
    np.testing.assert_allclose(again.known(features), default.confidence.known(features), atol=1e-3)
    assert Confidence.load(tmp_path / "nowhere") is None
    (tmp_path / "confidence.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="calibrate' again"):
        Confidence.load(tmp_path)


def test_a_caption_knows_how_sure_it_is(default, photos):
    for caption in default(photos):
        assert 0 < caption.sure < 1 and 0 < caption.faithful < 1 and caption.sure <= caption.known
        assert set(caption.doubtful) <= set(caption.text.split())
        assert (
            np.prod(word_confidences(caption))
            == pytest.approx(np.prod(caption.confidences[: len(caption.tokens)]), rel=1e-3)
            or "" in caption.tokens
        )
    assert default(photos[0])[0].sure == pytest.approx(default(photos[:4])[0].sure, abs=0.02)


def test_concepts_of_the_user_do_not_raise_confidence(default, photos):
    """The concepts that are asked for are not what is seen."""
    (plain,), (told,) = default(photos[0]), default(photos[0], include=["zebra"])
    assert told.known == pytest.approx(plain.known) and told.sure < plain.sure + 0.2
    assert "zebra" in told.doubtful


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Images of every kind that the calibrator was not fitted with."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from unknown_images import draw_all
    finally:
        sys.path.pop(0)
    pytest.importorskip("matplotlib")
    return draw_all(tmp_path_factory.mktemp("drawings"), "test", 2)


def test_drawings_and_text_are_unknown(default, drawings, photos):
    strange = [caption.known for caption in default(drawings)]
    known = [caption.known for caption in default(photos)]
    assert area_under_curve(np.array(known), np.array(strange)) > 0.85
    assert np.mean(np.array(strange) < 0.5) > 0.7
    guess = default(next(one for one in drawings if "window" in one.name))[0]
    assert guess.why_not == "only a guess: the model has not seen images like this"
    assert default(photos[0])[0].why_not is None


def test_min_sure_leaves_captions_out_and_says_why(drawings, photos, capsys):
    window = str(next(one for one in drawings if "window" in one.name))
    assert main(["caption", str(photos[0]), window, "--format", "jsonl", "--min-sure", "0.9"]) == 0
    photo, drawing = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert photo["caption"] is None and photo["why"].endswith("is below 0.9") and photo["guess"]
    assert drawing["caption"] is None and drawing["why"].startswith("only a guess")
    assert main(["caption", str(photos[0]), window, "--format", "jsonl"]) == 0
    photo, drawing = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert photo["caption"] and 0 < photo["sure"] < 1 and drawing["known"] < 0.5
    assert main(["caption", str(photos[0]), window]) == 0
    table = capsys.readouterr().out
    assert "a guess: " in table and "not sure" in table and "%" in table
    assert main(["caption", str(photos[0]), window, "--min-sure", "0.9"]) == 0
    assert "is below 0.9" in capsys.readouterr().out


def test_a_model_of_ones_own_is_calibrated(tiny_model_folder, photos, tmp_path, capsys):
    import shutil

    pytest.importorskip("pycocoevalcap")
    folder, unknown, own = tmp_path / "model", tmp_path / "unknown", tmp_path / "own"
    shutil.copytree(tiny_model_folder, folder)
    unknown.mkdir(), own.mkdir()
    random = np.random.default_rng(0)
    for number in range(25):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(unknown / f"{number}.png")
        with Image.open(photos[number % len(photos)]) as image:
            image.resize((60, 60 + number)).save(own / f"{number}.png")
    texts = [f"a {word} on the grass" for word in ("dog", "cat", "man", "horse", "bird")]
    images = [
        {
            "filename": f"{number}.png",
            "imgid": number,
            "split": split,
            "sentences": [{"raw": t} for t in texts[number % 3 :]],
        }
        for split in ("val",)
        for number in range(25)
    ]
    images += [{**one, "imgid": one["imgid"] + 100, "split": "train"} for one in images]
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"images": images, "dataset": "few"}))
    command = [
        "calibrate",
        str(folder),
        "--data",
        str(data),
        "--images",
        str(own),
        "--unknown",
        str(unknown),
    ]
    assert main(["caption", str(photos[0]), "--model", str(folder), "--min-sure", "0.5"]) == 1
    assert "this model is not calibrated" in capsys.readouterr().err
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["captions"] == 25
    (caption,) = Captioner.from_pretrained(folder)(photos[0])
    assert 0 <= caption.sure <= caption.known <= 1 and caption.doubtful == ()
    assert main([*command[:-1], str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
