"""Adam in two forms, learning-rate factors, the gradient norm, the moving average, skipped steps.

Factors multiply the peak learning rate: `set_lr(optimizer, peak * cosine(step, total))`.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from tercet.records import RunFailed


def adam(
    params: Iterable[nn.Parameter],
    lr: float,
    style: Literal["torch", "tf"] = "torch",
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam with decoupled weight decay over the trainable ones of `params`.

    style: where eps stands. "torch": m_hat / (sqrt(v_hat) + eps). "tf", the form of Ziegler 2019's
    code: sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), which takes smaller steps early.
    """
    assert style in ("torch", "tf"), style
    trainable = [p for p in params if p.requires_grad]
    # The fused kernel needs no temporary copies of the weights; elsewhere it changes the rounding.
    fused = bool(trainable) and all(p.is_cuda for p in trainable)
    optimizer = torch.optim.AdamW(
        trainable, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused
    )
    if style == "tf":

        def scale_eps(optimizer: Optimizer, *_: Any) -> None:
            # The tf form is the torch form with eps / sqrt(1 - b2^t) at step t.
            for group in optimizer.param_groups:
                # All parameters of a group step together; each number may lie on a GPU.
                states = (optimizer.state.get(p) for p in group["params"])
                done = next((int(state["step"]) for state in states if state), 0)
                group["eps"] = eps / math.sqrt(1 - group["betas"][1] ** (done + 1))

        optimizer.register_step_pre_hook(scale_eps)
    return optimizer


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def cosine(step: int, total: int, floor: float = 0.1, warmup: int = 0) -> float:
    """Cosine from 1 at step 0 to `floor` at `total` (InstructGPT C.1), after `warmup` linear steps.

    >>> [round(cosine(s, 100), 2) for s in (0, 50, 100)]
    [1.0, 0.55, 0.1]
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup(iteration: int, n: int = 10) -> float:
    """0.1, 0.19, ... 1 over the first `n` PPO iterations, counted from 0 (InstructGPT C.4)."""
    return 0.1 + 0.9 * min(iteration, n) / n if n else 1.0


def linear(step: int, total: int) -> float:
    """Linear decay from 1 at step 0 to 0 at `total` (Ziegler 2019, Stiennon 2020)."""
    return max(0.0, 1 - step / total)


def clip_gradients(params: Iterable[nn.Parameter], max_norm: float | None = 1.0) -> float:
    """Scale the gradients to a global L2 norm of at most `max_norm`; returns the norm before.

    Sharded gradients count whole, over all ranks. None only measures. A norm that is not finite is
    returned and the gradients are left as they are: `StepGuard` decides.
    """
    with_gradient = [p for p in params if p.grad is not None]
    if not with_gradient:
        return 0.0
    norm = nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    value = float(norm)  # the one time in a step that the CPU waits for the GPU
    if max_norm is not None and math.isfinite(value):
        nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm)
    return value


@dataclass
class StepGuard:
    """Takes an optimizer step only when loss and gradient norm are finite.

    A skipped step leaves weights and optimizer state as they were. The fields are the state that a
    checkpoint needs.
    """

    limit: int = 3
    skipped: int = 0
    in_a_row: int = 0

    def step(self, optimizer: Optimizer, loss: float | Tensor, norm: float) -> bool:
        """Whether the step was taken. Raises RunFailed when `limit` steps in a row were not.

        `loss` must be the one summed over all ranks, so that all ranks decide alike.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            optimizer.step()
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise RunFailed(
                f"{self.in_a_row} steps in a row had a loss or gradient norm that is not finite "
                f"(loss {float(loss)}, norm {norm}); lower the learning rate or check the data"
            )
        return False


class EMA:
    """Moving average of the trainable weights: ema <- decay * ema + (1 - decay) * weights.

    Starts at the weights given, without debiasing; buffers are at least float32, sharded like the
    weights.
    """

    def __init__(self, model: nn.Module, decay: float = 0.992) -> None:
        self.decay = decay
        self.average = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in model.named_parameters()
            if p.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step of the average; call it after each optimizer step."""
        parameters = dict(model.named_parameters())
        for name, average in self.average.items():
            average.mul_(self.decay).add_(parameters[name].to(average.dtype), alpha=1 - self.decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model holds the average inside the `with`, and exactly its own weights afterwards."""
        parameters = dict(model.named_parameters())
        own = {name: parameters[name].detach().clone() for name in self.average}
        self._copy(self.average, parameters)
        try:
            yield
        finally:
            self._copy(own, parameters)

    def load_into(self, model: nn.Module) -> None:
        """The model takes the average for good."""
        self._copy(self.average, dict(model.named_parameters()))

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        assert state.keys() == self.average.keys(), "the average of another model"
        self._copy(state, self.average)

    @staticmethod
    @torch.no_grad()
    def _copy(source: dict[str, Tensor], target: dict[str, Any]) -> None:
        for name, values in source.items():
            target[name].copy_(values)


@dataclass
class Learner:
    """A model in training: its optimizer, what guards its steps, the average of its weights.

    `state_dict` holds all of it that a resumed run needs.
    """

    model: Any
    optimizer: Optimizer
    ema: EMA | None = None
    guard: StepGuard = field(default_factory=StepGuard)

    def step(self, loss: float | Tensor, norm: float) -> None:
        """`StepGuard.step`; the average follows each step that was taken."""
        if self.guard.step(self.optimizer, loss, norm) and self.ema is not None:
            self.ema.update(self.model)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "guard": (self.guard.skipped, self.guard.in_a_row),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.guard.skipped, self.guard.in_a_row = state["guard"]
