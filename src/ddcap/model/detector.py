"""A detector beside the image encoder: an ONNX graph that reads the encoder's pixels and summary.

It finds persons. One that reads the summary also tells the concepts of the image, in place of the encoder's
tagger, since it knows what both have seen; older ones, `persons.onnx`, read pixels only. It is the same graph
for every runtime, so a model that runs with PyTorch needs ONNX Runtime for it. How it is made, quantised and
calibrated is in `recipes/default/second_tagger.py`; what decoding makes of it, in `decoding/predictor.py`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ddcap.data.concepts import ConceptTokens
from ddcap.data.persons import Persons
from ddcap.errors import CheckpointError
from ddcap.files import replacing, write_text
from ddcap.model.config import DETECTOR_LICENCE_NAME, DETECTOR_NAME, OLD_DETECTOR_NAME
from ddcap.model.onnx_session import session_options


def detector_path(folder: str | Path) -> Path:
    """The graph's file in a model's folder: of the old name if there is only that."""
    path, old = Path(folder) / DETECTOR_NAME, Path(folder) / OLD_DETECTOR_NAME
    return old if old.exists() and not path.exists() else path


class Detector:
    """Finds persons in images, and refines the concepts that a tagger sees there.

    Args:
        content: of the graph's file.
        threads: of one call; None takes all cores.
        source: where the graph is from, for messages.

    Raises:
        CheckpointError: if it is no such graph.
    """

    CONCEPTS: ClassVar[tuple[str, ...]] = ("ids", "confidences")
    PERSONS: ClassVar[tuple[str, ...]] = ("probability", "evidence", "count", "place")
    OUTPUTS: ClassVar[tuple[str, ...]] = (*CONCEPTS, *PERSONS)

    def __init__(self, content: bytes, threads: int | None = None, source: str = DETECTOR_NAME) -> None:
        self.content, self.threads, self.source = content, threads, source

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None) -> Detector:
        """Read the graph from a model's folder.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        path = detector_path(folder)
        try:
            content = path.read_bytes()
        except OSError:
            raise CheckpointError(
                f"{path}: no such file; a model with a detector needs it, copy the model again"
            ) from None
        detector = cls(content, threads, str(path))
        _ = detector.session  # a damaged file is noticed now
        return detector

    def save(self, folder: str | Path) -> None:
        """Write the graph, and the licence that it carries, into a model's folder."""
        with replacing(Path(folder) / DETECTOR_NAME) as temporary, temporary.open("wb") as file:
            file.write(self.content)
        self.save_licence(folder)

    def save_licence(self, folder: str | Path) -> None:
        """Write where the graph is from, and its licence."""
        write_text(Path(folder) / DETECTOR_LICENCE_NAME, f"{self.origin}\n\n{self.licence}")

    def __deepcopy__(self, memo: Any) -> Detector:
        """Itself: it never changes."""
        return self

    def __reduce__(self) -> tuple[type[Detector], tuple[bytes, int | None, str]]:
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
        if not {*self.PERSONS} <= {one.name for one in session.get_outputs()}:
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

    @cached_property
    def tells_concepts(self) -> bool:
        """True if it reads the summary, and tells concepts."""
        return "summary" in {one.name for one in self.session.get_inputs()}

    def __call__(self, pixels: np.ndarray, summary: np.ndarray) -> tuple[Persons, ConceptTokens | None]:
        """Look at images.

        Args:
            pixels: (I, 3, H, W) of the image encoder.
            summary: (I, E) likewise, the tagger's evidence.

        Returns:
            The images' persons, and their concepts; None of a graph that does not tell them.
        """
        given = {"pixels": np.asarray(pixels), "summary": np.asarray(summary)}
        tells = self.tells_concepts
        names = self.OUTPUTS if tells else self.PERSONS
        found = self.session.run([*names], given if tells else {"pixels": given["pixels"]})
        persons = Persons(*found[-len(self.PERSONS) :])
        return persons, ConceptTokens(*found[: len(self.CONCEPTS)]) if tells else None
