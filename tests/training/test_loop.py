import json
import os
import shutil
import signal
import threading
import time

import forked
import pytest
import torch
from safetensors.torch import load_file, save_file

from ddcap.captioner import Captioner
from ddcap.errors import CheckpointError, DataError, RecipeError, TrainingError, TrainingInterruptedError
from ddcap.model.config import read_config
from ddcap.recipe import load_recipe
from ddcap.training.checkpoint import list_checkpoints
from ddcap.training.loop import train


def weights(output):
    return load_file(list_checkpoints(output)[-1] / "weights.safetensors")


def averages(output):
    return load_file(list_checkpoints(output)[-1] / "average.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_a_model_a_log_and_checkpoints(recipe_file, tmp_path, photos):
    folder = train(load_recipe(recipe_file))
    assert folder == tmp_path / "run" / "best"
    assert Captioner.from_pretrained(folder)(photos[0])[0].length >= 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == max(line["step"] for line in lines)
    assert losses[-1] < losses[0]
    validations = [line for line in lines if line["kind"] == "validation"]
    assert len(validations) == 2
    assert validations[0]["samples"] and validations[0]["cider"] is not None
    assert len(list_checkpoints(tmp_path / "run")) == 2
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_the_best_model_is_the_moving_average(recipe_file, tmp_path):
    folder = train(load_recipe(recipe_file, ["training.validate_every=4"]))
    best = load_file(folder / "model.safetensors")
    assert same(best, averages(tmp_path / "run"))
    assert not same(best, weights(tmp_path / "run"))


def test_of_few_validation_images_the_newest_model_is_kept(recipe_file, tmp_path, caplog):
    folder = train(load_recipe(recipe_file, ["training.validate_every=1"]))  # one image: its CIDEr is 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line["kind"] == "validation"]) == 4
    assert same(load_file(folder / "model.safetensors"), averages(tmp_path / "run"))
    assert "used for validation, not for training: 5; too few" in caplog.text


def test_a_model_is_validated_after_the_epochs_that_are_named(recipe_file, tmp_path):
    train(load_recipe(recipe_file, ["training.epochs=4", "training.validate_at=[1, 3]"]))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "validation"]
    last = max(line["step"] for line in lines)
    assert steps == [round(last / 4), round(3 * last / 4), last]


@pytest.mark.parametrize("padding", ["noised", "known"])
def test_a_model_whose_words_attend_to_padding_learns(recipe_file, tmp_path, padding):
    changes = ["model.concentrated_attention=false", f"model.padding={padding}"]
    train(load_recipe(recipe_file, changes))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0]
    with pytest.raises(RecipeError, match="special design 2"):
        load_recipe(recipe_file, [f"model.padding={padding}"])


def start_and_wait(arguments, is_due):
    """`ddcap train`, as soon as something is due."""
    child = forked.Process("-m", "ddcap", "train", *arguments)
    deadline = time.monotonic() + 300  # of machines that are busy with other things
    while not is_due() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return child


@pytest.mark.slow
@pytest.mark.parametrize(("number", "reaches_loaders"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint(recipe_file, tmp_path, number, reaches_loaders):
    output = tmp_path / "run"
    rarely = ["training.epochs=400", "training.checkpoint_every=100000", "training.validate_every=400"]
    arguments = [recipe_file, *rarely, f"data.workers={int(reaches_loaders)}"]
    log = output / "log.jsonl"
    child = start_and_wait(arguments, lambda: log.exists() and log.read_text().count("\n") > 1)
    if reaches_loaders:  # schedulers signal every process of a job
        os.killpg(child.pid, number)
    else:
        child.send_signal(number)
    message = child.communicate(timeout=60)[1]
    assert child.returncode == 128 + number
    assert f"ddcap: stopped by {number.name} after step" in message and "--resume" in message
    assert "Traceback" not in message
    (checkpoint,) = list_checkpoints(output)
    done = len(log.read_text().splitlines())
    assert checkpoint.name == f"step_{done:08d}"
    changes = [change.replace("=400", f"={done}") for change in rarely]
    train(load_recipe(recipe_file, changes), resume=True)  # goes on, if only to the end of that epoch


def spoil_weights(checkpoint):
    """As a training that diverges leaves them: every loss is infinite from now on."""
    values = load_file(checkpoint / "weights.safetensors")
    values["denoiser.token_embedding.weight"].fill_(1e30)
    save_file(values, checkpoint / "weights.safetensors")


def test_a_run_that_diverges_is_one_line_and_its_checkpoints_stay(recipe_file, tmp_path, caplog):
    train(load_recipe(recipe_file, ["training.epochs=1", "training.warmup_epochs=0"]))
    kept = list_checkpoints(tmp_path / "run")
    spoil_weights(kept[-1])
    with pytest.raises(TrainingError, match=r"not finite for the 3rd time in a row \(images .*learning_rate"):
        changes = ["training.checkpoint_every=1000", "training.epochs=40"]
        train(load_recipe(recipe_file, ["training.warmup_epochs=0", *changes]), resume=True)
    assert list_checkpoints(tmp_path / "run") == kept
    assert caplog.text.count("skipped, its gradient is not finite") == 2
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text()


@pytest.mark.parametrize("cached", [False, True])
def test_an_image_that_cannot_be_read_is_left_out_and_counted(recipe_file, tmp_path, photos, caplog, cached):
    folder = tmp_path / "photos"
    shutil.copytree(photos[0].parent, folder)
    (folder / photos[0].name).write_bytes(photos[0].read_bytes()[:3000])
    changes = [f"data.root={folder}", "training.batch_size=8", "data.views=1"]
    if cached:
        changes += ["encoder.trainable=false", f"data.cache={tmp_path / 'cache'}"]
    for workers in (0, 1):
        caplog.clear()
        output = [f"data.workers={workers}", f"training.output={tmp_path / f'run{workers}'}"]
        train(load_recipe(recipe_file, [*changes, *output]))
        assert caplog.text.count(photos[0].name) == 1
        assert "1 images could not be read and were skipped" in caplog.text


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(recipe_file, tmp_path, caplog):
    """Files may not grow over a few thousand bytes, as if there were no room, until the last step."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    changes = ["training.epochs=4", "training.checkpoint_every=1", "training.validate_every=2"]
    recipe = load_recipe(recipe_file, changes)
    with pytest.raises(TrainingError, match=r"step_.*: cannot be written .*free disk space"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
            train(recipe)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "continues and tries again at the next checkpoint" in caplog.text
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []  # nothing half-written
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = len([line for line in lines if line["kind"] == "train"])
    assert caplog.text.count("tries again") == (steps - 1) + 1  # checkpoints but the last, and a best model
    assert caplog.text.count("best: cannot be written") == 1


def test_a_signal_while_the_disk_is_full_says_from_where_to_go_on(recipe_file, tmp_path):
    resource = pytest.importorskip("resource")
    rarely = ["training.checkpoint_every=40", "training.validate_every=400"]
    recipe = load_recipe(recipe_file, ["training.epochs=400", *rarely])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    output = tmp_path / "run"

    def fill_the_disk():
        log = output / "log.jsonl"
        while not log.exists() or log.read_text().count("\n") < 42:  # between two checkpoints
            time.sleep(0.002)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=fill_the_disk)
    watcher.start()
    try:
        with pytest.raises(
            TrainingInterruptedError, match=r"SIGTERM .*could not be saved; go on from step"
        ) as caught:
            train(recipe)
    finally:
        watcher.join()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = int(list_checkpoints(output)[-1].name.removeprefix("step_"))
    assert f"go on from step {kept} in" in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_by_sigkill_and_resumed_equals_an_uninterrupted_one(recipe_file, tmp_path):
    whole = tmp_path / "whole"
    longer = ["training.epochs=12", "training.checkpoint_every=1", "training.validate_every=12"]
    train(load_recipe(recipe_file, [f"training.output={whole}", *longer]))

    cut = tmp_path / "cut"
    arguments = [recipe_file, f"training.output={cut}", *longer]
    child = start_and_wait(arguments, lambda: list_checkpoints(cut))
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, child.communicate()[1]
    stopped_at = int(list_checkpoints(cut)[-1].name.removeprefix("step_"))
    finished_at = int(list_checkpoints(whole)[-1].name.removeprefix("step_"))
    assert 0 < stopped_at < finished_at, "the run was not killed in the middle"

    train(load_recipe(recipe_file, [f"training.output={cut}", *longer]), resume=True)
    assert same(weights(cut), weights(whole))
    assert same(averages(cut), averages(whole))
    assert same(
        load_file(cut / "best" / "model.safetensors"), load_file(whole / "best" / "model.safetensors")
    )


def test_accumulating_parts_equals_the_whole_batch(recipe_file, tmp_path):
    quiet = ["model.dropout=0", "training.epochs=2", "diffusion.mask_end=0.9"]  # dropout is drawn per part
    for parts in (1, 2):
        output = tmp_path / f"parts{parts}"
        train(
            load_recipe(
                recipe_file, [*quiet, f"training.output={output}", f"training.gradient_accumulation={parts}"]
            )
        )
    first, second = weights(tmp_path / "parts1"), weights(tmp_path / "parts2")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)


def test_bf16_and_cached_features_train(recipe_file, tmp_path):
    frozen = ["encoder.trainable=false", f"data.cache={tmp_path / 'cache'}", "training.mixed_precision=bf16"]
    folder = train(load_recipe(recipe_file, frozen))
    assert not any(name.startswith("encoder.") for name in load_file(folder / "model.safetensors"))
    assert list((tmp_path / "cache").glob("*.safetensors"))


@pytest.mark.slow
def test_compiled_blocks_train_alike(recipe_file, tiny_clip_folder, tmp_path, monkeypatch):
    """Compiled, they draw other numbers for dropout, so that is off."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    from torch._inductor import config
    from transformers import CLIPVisionModelWithProjection

    # all of PyTorch's compiler, but what it makes calls ready kernels: to build thirty takes two minutes
    for name in ("fallback_by_default", "selective_decompose"):
        monkeypatch.setattr(config, name, True)
    monkeypatch.setattr(config, "compile_threads", 1)  # one for every core would import torch
    torch.compiler.reset()
    clip = tmp_path / "clip"  # of one layer: behind a layer that trains, the next is compiled anew
    CLIPVisionModelWithProjection.from_pretrained(tiny_clip_folder, num_hidden_layers=1).save_pretrained(clip)
    for compiled in ("false", "true"):
        changes = [f"training.compile={compiled}", f"training.output={tmp_path / compiled}"]
        changes += [f"encoder.name={clip}", "model.dropout=0", "training.epochs=1"]
        train(load_recipe(recipe_file, changes))
    plain, compiled = weights(tmp_path / "false"), weights(tmp_path / "true")
    assert plain.keys() == compiled.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], compiled[name], rtol=1e-2, atol=1e-3)


def test_replacement_noise_trains(recipe_file, tmp_path):
    """With the same share of MASK, words are replaced or kept; that alone makes the difference."""
    trained = {}
    for keep_end in (0.1, 9e-6):
        output = tmp_path / f"keep{keep_end}"
        same_share = ["diffusion.keep_start=1", "diffusion.mask_start=0", "diffusion.mask_end=0.9"]
        changes = [*same_share, f"diffusion.keep_end={keep_end}", f"training.output={output}"]
        folder = train(load_recipe(recipe_file, changes))
        assert read_config(folder).diffusion.keep_end == keep_end
        lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if line["kind"] == "train"]
        assert losses[-1] < losses[0]
        trained[keep_end] = weights(output)
    kept, replaced = trained.values()
    assert kept.keys() == replaced.keys() and not same(kept, replaced)


AR = [
    "model.kind=autoregressive",
    "model.length_prediction=false",
    "model.concentrated_attention=false",
]
AR += [
    "training.image_free_probability=0",
    "decoding.method=left_to_right",
    "decoding.guidance=1",
]


@pytest.mark.parametrize("kind", [[], AR], ids=["diffusion", "autoregressive"])
def test_eight_real_images_are_over_fitted_and_recited(
    recipe_file, tmp_path, small_photos, captions_json, kind
):
    entries = json.loads(captions_json.read_text())["images"]
    for entry in entries:
        entry["sentences"] = entry["sentences"][:1]
    twice = [entry | {"split": "train"} for entry in entries]
    twice += [entry | {"split": "val", "imgid": 100 + entry["imgid"]} for entry in entries]
    one_caption = tmp_path / "one_caption.json"
    one_caption.write_text(json.dumps({"images": twice}))
    changes = [f"data.json={one_caption}", "data.captions_per_image=1", "data.views=1"]
    changes += ["training.batch_size=7", "training.epochs=300", "training.validate_every=300"]
    changes += ["training.checkpoint_every=1000", "model.width=64", "model.dropout=0", "training.ema_decay=0"]
    changes += ["training.learning_rate=3e-3", "training.warmup_epochs=10", "model.length_hidden=64"]
    changes += ["model.projection_hidden=32", "training.length_loss_weight=3"]
    captioner = Captioner.from_pretrained(train(load_recipe(recipe_file, [*changes, *kind])))
    said = [caption.text for caption in captioner(small_photos)]
    wanted = [
        captioner.tokenizer.decode(captioner.tokenizer.encode(e["sentences"][0]["raw"])) for e in entries
    ]
    assert said == wanted


def test_a_warm_up_that_never_ends_is_told(recipe_file, caplog):
    train(load_recipe(recipe_file, ["training.epochs=1", "training.warmup_epochs=2"]))
    assert "training.warmup_epochs=2 is over training.epochs=1" in caplog.text


def test_mistakes_are_one_line(recipe_file, tmp_path):
    with pytest.raises(DataError, match=r"data\.root=.*no such folder"):
        train(load_recipe(recipe_file, ["data.root=/nowhere"]))
    with pytest.raises(CheckpointError, match="contains no checkpoint"):
        train(load_recipe(recipe_file), resume=True)
    with pytest.raises(RecipeError, match=r"training\.batch_size=6 makes 3 images per step"):
        train(load_recipe(recipe_file, ["training.batch_size=6", "training.gradient_accumulation=2"]))
    train(load_recipe(recipe_file, ["training.epochs=1"]))
    with pytest.raises(CheckpointError, match="already contains a run; add --resume"):
        train(load_recipe(recipe_file))
    with pytest.raises(RecipeError, match=r"model\.width was 16 and is now 32"):
        train(load_recipe(recipe_file, ["model.width=32"]), resume=True)
    progress = list_checkpoints(tmp_path / "run")[-1] / "progress.json"
    progress.write_text(progress.read_text().replace('"width": 16', '"width": 32'))
    with pytest.raises(CheckpointError, match="written with other model settings"):
        train(load_recipe(recipe_file, ["model.width=32"]), resume=True)


def test_training_without_images_names_the_missing_one(recipe_file, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such image folder"):
        train(
            load_recipe(
                recipe_file,
                ["data.images=nowhere", "encoder.trainable=false", f"data.cache={tmp_path / 'cache'}"],
            )
        )


def test_workers_read_the_same_batches(recipe_file, tmp_path):
    for workers in (0, 1):
        train(
            load_recipe(
                recipe_file, [f"data.workers={workers}", f"training.output={tmp_path / str(workers)}"]
            )
        )
    assert same(weights(tmp_path / "0"), weights(tmp_path / "1"))
