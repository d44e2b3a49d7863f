"""`ddcap caption` for large jobs: captions into files, beside images, or into copies of images."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcap.commands.arguments import decoding_changes, load_captioner, named_model, tell, word_changes
from ddcap.errors import DDCapError
from ddcap.values import as_whole

if TYPE_CHECKING:
    from ddcap.bulk.output import CaptionOutput
    from ddcap.bulk.run import Progress
    from ddcap.bulk.sidecars import Beside
    from ddcap.captioner import Captioner


def bulk_arguments(caption: argparse.ArgumentParser) -> None:
    """Add the options of large jobs to `ddcap caption`."""
    into = caption.add_argument_group(
        "many images", "An interrupted job resumes where it stopped: run it again."
    )
    into.add_argument(
        "--out",
        metavar="FILE",
        help="write captions to a .jsonl, .csv or .parquet file, and continue if it exists; for tar files, "
        "FOLDER/ writes one tar per input tar, with KEY.txt and KEY.json",
    )
    into.add_argument(
        "--with-pictures", action="store_true", help="with --out FOLDER/: also write the images, as KEY.jpg"
    )
    into.add_argument(
        "--sidecar",
        choices=["txt", "xmp"],
        help="write each caption beside its image, as photo.txt or photo.jpg.xmp",
    )
    into.add_argument(
        "--copy-to",
        metavar="FOLDER",
        help="copy the images to FOLDER and write the caption into each copy's metadata",
    )
    into.add_argument(
        "--write",
        type=_fields,
        metavar="FIELDS",
        help="with --copy-to: write these metadata fields, separated by commas: exif, iptc, xmp "
        "(descriptions), alt (alternative text in XMP) (default: exif,iptc,xmp)",
    )
    into.add_argument(
        "--overwrite",
        action="store_true",
        help="start over and replace existing output files, sidecars and copies; in XMP files of other "
        "programs, only the description",
    )
    into.add_argument(
        "--links",
        choices=["skip", "follow", "refuse"],
        default="skip",
        help="skip symbolic links inside folders, follow them, or report each as an error (default: skip)",
    )

    into.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="run on this machine, or on a Ray cluster (RAY_ADDRESS, or one started here); ray also reads "
        "s3:// and gs:// (default: local)",
    )
    into.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="caption with N processes; with --engine ray, with N actors (default: one per CPU, or per GPU "
        "with --device cuda; without Ray one process on a GPU, and fewer where memory is short)",
    )


def is_bulk(options: argparse.Namespace) -> bool:
    """Return True if captions go into files. If not, refuse the options that need it."""
    from ddcap.bulk.remote import is_remote
    from ddcap.bulk.tar_input import is_tar

    is_file = options.out is not None or options.sidecar is not None or options.copy_to is not None
    for image in options.images:
        if is_tar(image) and not is_file:
            raise DDCapError(
                f"{image}: a tar file needs an output file; add --out, for example --out captions.jsonl"
            )
        if is_remote(image) and options.engine != "ray":
            raise DDCapError(f"{image}: only --engine ray reads URLs; add it, or give a path on this machine")
    if options.engine == "ray" and not is_file:
        raise DDCapError(
            "--engine ray: writes captions to files only; add --out, for example --out captions.jsonl"
        )
    if options.workers is not None:
        as_whole("--workers", options.workers, 1)
        if not is_file:
            raise DDCapError("--workers: works with files only; add --out, for example --out captions.jsonl")
    return is_file


def caption_into(options: argparse.Namespace) -> int:
    """Captions of many images into files."""
    if options.engine == "ray":
        options.images = _expanded(options.images)
    beside, output = _beside(options), _output(options)
    try:
        with _shown_progress(options.images, options.links) as (show, tell):
            how = {
                "output": output,
                "beside": beside,
                "overwrite": options.overwrite,
                "links": options.links,
                "min_sure": options.min_sure,
                "on_progress": show,
                "on_failure": tell,
                **asked_of(options),
            }
            progress = _on_ray(options, how) if options.engine == "ray" else _here(options, how)
    finally:
        if output is not None:
            output.close()
    kept = f", {progress.kept} sidecars or copies left as they were" if progress.kept else ""
    print(
        f"{progress.captioned} captioned, {progress.failed} failed, {progress.skipped} already done{kept}; "
        f"{progress.rate:.1f} per second",
        file=sys.stderr,
    )
    if progress.kept:
        print("Sidecars and copies that exist are not replaced; --overwrite replaces them.", file=sys.stderr)
    return int(progress.failed > 0)


def _here(options: argparse.Namespace, how: dict[str, Any]) -> Progress:
    from ddcap.bulk.run import caption_files
    from ddcap.bulk.workers import Workers, own_workers

    captioner = load_captioner(options)
    check_min_sure(captioner, options.min_sure)
    count = options.workers or own_workers(options.device)
    workers = Workers(named_model(options), count) if count > 1 else None
    tell_choice(captioner, options, count)
    model = {name: getattr(options, name) for name in ("model", "precision", "runtime")}
    return caption_files(captioner, options.images, workers=workers, model=model, **how)


def tell_choice(captioner: Captioner, options: argparse.Namespace, processes: int = 1) -> None:
    """Tell how the captioner runs, if that is asked for.

    Args:
        captioner: that was loaded by `options`.
        options: of the command.
        processes: number of them that caption.
    """
    if options.verbose:
        from ddcap.commands.verbose import describe_choice

        is_chosen = options.precision == "auto"
        for line in describe_choice(captioner, is_chosen=is_chosen, processes=processes):
            tell(line)


def _on_ray(options: argparse.Namespace, how: dict[str, Any]) -> Progress:
    from ddcap.bulk.ray_engine import caption_on_ray, on_driver

    if options.min_sure is not None:  # the job itself looks at all else, and loads the model for it
        check_min_sure(on_driver(named_model(options)), options.min_sure)
    if options.verbose:
        tell(
            "ddcap: Ray: each actor has a thread, and the runtime and precision that its own machine asks for"
        )
    return caption_on_ray(named_model(options), options.images, workers=options.workers, **how)


def _expanded(images: Sequence[str]) -> list[str]:
    """The files behind URLs; paths stay as they are."""
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
        raise DDCapError("--with-pictures: works with tar output only; add --out FOLDER/")
    if options.with_pictures and options.engine == "ray":
        raise DDCapError(
            "--with-pictures: does not work with --engine ray, which returns captions only; remove it"
        )
    if is_folder:
        return TarOutput(Path(out), options.images, overwrite=overwrite, with_pictures=options.with_pictures)
    return None if out is None else open_output(out, overwrite=overwrite)


def _beside(options: argparse.Namespace) -> list[Beside]:
    from ddcap.bulk.remote import is_remote
    from ddcap.bulk.sidecars import SYNCHRONOUS, DescribedCopies, Sidecars
    from ddcap.bulk.tar_input import is_tar

    if options.write is not None and options.copy_to is None:
        raise DDCapError("--write: works with copies of images only; add --copy-to FOLDER")
    beside: list[Beside] = [] if options.sidecar is None else [Sidecars(options.sidecar)]
    if options.copy_to is not None:
        beside.append(DescribedCopies(Path(options.copy_to), options.images, options.write or SYNCHRONOUS))
    for image in options.images if beside else ():
        if is_tar(image) or is_remote(image):
            raise DDCapError(f"{image}: --sidecar and --copy-to need image files on this machine; use --out")
    return beside


def _fields(text: str) -> list[str]:
    from ddcap.bulk.sidecars import FIELDS

    fields = [field.strip() for field in text.split(",")]
    for field in fields:
        if field not in FIELDS:
            raise argparse.ArgumentTypeError(f"{field!r} is not a metadata field; use {', '.join(FIELDS)}")
    return fields


def asked_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options for captions, as keyword arguments of `Captioner.caption_each`."""
    names = ("num", "seed", "batch_size", "concepts", "lengths")
    own = {name: getattr(options, name) for name in names}
    return {**own, **word_changes(options), **decoding_changes(options)}


def check_min_sure(captioner: Any, min_sure: float | None) -> None:
    """Refuse a threshold for a model that cannot say how sure it is."""
    if min_sure is not None and captioner.confidence is None:
        raise DDCapError(
            f"--min-sure {min_sure:g}: this model is not calibrated; run 'ddcap calibrate' first"
        )


@contextmanager
def _shown_progress(
    paths: Sequence[str], links: Any
) -> Iterator[tuple[Callable[[Any], None], Callable[[str], None]]]:
    """Show a line on standard error, if that is a terminal: images done, speed, time left.

    A thread counts the images while the first ones are captioned. Gives the functions that show the progress
    and a line about an image that failed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ddcap.bulk.names import printable
    from ddcap.bulk.remote import is_remote
    from ddcap.bulk.run import count_images

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None, lambda line: print(printable(line), file=sys.stderr)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("0 captioned", total=None)

        def count() -> None:
            if not any(map(is_remote, paths)):
                bar.update(task, total=count_images(paths, links))

        def show(now: Any) -> None:
            bar.update(
                task,
                completed=now.done + now.kept,
                description=f"{now.captioned} captioned, {now.failed} failed, {now.skipped} already done, "
                f"{now.rate:.1f} per second",
            )

        threading.Thread(target=count, daemon=True).start()
        yield show, lambda line: console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
