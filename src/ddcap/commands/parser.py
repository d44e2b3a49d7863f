"""The parser of a command's arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """Takes options before, between and after the arguments: `ddcap train R a=b --resume c=d`."""

    _is_second_try = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """See `argparse.ArgumentParser`; arguments that are left over are taken in a second try."""
        found: tuple[Any, list[str]] = super().parse_known_args(args, namespace)
        if self._is_second_try or namespace is not None or not found[1] or self._has_commands():
            return found
        self._is_second_try = True  # the method below calls this one
        try:
            return self.parse_known_intermixed_args(args)
        finally:
            self._is_second_try = False

    def _has_commands(self) -> bool:
        return any(action.nargs == argparse.PARSER for action in self._actions)
