"""A step whose gradient is not finite is not taken; several in a row end the training."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

from ddcap.errors import TrainingError

logger = logging.getLogger("ddcap")

MOST_IN_A_ROW = 3


class DivergenceGuard:
    """Counts steps that were not taken.

    Attributes:
        skipped: steps left out since the start.
        in_a_row: steps left out since the last one that was taken.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.in_a_row = 0

    def allows(self, step: int, gradient_norm: Tensor, image_ids: Sequence[str]) -> bool:
        """Whether the step may be taken.

        The norm is that of all processes' gradients together, so all of them decide the same.

        Args:
            step: its number.
            gradient_norm: scalar, before clipping.
            image_ids: pictures of the step, to find the one that did it.

        Raises:
            TrainingError: at the last of MOST_IN_A_ROW steps with a norm that is no finite number.
        """
        if bool(gradient_norm.isfinite()):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        shown = ", ".join(image_ids[:8]) + (", ..." if len(image_ids) > 8 else "")
        if self.in_a_row == MOST_IN_A_ROW:
            raise TrainingError(
                f"step {step}: the gradient is not finite for the {MOST_IN_A_ROW}rd time in a row (pictures "
                f"{shown}); look at these pictures, or start another run with a lower training.learning_rate "
                "(model.init=... goes on from this one's best model)"
            )
        logger.warning("step %d: left out, its gradient is not finite (pictures %s)", step, shown)
        return False
