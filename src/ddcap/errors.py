"""The error types a user can meet: one line that names the thing, the reason and the remedy."""


class DDCapError(ValueError):
    """A mistake in what the user gave us; the command line prints its message and no traceback."""


class ImageError(DDCapError):
    """An image that cannot be captioned: missing, unreadable, truncated, too large or too small."""


class DataError(DDCapError):
    """A data set file that is missing or does not have the layout it should have."""


class RecipeError(DDCapError):
    """A setting that is unknown, of the wrong type, or at odds with another one."""


class CheckpointError(DDCapError):
    """A model or checkpoint that is missing, damaged, or made for another configuration."""


class TrainingError(DDCapError):
    """A training that cannot go on: it diverged, or its checkpoint cannot be written."""


class TrainingInterruptedError(DDCapError):
    """A training that a signal ended, after it was saved; `status` is the exit status that says so."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class MissingExtraError(DDCapError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs packages that are not installed; run: pip install 'ddcap[{extra}]'"
        )
