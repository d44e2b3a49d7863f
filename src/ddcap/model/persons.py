"""A detector of persons beside the image encoder: an ONNX graph that reads the encoder's pixels.

It is the same graph for every runtime, so a model that runs with PyTorch needs ONNX Runtime for it. How it is
made, quantised and calibrated is in `recipes/default/persons.py`; what decoding makes of it, in
`decoding/predictor.py`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ddcap.data.persons import Persons
from ddcap.errors import CheckpointError
from ddcap.files import replacing, write_text
from ddcap.model.config import PERSONS_LICENCE_NAME, PERSONS_NAME
from ddcap.model.onnx_session import session_options


class PersonDetector:
    """Finds persons in images.

    Args:
        content: of the graph's file.
        threads: of one call; None takes all cores.
        source: where the graph is from, for messages.

    Raises:
        CheckpointError: if it is no such graph.
    """

    OUTPUTS: ClassVar[tuple[str, ...]] = ("probability", "evidence", "count", "place")

    def __init__(self, content: bytes, threads: int | None = None, source: str = PERSONS_NAME) -> None:
        self.content, self.threads, self.source = content, threads, source

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None) -> PersonDetector:
        """Read `persons.onnx` from a model's folder.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        path = Path(folder) / PERSONS_NAME
        try:
            content = path.read_bytes()
        except OSError:
            raise CheckpointError(
                f"{path}: no such file; a model with a detector of persons needs it, copy the model again"
            ) from None
        detector = cls(content, threads, str(path))
        _ = detector.session  # a damaged file is noticed now
        return detector

    def save(self, folder: str | Path) -> None:
        """Write the graph, and the licence that it carries, into a model's folder."""
        with replacing(Path(folder) / PERSONS_NAME) as temporary, temporary.open("wb") as file:
            file.write(self.content)
        self.save_licence(folder)

    def save_licence(self, folder: str | Path) -> None:
        """Write where the graph is from, and its licence."""
        write_text(Path(folder) / PERSONS_LICENCE_NAME, f"{self.origin}\n\n{self.licence}")

    def __deepcopy__(self, memo: Any) -> PersonDetector:
        """Itself: it never changes."""
        return self

    def __reduce__(self) -> tuple[type[PersonDetector], tuple[bytes, int | None, str]]:
        """Made again where it is unpickled; sessions cannot be sent to other processes."""
        return type(self), (self.content, self.threads, self.source)

    @cached_property
    def session(self) -> Any:
        """ONNX Runtime at work on the graph."""
        import onnxruntime

        options = session_options(self.threads)
        try:
            session = onnxruntime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])
        except (
            Exception
        ) as error:  # ONNX Runtime has an exception for each of its states, under no common name
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{self.source}: damaged ({reason}); copy the model again") from None
        if not {*self.OUTPUTS} <= {one.name for one in session.get_outputs()}:
            raise CheckpointError(f"{self.source}: is no detector of persons; copy the model again")
        return session

    @property
    def origin(self) -> str:
        """The origin of the detector, in a line."""
        return str(self._notes.get("source", "unknown source"))

    @property
    def licence(self) -> str:
        """The text of its licence."""
        return str(self._notes.get("licence", ""))

    @property
    def _notes(self) -> dict[str, str]:
        notes: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        return notes

    def __call__(self, pixels: np.ndarray) -> Persons:
        """Persons in images, as pixels (I, 3, H, W) of the image encoder."""
        return Persons(*self.session.run([*self.OUTPUTS], {"pixels": np.asarray(pixels)}))
