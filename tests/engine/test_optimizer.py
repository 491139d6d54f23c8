"""The one-cycle optimiser against the published implementation's numbers, and against its formulas."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pcdet_ext.config import ConfigError
from pcdet_ext.conformance.cases.openpcdet_training import one_cycle
from pcdet_ext.conformance.golden import Case, run_case
from pcdet_ext.engine.optimizer import (
    OneCycle,
    build_optimizer,
    clip_gradients,
    restore_optimizer,
    set_schedule,
    trained_parameters,
)


@pytest.mark.parametrize("name", ["adam_onecycle", "adam_onecycle_betas"])
def test_published_training_is_reproduced(shared: Path, name: str) -> None:
    path = shared / "golden" / "openpcdet" / f"{name}.json"
    report = run_case(path, grads=True)
    assert report.status == "pass", report.line()
    case = Case.read(path)
    values = one_cycle(case, False)
    norms = [k for k in case.arrays if k.startswith("mid.grad_norm")]
    assert len(norms) == 40
    for key in norms:  # the gradients that the published optimiser forgets pile up in here
        assert float(values[key]) == pytest.approx(float(case.arrays[key]), rel=1e-6)


def test_cycle_meets_its_corners() -> None:
    settings = OneCycle(learning_rate=1e-2, div_factor=4, momentum=(0.9, 0.8), pct_start=0.25)
    assert settings.at(0, 100) == pytest.approx((2.5e-3, 0.9))
    assert settings.at(25, 100) == pytest.approx((1e-2, 0.8))
    assert settings.at(100, 100) == pytest.approx((2.5e-7, 0.9))
    halfway = settings.at(62, 99)  # (62 - 24) / (99 - 24) of the way down
    assert halfway[0] == pytest.approx(2.5e-7 + (1e-2 - 2.5e-7) * math.cos(math.pi * 38 / 75 / 2) ** 2)


@pytest.mark.parametrize("pct_start", [0.0, 1.0])
def test_cycle_with_one_phase(pct_start: float) -> None:
    settings = OneCycle(pct_start=pct_start)
    rates = [settings.at(step, 10)[0] for step in range(10)]
    assert rates == sorted(rates, reverse=pct_start == 0)
    assert max(rates) <= settings.learning_rate


def test_step_decays_first_and_then_follows_adam() -> None:
    parameter = nn.Parameter(torch.tensor([2.0, -3.0]))
    model = nn.Module()
    model.p = parameter
    settings = OneCycle(learning_rate=0.1, div_factor=1, weight_decay=0.5)
    optimizer = build_optimizer(model, settings)
    set_schedule(optimizer, 0.1, 0.9)
    parameter.grad = torch.tensor([1.0, -4.0])
    optimizer.step()
    decayed = torch.tensor([2.0, -3.0]) * (1 - 0.5 * 0.1)
    assert torch.allclose(parameter.detach(), decayed - 0.1 * torch.tensor([1.0, -1.0]), atol=1e-6)


def test_all_parameters_are_trained_unless_told_otherwise() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "norm": nn.BatchNorm1d(4)})
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    everything = {id(p) for p in model.parameters()}
    assert {id(p) for p in trained_parameters(model, "all")} == everything
    forgotten = [model.scale, model["attention"].in_proj_weight, model["attention"].in_proj_bias]
    assert {id(p) for p in trained_parameters(model, "published")} == everything - {id(p) for p in forgotten}


def test_shared_parameters_come_once() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    assert len(trained_parameters(nn.Sequential(first, second), "published")) == 3


def test_clipping() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients([a, b], 0) == pytest.approx(5)
    assert a.grad.item() == 3
    assert clip_gradients([a, b], 1) == pytest.approx(5)
    assert (a.grad.item(), b.grad.item()) == pytest.approx((0.6, 0.8), rel=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": 0}, {"pct_start": 1.5}, {"momentum": (0.9, 1.0)}, {"weight_decay": -1}]
)
def test_senseless_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OneCycle(**wrong)


def test_undecayed_parameters_keep_their_value_without_a_gradient() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(2, 2), "norm1": nn.LayerNorm(2)})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OneCycle(weight_decay=0.5, undecayed=("norm",)))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"linear.weight", "linear.bias"}
    with pytest.raises(ConfigError, match=r"train\.undecayed: no parameter of the model has 'bn' in its name"):
        build_optimizer(model, OneCycle(undecayed=("bn",)))


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        build_optimizer(nn.ReLU(), OneCycle())


def test_a_restored_optimizer_keeps_its_own_settings() -> None:
    def make(**settings: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, build_optimizer(model, OneCycle(**settings))

    model, before = make(weight_decay=0.5, beta2=0.9)
    model(torch.ones(4, 3)).sum().backward()
    before.step()
    _, after = make(weight_decay=0.25, beta2=0.95)
    restore_optimizer(after, before.state_dict())
    assert [(g["weight_decay"], g["betas"][1]) for g in after.param_groups] == [(0.25, 0.95)]
    moments = [[s["exp_avg"] for s in o.state.values()] for o in (before, after)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
