import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ddcap.commands import build_parser, main
from ddcap.cpu import cpu_name
from ddcap.errors import remedy
from ddcap.machine import computes_bfloat16


@pytest.fixture
def model(tiny_model_folder):
    return ["--model", str(tiny_model_folder)]


def test_caption_prints_a_table(model, photos, capsys):
    assert main(["caption", *model, str(photos[0])]) == 0
    output = capsys.readouterr()
    assert photos[0].name in output.out.replace("\n", "") and "caption" in output.out
    assert output.err == ""


def test_caption_prints_one_json_object_per_image(model, photos, capsys):
    arguments = ["--format", "jsonl", "--num", "3", "--steps", "4", "--guidance", "1.5"]
    assert main(["caption", *model, *arguments, str(photos[0].parent)]) == 0
    told = capsys.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [line["image"] for line in lines] == [str(photo) for photo in photos]
    texts = [[one["caption"] for one in line["captions"]] for line in lines]
    assert [line["caption"] for line in lines] == [row[0] for row in texts]
    assert all(len(row) == len(set(row)) <= 3 for row in texts)
    assert told.err.count("of 3 captions: no other one fits") == sum(len(row) < 3 for row in texts)
    assert "trace" not in lines[0]


@pytest.mark.parametrize("into_a_file", [False, True])
@pytest.mark.parametrize(
    ("words", "choice"),
    [
        ([], "ONNX Runtime on cpu, int8 ("),
        (["--precision", "float32"], "ONNX Runtime on cpu, float32 (as asked for)"),
        (
            ["--model", "TINY"],
            f"PyTorch on cpu, {'bfloat16' if computes_bfloat16('cpu') else 'float32'} (this CPU",
        ),
    ],
)
def test_verbose_tells_what_runs_and_why(
    words, choice, into_a_file, tiny_model_folder, small_photos, tmp_path, capsys
):
    words = [str(tiny_model_folder) if word == "TINY" else word for word in words]
    out = ["--out", str(tmp_path / "c.jsonl"), "--workers", "2"] if into_a_file else []
    command = ["caption", *words, "--preset", "fast", str(small_photos[0]), *out]
    assert main([*command, "--verbose"]) == 0
    machine, chosen = capsys.readouterr().err.splitlines()[:2]
    assert machine.startswith(f"ddcap: CPU {cpu_name()} with ") and machine.endswith("; 1 core")
    assert chosen.startswith(f"ddcap: {choice}")
    assert chosen.endswith("; 2 processes, 1 thread each" if into_a_file else "; 1 process, 1 thread")
    assert main([*command, "--overwrite"] if into_a_file else command) == 0
    assert "CPU" not in capsys.readouterr().err


def test_a_bad_image_gives_its_error_and_exit_status_1(model, photos, tmp_path, capsys):
    renamed = tmp_path / "letter.jpg"
    renamed.write_text("Dear Sir or Madam")
    assert main(["caption", *model, "--format", "jsonl", str(renamed), str(photos[0])]) == 1
    told = capsys.readouterr()
    first, second = (json.loads(line) for line in told.out.splitlines())
    assert first.keys() == {"image", "error"} and "letter.jpg" in first["error"]
    assert second["caption"]
    assert told.err == first["error"] + "\n"


@pytest.mark.parametrize("options", [[], ["--trace"], ["--num", "2"]])
def test_a_table_has_captions_only(model, photos, tmp_path, capsys, options):
    """What cannot be read is told on standard error, a line each, in the order of the images."""
    broken = tmp_path / "broken\nname.jpg"
    broken.write_bytes(photos[0].read_bytes()[:2000])
    images = [tmp_path / "gone.jpg", photos[0], broken]
    assert main(["caption", *model, *options, *map(str, images)]) == 1
    told = capsys.readouterr()
    assert photos[0].name in told.out and "gone" not in told.out and "broken" not in told.out
    first, second = told.err.splitlines()
    assert first == f"{tmp_path / 'gone.jpg'}: no such file; check the path"
    assert second.startswith(f"{tmp_path}/broken\\nname.jpg: damaged or truncated")
    assert main(["caption", *model, *options, str(images[0])]) == 1
    assert capsys.readouterr().out == ""


def test_concepts_and_pairs_tell_of_images_likewise(photos, tmp_path, capsys):
    gone = tmp_path / "gone.jpg"
    assert main(["concepts", str(photos[0]), str(gone), "--format", "jsonl"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out.splitlines()[1]) == {"image": str(gone), "error": told.err.strip()}
    (tmp_path / photos[0].name).write_bytes(photos[0].read_bytes())
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"image,caption\n{photos[0].name},a woman\n{photos[0].name},a 猫\ngone.jpg,a dog\n")
    scored = ["score", "--pairs", str(pairs), "--images", str(tmp_path)]
    assert main(scored) == 1
    told = capsys.readouterr()
    assert told.out.count("\n") == 1 and "a woman" in told.out
    assert told.err.count("\n") == 2 and "cannot spell '猫'" in told.err and "gone.jpg: no such" in told.err
    assert main([*scored, "--format", "jsonl"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in row for row in rows] == [True, True, False]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "RECIPE", "training.epochs=1", "--resume", "training.seed=1"],
        ["train", "--resume", "RECIPE", "training.epochs=1", "training.seed=1"],
        ["train", "RECIPE", "--resume", "training.epochs=1", "training.seed=1"],
    ],
)
def test_options_stand_anywhere_among_the_arguments(arguments):
    options = build_parser().parse_args(arguments)
    assert (options.recipe, options.resume) == ("RECIPE", True)
    assert options.more == ["training.epochs=1", "training.seed=1"]
    shown = build_parser().parse_args(["caption", "a.jpg", "--num", "2", "b.jpg", "--ban", "man", "c.jpg"])
    assert (shown.images, shown.num, shown.ban) == (["a.jpg", "b.jpg", "c.jpg"], 2, ["man"])
    score = build_parser().parse_args(["score", "a.jpg", "--format", "jsonl", "a dog", "a cat"])
    assert (score.image, score.captions) == ("a.jpg", ["a dog", "a cat"])
    data = build_parser().parse_args(["data", "check", "--images", "there", "captions.json"])
    assert (data.captions, data.images) == ("captions.json", "there")


def test_an_unknown_option_is_still_refused(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["caption", "a.jpg", "--nun", "2", "b.jpg"])
    assert "unrecognized arguments: --nun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "80000"], "--port=80000: must be at most 65535"),
        (["--port", "-1"], "--port=-1: must be at least 0"),
        (["--together", "0"], "--together=0: must be at least 1"),
        (["--queue", "-1"], "--queue=-1: must be at least 0"),
        (["--max-bytes", "0"], "--max-bytes=0: must be at least 1"),
        (["--seconds", "nan"], "--seconds=nan: must be above 0"),
        (["--seconds", "0"], "--seconds=0.0: must be above 0"),
    ],
)
def test_a_service_refuses_numbers_that_are_none(options, words, capsys):
    pytest.importorskip("fastapi")
    assert main(["serve", *options]) == 1
    assert capsys.readouterr().err == f"ddcap: {words}\n"


def test_a_word_to_keep_that_is_not_there_is_named(photos, capsys):
    assert main(["rewrite", str(photos[0]), "a dog on a table", "--keep", "zebra"]) == 1
    told = capsys.readouterr().err
    assert "keep 'zebra': the caption does not have 'zebra'" in told and told.count("\n") == 1


def test_trace_shows_every_step(model, photos, capsys):
    assert main(["caption", *model, "--trace", "--length", "6", str(photos[0])]) == 0
    shown = capsys.readouterr().out
    for step in range(1, 6):  # the end token is given
        assert f" {step} " in shown
    assert "%" in shown
    assert main(["caption", *model, "--trace", "--length", "6", "--format", "jsonl", str(photos[0])]) == 0
    trace = json.loads(capsys.readouterr().out)["trace"]
    assert [event["step"] for event in trace] == list(range(5))
    assert trace[0].keys() == {"step", "timestep", "position", "token_id", "token", "probability"}


def test_infill_prints_the_filled_caption(model, photos, capsys):
    assert main(["infill", *model, str(photos[0]), "a cat ___ camera"]) == 0
    assert capsys.readouterr().out.startswith("a cat ")
    assert main(["infill", *model, str(photos[0]), "a cat"]) == 1
    error = capsys.readouterr().err
    assert "has no blank" in error and error.count("\n") == 1


@pytest.fixture
def train_split(captions_json, photos):
    return ["--data", str(captions_json), "--images", str(photos[0].parent), "--split", "train"]


def test_evaluate_writes_predictions_and_prints_metrics(
    tiny_model_folder, train_split, photos, tmp_path, capsys
):
    predictions = tmp_path / "predictions.json"
    arguments = [*train_split, "--fast", "--predictions", str(predictions)]
    arguments += ["--output", str(tmp_path / "scores.json")]
    assert main(["evaluate", str(tiny_model_folder), *arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"CIDEr", "BLEU-4", "ROUGE-L"} <= printed["metrics"].keys()
    assert printed["tokenization"] in ("ptb-java", "ptb-python")
    assert len(json.loads(predictions.read_text())) == printed["images"] == len(photos) - 2
    assert printed["human"]["metrics"]["CIDEr"] > printed["metrics"]["CIDEr"]
    assert printed["diagnostics"]["copied_from_training"] == 0
    per_image = json.loads((tmp_path / "scores.json").read_text())["per_image"]
    assert len(per_image["CIDEr"]) == printed["images"]
    assert main(["evaluate", str(tiny_model_folder), *arguments]) == 0
    assert "CIDEr" in capsys.readouterr().out


def test_evaluate_writes_nothing_that_it_is_not_asked_for(
    tiny_model_folder, train_split, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", str(tiny_model_folder), *train_split, "--fast", "--limit", "1"]
    assert main(arguments) == 0
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "--output", "scores.json"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert json.loads(Path("scores.json").read_text())["metrics"]
    capsys.readouterr()


def test_captions_are_kept_where_output_says_if_scoring_fails(
    tiny_model_folder, train_split, tmp_path, monkeypatch, capsys
):
    """Without them the hours of captioning would be lost; without --output nothing is captioned first."""
    loaded = [name for name in sys.modules if name.startswith("pycocoevalcap.")]
    for name in ("pycocoevalcap", *loaded):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    arguments = ["evaluate", str(tiny_model_folder), *train_split, "--fast", "--limit", "1"]
    assert main([*arguments, "--output", str(tmp_path / "scores.json")]) == 1
    assert "pip install 'ddcap[eval]'" in capsys.readouterr().err
    assert main(arguments) == 1
    assert "pip install 'ddcap[eval]'" in capsys.readouterr().err
    (entry,) = json.loads((tmp_path / "scores.json").read_text())
    assert entry.keys() == {"image_id", "caption"}


def test_score_gives_what_evaluate_gave(tiny_model_folder, train_split, tmp_path, capsys):
    predictions = tmp_path / "predictions.json"
    arguments = [*train_split, "--fast", "--json"]
    main(["evaluate", str(tiny_model_folder), *arguments, "--predictions", str(predictions)])
    evaluated = json.loads(capsys.readouterr().out)
    assert main(["metrics", str(predictions), *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == {**evaluated, "decoding": {}}


def test_limit_keeps_the_idf_and_a_file_brings_it_elsewhere(tiny_model_folder, train_split, tmp_path, capsys):
    idf = tmp_path / "idf.json"
    arguments = [str(tiny_model_folder), *train_split, "--fast", "--json"]
    arguments += ["--predictions", str(tmp_path / "p.json")]
    main(["evaluate", *arguments, "--save-idf", str(idf)])
    whole = json.loads(capsys.readouterr().out)
    main(["evaluate", *arguments, "--limit", "2"])
    part = json.loads(capsys.readouterr().out)
    assert part["images"] == 2 and part["idf"] == whole["idf"]
    arguments[arguments.index("train")] = "val"
    main(["evaluate", *arguments])
    assert json.loads(capsys.readouterr().out)["idf"] != whole["idf"]
    main(["evaluate", *arguments, "--idf", str(idf)])
    assert json.loads(capsys.readouterr().out)["idf"] == whole["idf"]


def test_compare_two_settings(tiny_model_folder, train_split, tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("one.json", "two.json")]
    arguments = [str(tiny_model_folder), *train_split, "--fast", "--predictions", str(tmp_path / "p.json")]
    for file, length in zip(files, ("4", "9"), strict=True):
        main(["evaluate", *arguments, "--length", length, "--output", file])
    capsys.readouterr()
    assert main(["compare", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = (json.loads(Path(file).read_text()) for file in files)
    assert found["images"] == first["images"]
    assert [(one["decoding"]["length"], one["decoding"]["exact_length"]) for one in (first, second)] == [
        (4, True),
        (9, True),
    ]
    for name, row in found["metrics"].items():
        assert row["first"] == pytest.approx(first["metrics"][name], abs=2e-3)
        assert row["second"] == pytest.approx(second["metrics"][name], abs=2e-3)
    assert found["metrics"]["ROUGE-L"]["interval_95"][0] <= found["metrics"]["ROUGE-L"]["difference"]
    assert main(["compare", *files]) == 0
    assert "common images" in capsys.readouterr().out
    assert main(["compare", files[0], str(tmp_path / "p.json")]) == 1
    assert "p.json: is not an evaluation" in capsys.readouterr().err


def test_export_halves_the_file_and_keeps_the_captions(tiny_model_folder, photos, tmp_path, capsys):
    out = tmp_path / "exported"
    assert main(["export", str(tiny_model_folder), str(out), "guidance=1.5"]) == 0
    small, large = (folder / "model.safetensors" for folder in (out, tiny_model_folder))
    assert small.stat().st_size < 0.6 * large.stat().st_size
    capsys.readouterr()
    main(["caption", "--model", str(out), "--format", "jsonl", str(photos[0])])
    exported = json.loads(capsys.readouterr().out)["caption"]
    main(
        [
            "caption",
            "--model",
            str(tiny_model_folder),
            "--guidance",
            "1.5",
            "--format",
            "jsonl",
            str(photos[0]),
        ]
    )
    assert json.loads(capsys.readouterr().out)["caption"] == exported


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["caption", "--model", "/no/such/model", "x.jpg"], "/no/such/model: no such model"),
        (["train", "no.yaml"], "no.yaml: no such recipe"),
        (["convert", "no.pt", "out"], "no.pt: no such file"),
        (["caption", "--device", "cuda:77", "x.jpg"], "device 'cuda:77': not available here"),
        (
            ["caption", "--cuda-graphs", "x.jpg"],
            "cuda_graphs: needs device cuda, not cpu; change it, or remove",
        ),
        (
            ["caption", "--cuda-graphs", "--device", "cuda:77", "x.jpg"],
            "device 'cuda:77': not available here",
        ),
        (["export", "default", "out", "guidance"], "'guidance' is not a setting; write setting=value"),
        (["export", "default", "/proc/out"], "/proc/out: No such file or directory; check the path"),
        (
            ["evaluate", "default", "--data", "x", "--images", "x", "--predictions", "/no/such/p.json"],
            "/no/such/p.json: its folder does not exist",
        ),
        (
            ["evaluate", "default", "--data", "x", "--images", "x", "--idf", "/no/idf.json"],
            "/no/idf.json: cannot be read",
        ),
        (
            ["evaluate", "default", "--data", "x", "--images", "x", "--clip", "/no/clip"],
            "/no/clip: cannot load a CLIP with a tokenizer",
        ),
        (
            ["evaluate", "default", "--data", "x", "--images", "x", "--output", "/no/such/o.json"],
            "/no/such/o.json: its folder does not exist",
        ),
        (["metrics", "/no/p.json", "--data", "x"], "/no/p.json: cannot be read"),
        (["compare", "/no/a.json", "/no/b.json"], "/no/a.json: cannot be read"),
    ],
)
def test_a_mistake_is_one_line_on_standard_error(arguments, words, capsys):
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert output.out == "" and words in output.err and output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOENT, "check the path"),
        (errno.EACCES, "change the permissions, or choose another path"),
        (errno.ENOSPC, "free disk space"),
        (errno.EROFS, "the disk is read-only; choose another path"),
        (errno.EMFILE, "open fewer files"),
        (errno.ECONNREFUSED, "check the network"),
        (errno.ETIMEDOUT, "check the network"),
        (errno.ENOMEM, "free memory"),
        (errno.EPIPE, "check the network"),
        (errno.ENOTTY, "try again"),
    ],
)
def test_each_error_of_the_system_has_its_own_remedy(number, words):
    assert remedy(OSError(number, os.strerror(number))).startswith(words)
    assert remedy(RuntimeError("disk full?"), "make room") == "make room"


def test_an_error_without_a_number_has_the_remedy_of_its_class(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_file(tmp_path / "none.safetensors")
    assert caught.value.errno is None and remedy(caught.value) == "check the path"
    assert remedy(PermissionError("no")).startswith("change the permissions")


def test_a_full_disk_is_told_to_make_room(train_split, captions_json, tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    entries = json.loads(captions_json.read_text())["images"]
    captions = [{"image_id": str(entry["imgid"]), "caption": "a dog"} for entry in entries[:1]]
    (tmp_path / "p.json").write_text(json.dumps(captions))
    assert main(["metrics", str(tmp_path / "p.json"), *train_split, "--fast", "--save-idf", "/dev/full"]) == 1
    assert (
        "/dev/full: cannot be written (No space left on device); free disk space" in capsys.readouterr().err
    )


def test_an_unknown_recipe_key_and_a_json_without_sentences(tmp_path, capsys, photos):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {epoch: 3}")
    assert main(["train", str(recipe)]) == 1
    assert "unknown setting 'training.epoch'; did you mean 'epochs'" in capsys.readouterr().err
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({"images": [{"filename": photos[0].name, "split": "train"}]}))
    recipe.write_text(f"data: {{root: {tmp_path}, json: bare.json}}")
    assert main(["train", str(recipe)]) == 1
    assert "has no 'sentences'" in capsys.readouterr().err


def test_an_empty_folder(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["caption", *model, str(tmp_path / "empty")]) == 1
    assert "the folder contains no image" in capsys.readouterr().err


def test_help_of_every_command_runs():
    for command in ("caption", "infill", "train", "evaluate", "metrics", "compare", "convert", "export"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0


def test_a_closed_pipe_is_no_traceback(model, photos):
    caption = f"{sys.executable} -m ddcap caption {' '.join(model)} --format jsonl {photos[0].parent}"
    command = f"{caption} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["caption"] is not None
    assert "Traceback" not in done.stderr
