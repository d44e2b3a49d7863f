"""Old names of modules: they still import, with a warning that gives the new name."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

NEW_NAMES = {
    "ddcap.bulk.beside": "ddcap.bulk.sidecars",
    "ddcap.decoding.ancestral": "ddcap.decoding.schedulers.ancestral",
    "ddcap.decoding.best_first": "ddcap.decoding.schedulers.best_first",
    "ddcap.decoding.blocks": "ddcap.decoding.schedulers.blocks",
    "ddcap.decoding.evidence": "ddcap.decoding.scoring",
    "ddcap.decoding.guidance": "ddcap.decoding.predictor",
    "ddcap.decoding.request": "ddcap.decoding.generate",
    "ddcap.decoding.scheduler": "ddcap.decoding.schedulers.interface",
    "ddcap.model.image_free": "ddcap.model.guidance",
    "ddcap.model.kinds": "ddcap.model.loading",
    "ddcap.model.persons": "ddcap.model.detector",
    "ddcap.model.release": "ddcap.model.convert",
    "ddcap.model.runtimes": "ddcap.model.loading",
    "ddcap.model.storage": "ddcap.model.checkpoint_files",
    "ddcap.model.twin": "ddcap.model.autoregressive",
    "ddcap.serve.pictures": "ddcap.serve.images",
}


class _RenamedModules(MetaPathFinder, Loader):
    """Fills a module of an old name with what the new one has."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Find the modules of `NEW_NAMES`, and nothing else."""
        return spec_from_loader(fullname, self) if fullname in NEW_NAMES else None

    def exec_module(self, module: ModuleType) -> None:
        """Warn once, then copy the names."""
        new = NEW_NAMES[module.__name__]
        warnings.warn(
            f"{module.__name__} is deprecated; import {new} instead", DeprecationWarning, stacklevel=2
        )
        names = vars(importlib.import_module(new))
        vars(module).update({name: value for name, value in names.items() if not name.startswith("__")})


def install() -> None:
    """Let Python find old names, after everything else."""
    if not any(isinstance(finder, _RenamedModules) for finder in sys.meta_path):
        sys.meta_path.append(_RenamedModules())
