"""`ddcap distill`: who captions what, which captions are kept, and how a student draws them."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
import yaml

from ddcap.commands import main
from ddcap.data.batches import CaptionData, Draw
from ddcap.data.images import load_image
from ddcap.data.records import fold_of, load_records
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.generate import generate
from ddcap.errors import DDCapError, RecipeError
from ddcap.model.loading import load_model
from ddcap.recipe import DataSettings, load_recipe
from ddcap.training.distillation import _agreement, load_teachers
from ddcap.training.loop import train
from ddcap.training.start import load_training_images

AR = ["model.kind=autoregressive", "model.length_prediction=false", "model.concentrated_attention=false",
        "training.image_free_probability=0", "decoding.method=left_to_right", "decoding.guidance=1",
        "encoder.trainable=false", "training.epochs=2", "training.validate_every=2"]  # fmt: skip


@pytest.fixture
def teachers(recipe_file, tmp_path):
    """One for each of two folds, which it has not seen."""
    folders = []
    for fold in range(2):
        own = [
            *AR,
            "data.folds=2",
            f"data.held_out={fold}",
            f"training.output={tmp_path / str(fold)}",
        ]
        folders.append(str(train(load_recipe(recipe_file, own))))
    return folders


def test_a_teacher_is_not_trained_on_its_fold(photos, captions_json, tiny_tokenizer):
    records = load_records(captions_json, photos[0].parent, "train")
    folds = [fold_of(record, 2) for record in records]
    assert set(folds) == {0, 1}
    data = CaptionData(records, tiny_tokenizer, None, DataSettings(folds=2, held_out=1), 40)
    assert {folds[draw.record] for draw in data.draws(0, 0, 1)} == {0}
    everything = CaptionData(records, tiny_tokenizer, None, DataSettings(), 40)
    assert {draw.record for draw in everything.draws(0, 0, 1)} == set(range(len(records)))


def test_two_teachers_distil_a_student(recipe_file, teachers, photos, captions_json, tmp_path, capsys):
    written = tmp_path / "distilled.json"
    arguments = ["distill", str(recipe_file), "data.folds=2", "encoder.trainable=false", "--beams", "3"]
    assert main([*arguments, "--keep", "2", "--output", str(written), "--teacher", *teachers]) == 0
    assert capsys.readouterr().out.strip() == str(written)
    images = json.loads(written.read_text())["images"]
    records = load_records(captions_json, photos[0].parent, "train")
    assert [image["filename"] for image in images] == [record.path.name for record in records]
    for image in images:
        scores = [sentence["cider"] for sentence in image["sentences"]]
        assert 1 <= len(scores) <= 2 and scores == sorted(scores, reverse=True)
    # an ordinary captions file: `ddcap data check` and a training read it
    assert [r.path for r in load_records(written, photos[0].parent)] == [r.path for r in records]
    student = ["encoder.trainable=false", f"data.distilled={written}", "data.distilled_share=0.5"]
    student = load_recipe(recipe_file, [*student, f"training.output={tmp_path / 'student'}"])
    train(student)
    images[0]["sentences"][0]["raw"] = "something else"
    written.write_text(json.dumps({"images": images}))
    with pytest.raises(DDCapError, match="captions"):
        train(student, resume=True)


def test_each_image_is_captioned_by_the_teacher_that_has_not_seen_it(
    recipe_file, teachers, photos, captions_json, tmp_path
):
    """The other way round every image has the other teacher's captions."""

    def captions(order):
        path = tmp_path / "out.json"
        arguments = ["distill", str(recipe_file), "data.folds=2", "encoder.trainable=false", "--beams", "1"]
        main([*arguments, "--keep", "1", "--output", str(path), "--teacher", *order])
        images = json.loads(path.read_text())["images"]
        return {image["filename"]: image["sentences"][0]["raw"] for image in images}

    alone = {}
    for fold, teacher in enumerate(teachers):
        path = tmp_path / "alone.json"
        arguments = ["distill", str(recipe_file), "encoder.trainable=false", "--beams", "1", "--keep", "1"]
        main([*arguments, "--output", str(path), "--teacher", teacher])
        images = json.loads(path.read_text())["images"]
        alone[fold] = {image["filename"]: image["sentences"][0]["raw"] for image in images}
    records = load_records(captions_json, photos[0].parent, "train")
    together = captions(teachers)
    for record in records:
        name = record.path.name
        assert together[name] == alone[fold_of(record, 2)][name]


def test_a_share_of_the_draws_is_the_teachers(photos, captions_json, tiny_tokenizer):
    records = load_records(captions_json, photos[0].parent, "train")
    taught = [["a thing"] for _ in records]
    plain = CaptionData(records, tiny_tokenizer, None, DataSettings(captions_per_image=2), 40)

    def drawn(share):
        settings = DataSettings(captions_per_image=2, distilled_share=share)
        data = CaptionData(records, tiny_tokenizer, None, settings, 40, distilled=taught)
        kinds = Counter()
        for epoch in range(60):
            draws, theirs = data.draws(0, epoch, 3), plain.draws(0, epoch, 3)
            assert [(d.record, d.view) for d in draws] == [(d.record, d.view) for d in theirs]
            for draw in draws:
                kinds.update(number >= len(data.captions[draw.record]) for number in draw.captions)
        return kinds[True] / kinds.total()

    assert drawn(0) == 0 and drawn(1) == 1 and drawn(0.5) == pytest.approx(0.5, abs=0.05)


def test_images_that_only_a_teacher_captioned_are_trained_on_too(recipe_file, captions_json, tmp_path):
    content = json.loads(captions_json.read_text())
    kept, dropped = content["images"][:-1], content["images"][-1]
    dropped = {**dropped, "split": "train", "sentences": [{"raw": "a thing on a table"}]}
    (tmp_path / "own.json").write_text(json.dumps({"images": kept}))
    (tmp_path / "taught.json").write_text(json.dumps({"images": [dropped]}))
    from ddcap.training.start import prepare

    changes = [f"data.json={tmp_path / 'own.json'}", f"data.distilled={tmp_path / 'taught.json'}"]
    inputs = prepare(load_recipe(recipe_file, changes), resume=False)
    names = [record.path.name for record in inputs.train_data.records]
    assert names[-1] == dropped["filename"]
    assert len(names) - 1 in {draw.record for draw in inputs.train_data.draws(0, 0, 1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.held_out=0", "data.shards=[{path: x}]"], "data.held_out: needs all captions"),
        (["data.folds=2", "data.held_out=2"], "data.held_out=2: data.folds=2 has no such fold"),
    ],
)
def test_impossible_settings_are_refused(recipe_file, changes, message):
    long = ["data.long_captions=truncate", "tokenizer={kind: gpt2}"]
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_file, [*long, *changes])
    assert message in str(error.value)


def test_folds_without_a_teacher(tiny_model_folder):
    with pytest.raises(RecipeError, match=r"data\.folds=3: needs as many teachers"):
        load_teachers([str(tiny_model_folder)] * 2, 3)


def test_a_diffusion_model_teaches_its_candidates(recipe_file, photos, captions_json, tmp_path):
    """Its captions of several lengths; of these those that agree best with people's."""
    path = tmp_path / "own.json"
    frozen = ["encoder.trainable=false", "training.epochs=1", "training.validate_every=1"]
    folder = train(load_recipe(recipe_file, [*frozen, f"training.output={tmp_path / 'teacher'}"]))
    arguments = ["distill", str(recipe_file), "encoder.trainable=false", "--teacher", str(folder)]
    assert main([*arguments, "--beams", "4", "--keep", "4", "--output", str(path)]) == 0
    images = json.loads(path.read_text())["images"]
    assert len(images) == len(load_records(captions_json, photos[0].parent, "train"))
    model, tokenizer = load_model(folder).eval(), CaptionTokenizer.load(folder)
    settings = replace(model.config.decoding, candidates=4)
    for image in images:
        pixels = model.preprocessing(load_image(photos[0].parent / image["filename"]))
        features = model.encode(torch.as_tensor(pixels)[None])
        with torch.no_grad():
            result = generate(model, features, settings, tokenizer.end_id, captions_per_image=4)
        wanted = {tokenizer.decode(row) for row in result.until(tokenizer.end_id).tolist()}
        assert {sentence["raw"] for sentence in image["sentences"]} == wanted - {""}


def test_the_images_are_seen_as_the_initial_model_sees_them(recipe_file, tiny_model_folder):
    """With `model.init` a recipe needs no section for the encoder."""
    model = load_model(tiny_model_folder)
    content = yaml.safe_load(recipe_file.read_text())
    recipe_file.write_text(yaml.safe_dump({"data": content["data"]}))
    recipe = load_recipe(recipe_file, [f"model.init={tiny_model_folder}"])
    data = load_training_images(recipe, CaptionTokenizer.load(tiny_model_folder))
    batch = data[(Draw(0, (), view=0, epoch=0),)]
    assert torch.equal(
        batch.pixels[0], torch.as_tensor(model.preprocessing(load_image(data.records[0].path)))
    )


def test_careful_leaves_out_inventions_and_slips(photos, captions_json):
    records = load_records(captions_json, photos[0].parent, "train")[:2]
    horse = replace(records[0], captions=("a man rides a horse", "a man on his horse in a field"))
    other = replace(records[1], captions=("two cups on a table",))
    slips = ["a man rides a horse with a dog", "a man man rides", "a horse and a horse"]
    texts = ["a man rides a horse", *slips, "a person on a horse"]
    scores, faultless = _agreement([horse, other], [texts, ["a cup"]])
    assert scores[0][0] == max(scores[0]) > 0
    assert faultless == [[True, False, False, False, True], [True]]


def test_captions_below_a_cider_are_left_out(recipe_file, tiny_model_folder, tmp_path, capsys):
    """The same captions as without, but for the worse ones; with none left the remedy is named."""
    content = yaml.safe_load(recipe_file.read_text())
    recipe_file.write_text(yaml.safe_dump({"data": content["data"]}))
    arguments = [
        "distill",
        str(recipe_file),
        f"model.init={tiny_model_folder}",
        "--teacher",
        str(tiny_model_folder),
    ]
    every, good = tmp_path / "every.json", tmp_path / "good.json"
    assert main([*arguments, "--output", str(every)]) == 0
    written = [s for image in json.loads(every.read_text())["images"] for s in image["sentences"]]
    least = sorted(sentence["cider"] for sentence in written)[len(written) // 2]
    assert least > min(sentence["cider"] for sentence in written)
    assert main([*arguments, "--min-cider", str(least), "--output", str(good)]) == 0
    kept = [s for image in json.loads(good.read_text())["images"] for s in image["sentences"]]
    assert kept == [sentence for sentence in written if sentence["cider"] >= least]
    assert main([*arguments, "--min-cider", "5000", "--output", str(good)]) == 1
    assert "leave --min-cider 5000 out" in capsys.readouterr().err
