"""What a training changes: weights, their moving average, optimizer; whole on every process, or spread."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ddcap.model.kinds import CaptioningModel
from ddcap.objective.module import Objective
from ddcap.recipe import TrainingSettings
from ddcap.training.checkpoint import Checkpoint, Progress
from ddcap.training.compiling import compile_blocks
from ddcap.training.optimizer import build_optimizer
from ddcap.training.sharding import exchange_gradients, gather, gather_optimizer, scatter_optimizer, shard

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainingState:
    """A model in training.

    Args:
        objective: with the model to train, on the CPU.
        settings: the recipe's training section.
        accelerator: the processes.
        checkpoint: to go on from.

    Attributes:
        wrapped: the objective, as the processes share it.
        optimizer: of its weights.

    Raises:
        RuntimeError: if the checkpoint is of another model.
        ValueError: the same, told by the optimizer.
    """

    def __init__(
        self,
        objective: Objective,
        settings: TrainingSettings,
        accelerator: Accelerator,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._model = model = objective.model
        self._device = accelerator.device
        self._keeps = accelerator.is_main_process  # what is gathered from all processes
        self._spread = settings.fsdp and accelerator.num_processes > 1
        decay = settings.ema_decay
        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
        self._whole = copy.deepcopy(model).eval() if self._spread else None
        if checkpoint is not None:
            model.load_stored_state(checkpoint.weights)
            if self._average is not None:
                _inside(self._average).load_stored_state(checkpoint.average)
                self._average.n_averaged.fill_(checkpoint.progress.step)
        objective.to(self._device)
        if self._average is not None:
            self._average.to(self._device).eval()
        if settings.compile:
            compile_blocks(model)
        if self._spread:
            mesh = init_device_mesh(self._device.type, (accelerator.num_processes,))
            shard(objective, model, mesh)
            if self._average is not None:
                shard(self._average.module, _inside(self._average), mesh)
        optimizer = build_optimizer(model, settings)
        if checkpoint is not None:
            optimizer.load_state_dict(scatter_optimizer(checkpoint.optimizer, optimizer))
        self.wrapped: nn.Module = objective
        if self._spread:
            self.optimizer = accelerator.prepare(optimizer)
        else:
            self.wrapped, self.optimizer = accelerator.prepare(objective, optimizer)

    def exchange_gradients(self, *, enabled: bool) -> contextlib.AbstractContextManager[None]:
        """The context of a forward and backward pass whose gradients the processes share, or keep."""
        if self._spread:
            exchange_gradients(self.wrapped, enabled)
        elif not enabled and isinstance(self.wrapped, nn.parallel.DistributedDataParallel):
            manager: contextlib.AbstractContextManager[None] = self.wrapped.no_sync()
            return manager
        return contextlib.nullcontext()

    def clip_gradients(self, largest: float) -> Tensor:
        """The norm of all gradients (scalar), which are clipped to `largest` unless that is 0."""
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), largest or float("inf"))
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def step(self, *, is_taken: bool) -> None:
        """Change the weights by their gradients, if that is to be; forget the gradients."""
        if is_taken:
            self.optimizer.step()
            if self._average is not None:
                self._average.update_parameters(self._model)
        self.optimizer.zero_grad(set_to_none=True)

    def to_checkpoint(self, progress: Progress) -> Checkpoint:
        """Everything needed to go on, whole. All processes have to ask; what the main one gets counts."""
        optimizer, weights = self.optimizer.state_dict(), self._model.stored_state()
        average = None if self._average is None else _inside(self._average).stored_state()
        if self._spread:
            optimizer = gather_optimizer(optimizer, keep=self._keeps)
            weights = gather(weights, keep=self._keeps)
            average = None if average is None else gather(average, keep=self._keeps)
        return Checkpoint(progress, weights, weights if average is None else average, optimizer)

    @contextlib.contextmanager
    def shipped_model(self) -> Iterator[CaptioningModel]:
        """The model that is validated and kept, whole: with the moving average if there is one.

        All processes have to ask.
        """
        latest = self._model if self._average is None else _inside(self._average)
        if self._whole is None:
            yield latest.eval()
            return
        self._whole.load_state_dict(gather(latest.state_dict()))
        yield self._whole.to(self._device)
        self._whole.to("cpu")  # its place is needed in training


def _inside(average: AveragedModel) -> CaptioningModel:
    model = average.module
    assert isinstance(model, CaptioningModel)
    return model
