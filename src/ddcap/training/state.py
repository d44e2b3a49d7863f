"""The state of a training: weights, moving average, optimizer; whole on every process, or spread."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ddcap.model.checkpoint_files import StoredModel
from ddcap.model.encoders import ImageEncoder
from ddcap.model.layers import RecomputingBlocks
from ddcap.model.loading import TorchModel
from ddcap.recipe import TrainingSettings
from ddcap.training.checkpoint import Checkpoint, Progress
from ddcap.training.loss import Objective

if TYPE_CHECKING:
    from accelerate import Accelerator


# AdamW parameter groups, and the learning rate as a pure function of the step.


def build_optimizer(model: StoredModel, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over everything that trains; no weight decay on 1-d parameters, the encoder at its own rate.

    Every group carries `rate`, the factor its learning rate has to `learning_rate_at`.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = settings.encoder_rate if name.startswith("encoder.") else 1.0
        decay = 0.0 if parameter.ndim < 2 else settings.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "rate": rate, "weight_decay": decay, "lr": settings.learning_rate * rate}
            for (rate, decay), parameters in groups.items()
        ],
        betas=settings.betas,
        fused=True,
    )


def learning_rate_at(
    step: int,
    total_steps: int,
    warmup_steps: int,
    peak: float,
    schedule: Literal["cosine", "constant"] = "cosine",
) -> float:
    """Linear warm-up to `peak`, then a cosine to 0, or `peak` for good.

    Args:
        step: from 0; step 0 already learns.
        total_steps: length of the training.
        warmup_steps: length of the warm-up.
        peak: highest rate.
        schedule: what follows the warm-up.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group `learning_rate` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]


# torch.compile, block by block: one block is compiled, all that look like it share the result.


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the blocks of the denoiser (or decoder) and of a CLIP, in place; weights keep their names.

    Captions are unequally long, so that the denoiser's shapes change from step to step: it is compiled for
    all of them at once. Images are not.

    Args:
        model: of either kind.
        backend: of `torch.compile`.
    """
    for module in model.modules():
        if isinstance(module, RecomputingBlocks):
            for block in module.blocks:
                block.compile(dynamic=True, backend=backend)
        elif isinstance(module, ImageEncoder):
            for layer in module.layers:
                layer.compile(backend=backend)


# Weights, gradients and optimizer spread over the processes (FSDP2), for models too large to be on each. What
# leaves a training (checkpoints, the best model) is whole, so that it does not depend on how it was made.


def shard(root: nn.Module, model: TorchModel, mesh: DeviceMesh) -> None:
    """Spread `model` over the processes of `mesh`, in place; only `root`, which holds it, may be called then.

    Every block is a group that is gathered while it computes. So is every projection of the image to keys and
    values, which is computed ahead of its block; all else stays gathered from forward to backward.
    """
    # that of the keys and values does; nothing here changes it in place, which is what the warning is about
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    for (
        parameter
    ) in model.parameters():  # EfficientNet's are laid out with channels last, which FSDP2 refuses
        parameter.data = parameter.data.contiguous()
    for module in model.modules():
        if isinstance(module, RecomputingBlocks):
            for block in module.blocks:
                fully_shard(block.cross_attention.key_value, mesh=mesh)  # type: ignore[union-attr, arg-type]
                fully_shard(block, mesh=mesh)
        elif isinstance(module, ImageEncoder):
            for layer in module.layers:
                fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh)


def exchange_gradients(root: nn.Module, enabled: bool) -> None:
    """Switch the exchange of gradients between processes on or off for the next backward pass."""
    assert isinstance(root, FSDPModule)
    root.set_requires_gradient_sync(enabled)


def gather(state: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Whole tensors from spread ones, on the CPU. All have to ask; one without `keep` gets nothing."""
    whole = {}
    for name, value in state.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            whole[name] = full.detach().cpu()
    return whole


def gather_optimizer(state: dict[str, Any], *, keep: bool = True) -> dict[str, Any]:
    """An optimizer's state dict with whole tensors; see `gather`."""
    whole = {key: gather(values, keep=keep) for key, values in state["state"].items()}
    return {**state, "state": whole}


def scatter_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state dict with whole tensors to one with this process's shares of them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def share(value: Any, parameter: Tensor) -> Any:
        if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
            return value  # the count of steps is a scalar
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

    shared = {
        key: {name: share(value, parameters[key]) for name, value in values.items()}
        for key, values in state["state"].items()
    }
    return {**state, "state": shared}


# The moving average of the weights. torch's own (swa_utils.AveragedModel) walks all modules at every step, a
# frozen encoder's too: for a small denoiser that takes longer than the rest of the step does on a GPU.


class MovingAverage:
    """An exponential moving average of the weights that train; the first update copies them.

    Args:
        model: copied, and no longer looked at.
        decay: share of the average that an update keeps.

    Attributes:
        model: with the averaged weights. Call `refresh` before it is used.
        updates: how many it had.
    """

    def __init__(self, model: TorchModel, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.updates = 0
        self._decay = decay
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def update(self, trained: TorchModel) -> None:
        """Draw the average towards the weights of `trained`, always the same model, on the same device."""
        if self._pairs is None:
            both = zip(self.model.parameters(), trained.parameters(), strict=True)
            pairs = [(mine, new) for mine, new in both if new.requires_grad]
            self._pairs = [mine for mine, _ in pairs], [new for _, new in pairs]
        torch._foreach_lerp_(*self._pairs, 1 - self._decay if self.updates else 1.0)
        self.updates += 1

    @torch.no_grad()
    def refresh(self, trained: TorchModel) -> TorchModel:
        """The averaged model, with the buffers of `trained`, which are no weights and are not averaged."""
        for mine, new in zip(self.model.buffers(), trained.buffers(), strict=True):
            mine.copy_(new)
        return self.model


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
        self._average = MovingAverage(model, decay) if decay else None
        self._whole = copy.deepcopy(model).eval() if self._spread else None
        if checkpoint is not None:
            model.load_stored_state(checkpoint.weights)
            if self._average is not None:
                self._average.model.load_stored_state(checkpoint.average)
                self._average.updates = checkpoint.progress.step
        objective.to(self._device)
        if self._average is not None:
            self._average.model.to(self._device)
        if settings.compile:
            compile_blocks(model)
        if self._spread:
            mesh = init_device_mesh(self._device.type, (accelerator.num_processes,))
            shard(objective, model, mesh)
            if self._average is not None:
                shard(self._average.model, self._average.model, mesh)
        optimizer = build_optimizer(model, settings)
        if checkpoint is not None:
            optimizer.load_state_dict(scatter_optimizer(checkpoint.optimizer, optimizer))
        self.wrapped: nn.Module = objective
        if self._spread:
            self.optimizer = accelerator.prepare(optimizer)
        else:
            self.wrapped, self.optimizer = accelerator.prepare(objective, optimizer)
        # all modules would be walked at every step otherwise, a frozen encoder's too
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def train(self) -> None:
        """Go back to training after a validation; without one between, nothing has to be done."""
        if not self._model.training:
            self.wrapped.train()

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
        norm = nn.utils.clip_grad_norm_(self._trained, largest or float("inf"))
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def step(self, *, is_taken: bool) -> None:
        """Change the weights by their gradients, if that is to be; forget the gradients."""
        if is_taken:
            self.optimizer.step()
            if self._average is not None:
                self._average.update(self._model)
        self.optimizer.zero_grad(set_to_none=True)

    def to_checkpoint(self, progress: Progress) -> Checkpoint:
        """Everything needed to go on, whole. All processes have to ask; what the main one gets counts."""
        optimizer, weights = self.optimizer.state_dict(), self._model.stored_state()
        average = None if self._average is None else self._average.refresh(self._model).stored_state()
        if self._spread:
            optimizer = gather_optimizer(optimizer, keep=self._keeps)
            weights = gather(weights, keep=self._keeps)
            average = None if average is None else gather(average, keep=self._keeps)
        return Checkpoint(progress, weights, weights if average is None else average, optimizer)

    @contextlib.contextmanager
    def shipped_model(self) -> Iterator[TorchModel]:
        """The model that is validated and kept, whole: with the moving average if there is one.

        All processes have to ask.
        """
        latest = self._model if self._average is None else self._average.refresh(self._model)
        if self._whole is None:
            yield latest.eval()
            return
        self._whole.load_state_dict(gather(latest.state_dict()))
        yield self._whole.to(self._device)
        self._whole.to("cpu")  # its place is needed in training
