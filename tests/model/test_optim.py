"""Adam's two forms, schedules, gradient norm, skipped steps, EMA. I-numbers: docs/algorithm.md."""

import copy
import math

import pytest
import torch
from torch import nn

from tercet.model.optim import (
    EMA,
    StepGuard,
    adam,
    clip_gradients,
    cosine,
    linear,
    set_lr,
    warmup,
)
from tercet.records import RunFailed


def parameter(*values: float, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def model_with(*values: float, dtype: torch.dtype = torch.float64) -> nn.Module:
    model = nn.Module()
    model.weight = parameter(*values, dtype=dtype)
    return model


def step_size(style: str, beta2: float, gradient: float = 1e-4) -> float:
    p = parameter(0.0)
    optimizer = adam([p], lr=1.0, style=style, betas=(0.9, beta2), eps=1e-5)  # type: ignore[arg-type]
    p.grad = torch.full_like(p, gradient)
    optimizer.step()
    return -p.item()


@pytest.mark.parametrize(
    ("style", "beta2", "size"),
    [
        ("torch", 0.999, 0.909091),
        ("torch", 0.95, 0.909091),
        ("tf", 0.999, 0.240253),
        ("tf", 0.95, 0.690983),
    ],
)
def test_first_adam_step_worked_numbers(style: str, beta2: float, size: float) -> None:
    assert step_size(style, beta2) == pytest.approx(size, abs=1e-6)


@pytest.mark.parametrize("style", ["torch", "tf"])
def test_adam_follows_its_formula_over_steps(style: str) -> None:
    lr, b1, b2, eps = 0.01, 0.9, 0.95, 1e-2
    p, theta, m, v = parameter(1.0), 1.0, 0.0, 0.0
    optimizer = adam([p], lr=lr, style=style, eps=eps)  # type: ignore[arg-type]
    for t, g in enumerate([0.3, -0.02, 0.01, 0.5], start=1):
        p.grad = torch.full_like(p, g)
        optimizer.step()
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        if style == "torch":
            theta -= lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
        else:
            theta -= lr * math.sqrt(1 - b2**t) / (1 - b1**t) * m / (math.sqrt(v) + eps)
        assert p.item() == pytest.approx(theta, abs=1e-14)


def test_tf_style_resumes_where_it_stopped() -> None:
    def run(p: nn.Parameter, optimizer: torch.optim.Optimizer, gradients: list[float]) -> float:
        for g in gradients:
            p.grad = torch.full_like(p, g)
            optimizer.step()
        return p.item()

    p = parameter(1.0)
    optimizer = adam([p], lr=0.1, style="tf", eps=1e-2)
    run(p, optimizer, [0.3, 0.1])
    q = nn.Parameter(p.detach().clone())
    resumed = adam([q], lr=0.1, style="tf", eps=1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert run(q, resumed, [0.2, -0.4]) == run(p, optimizer, [0.2, -0.4])


def test_frozen_parameters_are_not_in_the_optimizer_I10() -> None:
    frozen, trained = parameter(1.0).requires_grad_(False), parameter(1.0)
    optimizer = adam([frozen, trained], lr=0.1, weight_decay=0.5)
    assert optimizer.param_groups[0]["params"] == [trained]


def test_weight_decay_is_decoupled() -> None:
    p = parameter(2.0)
    optimizer = adam([p], lr=0.1, weight_decay=0.5)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert p.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))


def test_set_lr_reaches_the_step() -> None:
    p = parameter(0.0)
    optimizer = adam([p], lr=1.0)
    set_lr(optimizer, 0.25)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert p.item() == pytest.approx(-0.25, abs=1e-7)


# --- schedules ----------------------------------------------------------------------------------


def test_cosine_at_start_middle_and_end_I12() -> None:
    assert [cosine(s, 200) for s in (0, 100, 200)] == pytest.approx([1, 0.55, 0.1], abs=1e-15)
    assert cosine(50, 200) == pytest.approx(0.1 + 0.45 * (1 + math.sqrt(0.5)))
    assert cosine(300, 200) == pytest.approx(0.1)


def test_cosine_with_linear_warm_up_and_other_floor() -> None:
    got = [cosine(s, 13, floor=0.0, warmup=3) for s in (0, 1, 2, 3, 8, 13)]
    assert got == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5, 0.0], abs=1e-15)


def test_warm_up_of_ten_iterations_I42() -> None:
    expected = [0.1, 0.19, 0.28, 0.37, 0.46, 0.55, 0.64, 0.73, 0.82, 0.91, 1.0, 1.0]
    assert [warmup(i) for i in range(12)] == pytest.approx(expected)
    assert warmup(0, n=0) == 1


def test_linear_decay_ends_at_zero() -> None:
    assert [linear(s, 4) for s in (0, 1, 4, 5)] == [1, 0.75, 0, 0]


# --- gradient norm, guard -----------------------------------------------------------------------


def test_gradients_are_scaled_to_the_global_norm() -> None:
    a, b, without = parameter(0.0), parameter(0.0), parameter(0.0)
    a.grad, b.grad = torch.tensor([3.0]).double(), torch.tensor([4.0]).double()
    assert clip_gradients([a, b, without], max_norm=1.0) == 5
    assert (a.grad.item(), b.grad.item()) == pytest.approx((0.6, 0.8), abs=1e-6)


def test_small_gradients_and_no_limit_are_left_alone() -> None:
    p = parameter(0.0)
    p.grad = torch.tensor([3.0]).double()
    assert clip_gradients([p], max_norm=10.0) == 3 and p.grad.item() == 3
    assert clip_gradients([p], max_norm=None) == 3 and p.grad.item() == 3
    assert clip_gradients([parameter(0.0)]) == 0


def test_a_norm_that_is_not_finite_leaves_the_gradients() -> None:
    a, b = parameter(0.0), parameter(0.0)
    a.grad, b.grad = torch.tensor([math.inf]).double(), torch.tensor([4.0]).double()
    assert clip_gradients([a, b]) == math.inf and b.grad.item() == 4


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_a_broken_step_keeps_weights_and_optimizer_state(loss: float, norm: float) -> None:
    p, guard = parameter(1.0), StepGuard()
    optimizer = adam([p], lr=0.1)
    p.grad = torch.ones_like(p)
    assert guard.step(optimizer, 0.5, 1.0)
    weight, moment = p.item(), optimizer.state[p]["exp_avg"].item()
    p.grad = torch.full_like(p, math.nan)
    assert not guard.step(optimizer, torch.tensor(loss), norm)
    assert (p.item(), optimizer.state[p]["exp_avg"].item()) == (weight, moment)
    assert optimizer.state[p]["step"] == 1
    assert (guard.skipped, guard.in_a_row) == (1, 1)


def test_three_broken_steps_in_a_row_abort() -> None:
    p, guard = parameter(1.0), StepGuard()
    optimizer = adam([p], lr=0.1)
    p.grad = torch.ones_like(p)
    for loss in (math.nan, math.nan, 1.0, math.nan, math.nan):
        assert guard.step(optimizer, loss, 1.0) == (loss == 1.0)
    with pytest.raises(RunFailed, match="3 steps in a row"):
        guard.step(optimizer, math.nan, 1.0)
    assert guard.skipped == 5


# --- EMA ----------------------------------------------------------------------------------------


def test_average_with_constant_weights_I41() -> None:
    model = model_with(1.0, -2.0)
    ema = EMA(model)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([3.0, 0.5]))
    for _ in range(50):
        ema.update(model)
    theta, start = torch.tensor([3.0, 0.5]).double(), torch.tensor([1.0, -2.0]).double()
    expected = theta + 0.992**50 * (start - theta)
    torch.testing.assert_close(ema.average["weight"], expected, rtol=0, atol=1e-12)


def test_half_life_is_86_updates_I41() -> None:
    assert math.log(0.5) / math.log(EMA(nn.Linear(1, 1)).decay) == pytest.approx(86.3, abs=0.05)


def test_buffers_of_half_precision_weights_are_float32() -> None:
    model = model_with(1.0, dtype=torch.bfloat16)
    ema = EMA(model, decay=0.5)
    assert ema.average["weight"].dtype == torch.float32
    with torch.no_grad():
        model.weight += 2**-7  # the smallest step of bfloat16 at 1
    ema.update(model)
    assert ema.average["weight"].item() == 1 + 2**-8


def test_model_holds_the_average_only_inside_the_with() -> None:
    model = model_with(1.0)
    ema = EMA(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
    ema.update(model)
    with pytest.raises(KeyError), ema.applied(model):
        assert model.weight.item() == 2
        raise KeyError
    assert model.weight.item() == 3 and ema.average["weight"].item() == 2


def test_frozen_weights_are_not_averaged_and_state_is_restored() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    ema = EMA(model)
    assert list(ema.state_dict()) == ["weight"]
    other = EMA(nn.Linear(2, 1))
    with pytest.raises(AssertionError):
        other.load_state_dict(ema.state_dict())
    restored = EMA(model)
    with torch.no_grad():
        model.weight.zero_()
    ema.update(model)
    restored.load_state_dict(ema.state_dict())
    assert torch.equal(restored.average["weight"], ema.average["weight"])
    assert restored.average["weight"].data_ptr() != ema.average["weight"].data_ptr()
