"""Progress bars on standard error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def progress_bar(items: Iterable[Any], total: int, what: str = "images") -> Iterable[Any]:
    """A bar on standard error where that is a terminal and there is something to wait for."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if total < 8 or not console.is_terminal:
        return items
    return track(items, description=what, total=total, console=console, transient=True)
