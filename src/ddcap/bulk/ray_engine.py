"""The same job over a Ray Data cluster: every CPU of it captions, this process writes.

The names are cut into units: a tar file, or a few images. A unit goes to one of a pool of actors, each with
a model of its own, and comes back whole. Where an actor or its machine is lost, Ray starts another one and
gives it the unit again. Rows are written here, by the same outputs as without Ray, so a job whose driver was
killed goes on in the same way, too.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from ddcap.bulk.names import ImageNames
from ddcap.bulk.output import CaptionOutput
from ddcap.bulk.remote import is_remote, open_remote, read_image
from ddcap.bulk.run import Job, Progress
from ddcap.bulk.sidecars import Beside
from ddcap.bulk.tar_input import TarImage, is_tar, tar_images
from ddcap.bulk.units import ModelArguments, UnitCaptioner
from ddcap.bulk.walk import Links, SeenNames
from ddcap.captioner import Captioner
from ddcap.data.images import ImageSource
from ddcap.errors import DDCapError, ImageError, MissingExtraError, remedy
from ddcap.machine import ahead

_UNIT = 64  # images that are files, captioned by one actor and lost with it
_MOST_BLOCKS = 10_000  # of one job; Ray's bookkeeping grows with them
_READERS = 8  # images on object storage read at once by an actor


def caption_on_ray(
    model: ModelArguments,
    paths: Iterable[str],
    *,
    output: CaptionOutput | None = None,
    beside: Sequence[Beside] = (),
    overwrite: bool = False,
    links: Links = "skip",
    min_sure: float | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_failure: Callable[[str], None] = lambda _: None,
    workers: int | None = None,
    unit: int = _UNIT,
    **asked: Any,
) -> Progress:
    """Caption as `caption_files` does, on the cluster that Ray is connected to, or else finds or starts.

    `RAY_ADDRESS` names a cluster; without, and if there is none here, this machine becomes one.

    Args:
        model: arguments of `Captioner.from_pretrained`; every machine loads the model by them.
        paths: of files, folders and tar files that every machine sees, or addresses of images and tar
            files (`remote.expand` lists those of a folder).
        output: see `caption_files`.
        beside: likewise; written by this process.
        overwrite: likewise.
        links: likewise.
        min_sure: likewise.
        on_progress: likewise.
        on_failure: likewise.
        workers: actors; None: one for each CPU of the cluster, or for each GPU if the device is "cuda".
        unit: images that an actor is given at once, where they are no tar files.
        asked: see `Captioner.caption_each`. Decoders that draw draw otherwise than without Ray.

    Raises:
        DDCapError: if the captions cannot be as they are asked to be, or the cluster fails.
        MissingExtraError: if Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("--engine ray", "ray") from None
    list(on_driver(model).caption_each([], **asked))  # refuses what cannot be
    names = dict(zip(("model", "device", "precision", "runtime"), model[:4], strict=True))
    job = Job(
        output,
        beside,
        overwrite=overwrite,
        options={**names, "device": None, **asked, "min_sure": min_sure},
        on_progress=on_progress,
        on_failure=on_failure,
    )
    try:
        job.begin()
        units = list(_units(job, paths, links, unit))
        if units:
            _caption_units(ray, job, units, model, workers, (asked, min_sure))
        return job.finish()
    finally:
        job.close()


def on_driver(model: ModelArguments) -> Captioner:
    """Load the model to see what it can do; on the CPU, since the driver's machine may have no GPU."""
    name, _, precision, runtime = model[:4]
    return Captioner.from_pretrained(name, "cpu", precision, runtime)


def _caption_units(
    ray: Any,
    job: Job,
    units: Sequence[dict[str, Any]],
    model: ModelArguments,
    workers: int | None,
    how: tuple[dict[str, Any], float | None],
) -> None:
    """Caption them on the cluster, and write what becomes of each as it comes back."""
    try:
        _connect(ray)
        actors = actors_on(ray.nodes(), str(model[1]))
        if actors.gpus:
            model = (model[0], "cuda", *model[2:])  # Ray shows an actor the one that it has
        arguments = [list(model), *how, ray.put((job.seen, job.names))]
        numbered = ({**one, "number": number} for number, one in enumerate(units))
        for found in _on_actors(ray, numbered, UnitActor, arguments, actors, workers):
            _take(job, found)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("ddcap.errors.DDCapError: ")
        raise DDCapError(
            f"the Ray job failed: {reason}; see Ray's logs, then run the command again to continue"
        ) from None
    except ConnectionError as error:
        raise DDCapError(f"cannot connect to a Ray cluster ({error}); check RAY_ADDRESS") from None


class Actors(NamedTuple):
    """The actors that a cluster has room for.

    Attributes:
        most: of them.
        cpus: of each.
        gpus: of each.
    """

    most: int
    cpus: int
    gpus: int


def actors_on(nodes: Sequence[Mapping[str, Any]], device: str) -> Actors:
    """One actor for each CPU; on GPUs one for each, with its share of the CPUs to read images.

    Args:
        nodes: of the cluster, as `ray.nodes` gives them.
        device: "cpu" or "cuda".

    Raises:
        DDCapError: if GPUs are wanted and there is none: Ray would wait for one.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not device.startswith("cuda"):
        return Actors(max(1, int(sum(node.get("CPU", 0) for node in alive))), 1, 0)
    with_gpus = [node for node in alive if node.get("GPU", 0) >= 1]
    if not with_gpus:
        raise DDCapError(
            f"--device {device}: the Ray cluster has no GPU; add a machine with one, or use --device cpu"
        )
    shares = [int(node.get("CPU", 0) // node["GPU"]) for node in with_gpus]
    return Actors(int(sum(node["GPU"] for node in with_gpus)), max(1, min(shares)), 1)


def _on_actors(
    ray: Any,
    units: Iterable[dict[str, Any]],
    actor: type,
    arguments: list[Any],
    actors: Actors,
    workers: int | None,
) -> Iterator[dict[str, Any]]:
    """Give each unit to one of a pool of actors; what they return, as it comes back."""
    rows = [{"unit": json.dumps(unit)} for unit in units]
    count = workers or actors.most
    results = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map_batches(
        actor,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=count, initial_size=count, max_tasks_in_flight_per_actor=2
        ),
        fn_constructor_args=arguments,
    )
    for result in results.iter_rows():
        yield json.loads(result["captions"])


def _connect(ray: Any) -> None:
    """Connect to a cluster, or start one here."""
    _quiet(ray)
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError:
            raise
        except Exception as error:  # Ray raises plain ones, for instance after 30 seconds on a busy machine
            reason = " ".join(str(error).split())
            raise DDCapError(f"Ray did not start ({reason}); try again, or set RAY_ADDRESS") from None


def _quiet(ray: Any) -> None:
    """No bars of Ray's beside ours, no log on standard error, and no word to its makers."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _units(job: Job, paths: Iterable[str], links: Links, size: int) -> Iterator[dict[str, Any]]:
    """Tar files that are not complete, one each, and `size` images at a time."""
    tars: list[str] = []

    def images() -> Iterator[str]:
        for path in paths:
            found = [path] if is_remote(path) else job.walk([path], links)
            for name in map(str, found):
                if is_tar(name):
                    tars.extend([] if job.is_complete(name) else [name])
                elif job.wants(name) if is_remote(name) else job.wants_file(Path(name)):
                    yield name

    files = images()
    while names := list(itertools.islice(files, size)):
        yield {"images": names}
    for tar in dict.fromkeys(tars):
        yield {"tar": tar}


def _take(job: Job, found: dict[str, Any]) -> None:
    """Write what became of a unit."""
    job.progress.skipped += found["skipped"]
    for name, reason in found["problems"]:
        job.problem(name, reason)
    if found["tar"] is not None and not any(name == found["tar"] for name, _ in found["problems"]):
        job.resolve(found["tar"])
    for name, member, row in found["rows"]:
        if member is None:
            job.take(name if is_remote(name) else Path(name), row)
        elif job.wants(name):
            job.take(TarImage(name, b"", found["tar"], member), row)


class UnitActor:
    """An actor: a model, and the units that it is given.

    Args:
        model: see `UnitCaptioner`.
        asked: likewise.
        min_sure: likewise.
        seen: reference of the names that are done, for the members of tar files, and of how they are named.
    """

    def __init__(
        self, model: ModelArguments, asked: dict[str, Any], min_sure: float | None, seen: Any
    ) -> None:
        import ray

        self._captioner, self._seed = UnitCaptioner(model, asked, min_sure), asked.get("seed", 0)
        self._seen, self._names = cast(tuple[SeenNames, ImageNames], ray.get(seen))

    def __call__(self, batch: Any) -> Any:
        """A table of units, column "unit", to one of what became of them, column "captions"."""
        import pyarrow

        units = map(json.loads, batch.column("unit").to_pylist())
        return pyarrow.table({"captions": [json.dumps(self._caption(unit)) for unit in units]})

    def _caption(self, unit: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"tar": unit.get("tar"), "rows": [], "problems": [], "skipped": 0}
        seeds = np.random.SeedSequence([self._seed, unit["number"]])
        seed = int(seeds.generate_state(1)[0])
        for source, row in self._captioner.rows(self._images(unit, found), seed=seed):
            member = source.member if isinstance(source, TarImage) else None
            found["rows"].append((str(source), member, row))
        return found

    def _images(self, unit: dict[str, Any], found: dict[str, Any]) -> Iterator[ImageSource]:
        """A unit's images; those on object storage are read ahead."""

        def problem(name: str, reason: str) -> None:
            found["problems"].append((name, reason))

        def is_wanted(name: str) -> bool:
            is_new = self._names.for_row(name) not in self._seen
            found["skipped"] += not is_new
            return is_new

        if "tar" in unit:
            tar = unit["tar"]
            try:
                with open_remote(tar) if is_remote(tar) else open(tar, "rb") as file:
                    yield from tar_images(file, tar, is_wanted=is_wanted, on_problem=problem)
            except (OSError, ValueError) as error:
                problem(tar, f"cannot be read ({getattr(error, 'strerror', None) or error}); {remedy(error)}")
            return
        for name, source in ahead(_source, unit["images"], workers=_READERS):
            if isinstance(source, ImageError):
                found["rows"].append((name, None, {"error": str(source)}))
            else:
                yield source


def _source(name: str) -> ImageSource | ImageError:
    if not is_remote(name):
        return Path(name)
    try:
        return read_image(name)
    except ImageError as error:
        return error
