"""`ddcap caption` of very many pictures: into files, beside pictures, into copies of them."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcap.commands.arguments import decoding_changes, load_captioner, word_changes
from ddcap.errors import DDCapError

if TYPE_CHECKING:
    from ddcap.bulk.beside import Beside
    from ddcap.bulk.outputs import CaptionOutput
    from ddcap.bulk.run import Progress


def bulk_arguments(caption: argparse.ArgumentParser) -> None:
    """Add the options of large jobs to `ddcap caption`."""
    into = caption.add_argument_group("many pictures", "a job that is killed goes on where it was")
    into.add_argument(
        "--out",
        metavar="FILE",
        help="write rows into this .jsonl, .csv or .parquet, and go on with what is there; of tar files "
        "also FOLDER/: a tar for each, with KEY.txt and KEY.json",
    )
    into.add_argument(
        "--with-pictures", action="store_true", help="with --out FOLDER/: also the pictures, KEY.jpg"
    )
    into.add_argument(
        "--sidecar",
        choices=["txt", "xmp"],
        help="write each caption beside its picture: photo.txt, photo.jpg.xmp",
    )
    into.add_argument(
        "--copy-to",
        metavar="FOLDER",
        help="copy the pictures there, each with its caption written into the copy",
    )
    into.add_argument(
        "--write",
        type=_fields,
        metavar="FIELDS",
        help="where in the copy: exif, iptc, xmp (description; default: these three), alt (alternative text, "
        "in XMP), between commas",
    )
    into.add_argument(
        "--overwrite", action="store_true", help="begin anew, and write sidecars and copies anew"
    )
    into.add_argument(
        "--links",
        choices=["skip", "follow", "refuse"],
        default="skip",
        help="symbolic links inside folders: left out (default), followed, or an error each",
    )

    into.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="ray: over a Ray cluster (RAY_ADDRESS, or one started here), also from s3:// and gs://",
    )
    into.add_argument(
        "--workers", type=int, metavar="N", help="with --engine ray: actors (default: one for each CPU)"
    )


def is_bulk(options: argparse.Namespace) -> bool:
    """Whether captions go into files. What is for such jobs only is refused without."""
    from ddcap.bulk.remote import is_remote
    from ddcap.bulk.tar_input import is_tar

    is_file = options.out is not None or options.sidecar is not None or options.copy_to is not None
    for image in options.images:
        if is_tar(image) and not is_file:
            raise DDCapError(f"{image}: a tar file needs --out, for instance --out captions.jsonl")
        if is_remote(image) and options.engine != "ray":
            raise DDCapError(f"{image}: addresses are read by --engine ray only; give a path on this disk")
    if options.engine == "ray" and not is_file:
        raise DDCapError("--engine ray: is for captions into files; give --out, for instance captions.jsonl")
    if options.workers is not None and options.engine != "ray":
        raise DDCapError("--workers: is for --engine ray; give it beside, or leave it out")
    return is_file


def caption_into(options: argparse.Namespace) -> int:
    """Captions of many pictures into files."""
    if options.engine == "ray":
        options.images = _expanded(options.images)
    beside, output = _beside(options), _output(options)
    try:
        with _shown_progress(options.images, options.links) as show:
            how = {
                "output": output,
                "beside": beside,
                "overwrite": options.overwrite,
                "links": options.links,
                "min_sure": options.min_sure,
                "on_progress": show,
                **asked_of(options),
            }
            progress = _on_ray(options, how) if options.engine == "ray" else _here(options, how)
    finally:
        if output is not None:
            output.close()
    print(
        f"{progress.captioned} captioned, {progress.failed} failed, {progress.skipped} done before; "
        f"{progress.rate:.1f} a second",
        file=sys.stderr,
    )
    return int(progress.failed > 0)


def _here(options: argparse.Namespace, how: dict[str, Any]) -> Progress:
    from ddcap.bulk.run import caption_files

    captioner = load_captioner(options)
    check_min_sure(captioner, options.min_sure)
    return caption_files(captioner, options.images, **how)


def _on_ray(options: argparse.Namespace, how: dict[str, Any]) -> Progress:
    from ddcap.bulk.ray_engine import caption_on_ray

    if options.min_sure is not None:  # the job itself looks at all else, and loads the model for it
        check_min_sure(load_captioner(options), options.min_sure)
    model = (options.model, options.device, options.precision, options.runtime)
    return caption_on_ray(model, options.images, workers=options.workers, **how)


def _expanded(images: Sequence[str]) -> list[str]:
    """What addresses name, and paths as they are."""
    from ddcap.bulk.remote import expand, is_remote

    return [name for image in images for name in (expand(image) if is_remote(image) else [image])]


def _output(options: argparse.Namespace) -> CaptionOutput | None:
    from ddcap.bulk.outputs import open_output
    from ddcap.bulk.tar_output import TarOutput

    out, overwrite = options.out, options.overwrite
    is_folder = (
        out is not None and Path(out).suffix != ".parquet" and (out.endswith("/") or Path(out).is_dir())
    )
    if options.with_pictures and not is_folder:
        raise DDCapError("--with-pictures: is for tars; give --out FOLDER/ beside it")
    if options.with_pictures and options.engine == "ray":
        raise DDCapError("--with-pictures: pictures do not come back over --engine ray; leave it out")
    if is_folder:
        return TarOutput(Path(out), options.images, overwrite=overwrite, with_pictures=options.with_pictures)
    return None if out is None else open_output(out, overwrite=overwrite)


def _beside(options: argparse.Namespace) -> list[Beside]:
    from ddcap.bulk.beside import SYNCHRONOUS, DescribedCopies, Sidecars
    from ddcap.bulk.remote import is_remote
    from ddcap.bulk.tar_input import is_tar

    if options.write is not None and options.copy_to is None:
        raise DDCapError("--write: is for copies of the pictures; give --copy-to FOLDER beside it")
    beside: list[Beside] = [] if options.sidecar is None else [Sidecars(options.sidecar)]
    if options.copy_to is not None:
        beside.append(DescribedCopies(Path(options.copy_to), options.images, options.write or SYNCHRONOUS))
    for image in options.images if beside else ():
        if is_tar(image) or is_remote(image):
            raise DDCapError(f"{image}: there nothing is written beside pictures; use --out")
    return beside


def _fields(text: str) -> list[str]:
    from ddcap.bulk.beside import FIELDS

    fields = [field.strip() for field in text.split(",")]
    for field in fields:
        if field not in FIELDS:
            raise argparse.ArgumentTypeError(f"{field!r} is none of {', '.join(FIELDS)}")
    return fields


def asked_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line asks of captions, as keyword arguments of `Captioner.caption_each`."""
    names = ("num", "seed", "batch_size", "concepts", "lengths")
    own = {name: getattr(options, name) for name in names}
    return {**own, **word_changes(options), **decoding_changes(options)}


def check_min_sure(captioner: Any, min_sure: float | None) -> None:
    """Refuse a threshold for a model that cannot say how sure it is."""
    if min_sure is not None and captioner.confidence is None:
        raise DDCapError(f"--min-sure {min_sure:g}: this model is not calibrated; see 'ddcap calibrate'")


@contextmanager
def _shown_progress(paths: Sequence[str], links: Any) -> Iterator[Callable[[Any], None]]:
    """A line on standard error, where that is a terminal: pictures done, how fast, how long it will take.

    The names are counted while the first pictures are captioned.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ddcap.bulk.remote import is_remote
    from ddcap.bulk.run import count_pictures

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("0 captioned", total=None)

        def count() -> None:
            if not any(map(is_remote, paths)):
                bar.update(task, total=count_pictures(paths, links))

        threading.Thread(target=count, daemon=True).start()
        yield lambda now: bar.update(
            task,
            completed=now.done,
            description=f"{now.captioned} captioned, {now.failed} failed, {now.skipped} done before, "
            f"{now.rate:.1f} a second",
        )
