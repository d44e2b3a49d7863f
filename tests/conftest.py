"""What several test files share: real photographs with captions, and real but tiny components."""

import functools
import gc
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and tensors this small gain nothing

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image

from ddcap.captioner import Captioner
from ddcap.commands import main
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.model.config import ModelConfig, read_config
from ddcap.model.ddcap import DDCapModel
from ddcap.model.loading import build_model
from ddcap.settings import DecodingSettings, DiffusionSettings, EncoderSettings, ModelSettings

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"

# few words, unequal lengths, punctuation and capitals as people write them
SUBJECTS = ["A cat", "A cup of coffee", "A smiling woman", "A white rocket", "A brown dog", "Two people"]
ENDINGS = [
    "looks into the camera .",
    "is there .",
    "stands near a very old wall in the bright light of the morning .",
    "in front of something dark",
    "seen from close-up , don't you think ?",
]


# more examples of a property test: pytest FILE --hypothesis-profile thousands
for _profile, _examples in (("few", 100), ("thousands", 6000)):
    settings.register_profile(
        _profile,
        max_examples=_examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("few")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Share the slow tests between processes, each of which begins with its own; they keep their order.

    xdist gives each process as many tests of the list as any other, one behind the other, and what is left at
    last it lets them take from each other: short tests. All tests of exported graphs are the first
    one's, so that none waits for another's export; they are about half of the slow ones' time.
    """
    exported = {"tiny_graphs_folder", "shallow_graphs_folder"}

    def asks_for_exports(item: pytest.Item) -> bool:
        known = ("test_onnx_judge", "test_integer_products", "test_docs")  # for some, as they run
        return item.path.stem in known or bool(exported & set(getattr(item, "fixturenames", ())))

    slow = [item for item in items if item.get_closest_marker("slow") is not None]
    first = [item for item in slow if asks_for_exports(item)]
    others = [item for item in slow if not asks_for_exports(item)]
    short = [item for item in items if item.get_closest_marker("slow") is None]
    half = max(len(items) // 2, len(first))
    items[:] = [*first, *short[: half - len(first)], *others, *short[half - len(first) :]]


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported: 300,000 objects, which stay."""
    gc.freeze()


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """A function (name, make) -> the folder that `make` wrote, once for all processes of a test run.

    With DDCAP_MADE_ONCE, a folder, it is made once for all runs that have the same one. A test that changes
    something there copies it first.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    once = Path(os.environ.get("DDCAP_MADE_ONCE") or shared / "once")

    def made_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = once / name, once / f"{name}.done"
        once.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a test that was stopped has left
                make(folder)
                done.touch()
        return folder

    return made_once


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """Real photographs, in sorted order; they lie in one folder."""
    return sorted(PHOTOS.glob("*.jpg"))


@pytest.fixture(scope="session")
def small_photos(photos: list[Path], made_once: MakeOnce) -> list[Path]:
    """The same photographs, 96 pixels wide or high, by the same names: a training reads them many times."""

    def shrink(folder: Path) -> None:
        folder.mkdir()
        for photo in photos:
            with Image.open(photo) as image:
                image.thumbnail((96, 96))
                image.save(folder / photo.name, quality=95)

    return sorted(made_once("small_photos", shrink).iterdir())


@pytest.fixture(scope="session")
def captions_json(photos: list[Path], made_once: MakeOnce) -> Path:
    """A Karpathy JSON over `photos`; the image folder is `photos[0].parent`.

    The last but one is "val", the last "test", the rest "train". Five captions each, but three for the first.
    """
    splits = ["train"] * (len(photos) - 2) + ["val", "test"]
    images = []
    for number, (photo, split) in enumerate(zip(photos, splits, strict=True)):
        subject = SUBJECTS[number % len(SUBJECTS)]
        texts = [f"{subject} {ending}" for ending in (ENDINGS if number else ENDINGS[:3])]
        sentences = [{"raw": text} for text in texts]
        images.append({"filename": photo.name, "imgid": number, "split": split, "sentences": sentences})

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "dataset.json").write_text(json.dumps({"images": images, "dataset": "photos"}))

    return made_once("captions", write) / "dataset.json"


@pytest.fixture(scope="session")
def tiny_tokenizer(captions_json: Path) -> CaptionTokenizer:
    """A compact tokenizer trained on the captions of `captions_json`."""
    entries = json.loads(captions_json.read_text())["images"]
    captions = [sentence["raw"] for entry in entries for sentence in entry["sentences"]]
    return CaptionTokenizer.train_compact(captions, 200)


@pytest.fixture(scope="session")
def small_sizes() -> list[str]:
    """What makes any recipe train on a few photographs in a second, with a `tiny_clip_folder`."""
    model = ["width=16", "layers=1", "heads=2", "projection_hidden=8", "length_hidden=8"]
    training = ["batch_size=8", "epochs=1", "warmup_epochs=0.5", "validate_images=1"]
    return [
        *(f"model.{change}" for change in model),
        *(f"training.{change}" for change in training),
        "encoder.image_size=32",
        "data.workers=0",
    ]


@pytest.fixture(scope="session")
def tiny_clip_folder(made_once: MakeOnce) -> Path:
    """A CLIP vision model with random weights: 32 pixels, patches of 8, width 32, projection 16."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=16,
    )

    def build(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = transformers.CLIPVisionModelWithProjection(config)
        model.eval().save_pretrained(folder)

    return made_once("tiny_clip", build)


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_clip_folder: Path, tiny_tokenizer: CaptionTokenizer, made_once: MakeOnce) -> Path:
    """A saved model with random weights, large enough for its captions to differ, beside its tokenizer."""
    encoder = EncoderSettings(kind="clip", name=str(tiny_clip_folder), image_size=32, fit="crop")
    settings = ModelSettings(width=32, layers=2, heads=2, projection_hidden=16, length_hidden=16)
    config = ModelConfig(
        tiny_tokenizer.vocabulary_size, encoder, settings, DiffusionSettings(), DecodingSettings()
    )

    def build(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = DDCapModel(config)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.normal_(std=0.3)
        model.save_pretrained(folder)
        tiny_tokenizer.save(folder)

    return made_once("tiny_model", build)


@pytest.fixture(scope="session")
def tiny_graphs_folder(tiny_model_folder: Path, made_once: MakeOnce) -> Path:
    """The model of `tiny_model_folder` and a judge of its own, with their ONNX graphs, in float32."""
    pytest.importorskip("onnxscript")

    def export(folder: Path) -> None:
        plain = DDCapModel.from_pretrained(tiny_model_folder)
        settings = replace(plain.config.model, judge="own", judge_layers=1)
        model = DDCapModel(replace(plain.config, model=settings), plain.encoder)
        model.load_state_dict(plain.state_dict(), strict=False)
        assert model.judge is not None
        for weight in model.judge.parameters():
            _randomise(weight)
        _collect_translations_once()
        judged = folder.with_name("tiny_judged")
        model.save_pretrained(judged)
        CaptionTokenizer.load(tiny_model_folder).save(judged)
        assert main(["export", str(judged), str(folder), "--onnx", "--dtype", "float32"]) == 0

    return made_once("tiny_graphs", export)


@functools.cache
def _collect_translations_once() -> None:
    """Let torch.onnx.export keep what it knows of operators: collecting takes two seconds for each graph."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # it is PyTorch's own; without it exports are slower
        return
    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))


def _randomise(weight: torch.nn.Parameter) -> None:
    """Give a part of a judge numbers as large as trained ones: at first it judges as all words are."""
    weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(weight.numel()))


@pytest.fixture(scope="session")
def onnx_command() -> str:
    """The command with which docs/performance.md writes ONNX graphs."""
    page = (PHOTOS.parents[1] / "docs" / "performance.md").read_text()
    (command,) = re.findall(r"^ddcap export .*--onnx.*$", page, re.M)
    return str(command)


@pytest.fixture(scope="session")
def shallow_graphs_folder(onnx_command: str, made_once: MakeOnce) -> Path:
    """What `onnx_command` makes of the default model with one of its four blocks, which also judges.

    The encoder, the concepts, the vocabulary and the width are the default's, the weights are integers.
    """
    pytest.importorskip("onnxscript")

    def export(folder: Path) -> None:
        captioner = Captioner.from_pretrained(runtime="torch")
        model = captioner.model
        settings = replace(model.config.model, layers=1, judge="shared")
        model.config = replace(model.config, model=settings)
        model.denoiser.blocks = model.denoiser.blocks[:1]
        model.denoiser.reading_embedding = torch.nn.Parameter(torch.empty(settings.width))
        _randomise(model.denoiser.reading_embedding)
        _collect_translations_once()
        shallow = folder.with_name("shallow_default")
        captioner.save(shallow)
        words = {"MODEL": str(shallow), "FOLDER": str(folder)}
        assert main([words.get(word, word) for word in shlex.split(onnx_command)[1:]]) == 0

    return made_once("shallow_graphs", export)


@pytest.fixture(scope="session")
def tiny_ar_folder(tiny_model_folder: Path, tiny_tokenizer: CaptionTokenizer, made_once: MakeOnce) -> Path:
    """A saved autoregressive model with random weights, of the size of `tiny_model_folder`'s."""
    theirs = read_config(tiny_model_folder)
    changes = {"kind": "autoregressive", "length_prediction": False, "concentrated_attention": False}
    config = ModelConfig(
        theirs.vocabulary_size,
        theirs.encoder,
        ModelSettings(**{**vars(theirs.model), **changes}),
        theirs.diffusion,
        DecodingSettings(method="left_to_right", guidance=1),
    )

    def build(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build_model(config)
        model.save_pretrained(folder)
        tiny_tokenizer.save(folder)

    return made_once("tiny_ar", build)
