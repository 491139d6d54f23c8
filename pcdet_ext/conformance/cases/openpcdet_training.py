"""Cases of the published training loop: the one-cycle optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from pcdet_ext.conformance.golden import Case, Value, Values, every_setting, runs
from pcdet_ext.engine.optimizer import (
    OneCycle,
    build_optimizer,
    clip_gradients,
    set_schedule,
    trained_parameters,
)
from pcdet_ext.interop.settings import skip


def _model(case: Case) -> nn.Module:
    """The case's model, a linear layer, a norm, an attention and a convolution, with its parameters."""
    state = case.tensors("param")
    model = nn.Module()
    out_features, in_features = state["a.weight"].shape
    model.a = nn.Linear(in_features, out_features)
    model.bn = nn.BatchNorm1d(len(state["bn.weight"]))
    model.mha = nn.MultiheadAttention(state["mha.in_proj_weight"].shape[1], num_heads=1)  # it only carries parameters
    out_channels, in_channels, size = state["c.weight"].shape
    model.c = nn.Conv1d(in_channels, out_channels, size, bias=False)
    model.load_state_dict(state)
    return model


NOT_OF_ONE_CYCLE = (
    "DECAY_STEP_LIST",
    "LR_DECAY",
    "LR_CLIP",
    "LR_WARMUP",
    "WARMUP_EPOCH",
    "MOMENTUM",
)  # of other schedules


def settings_of(optim: Mapping[str, Any], parameter_groups: Literal["all", "published"] = "published") -> OneCycle:
    """Our settings from the published OPTIMIZATION section; parameter_groups: see `OneCycle`.

    Raises ValueError for another optimiser.
    """
    if optim.get("OPTIMIZER", "adam_onecycle") != "adam_onecycle":
        raise ValueError(f"OPTIMIZER: {optim['OPTIMIZER']!r} is not known here; known: 'adam_onecycle'")
    skip(optim, *NOT_OF_ONE_CYCLE)
    return OneCycle(
        learning_rate=optim["LR"],
        weight_decay=optim["WEIGHT_DECAY"],
        momentum=tuple(optim["MOMS"]),
        beta2=optim.get("BETAS", (0.9, 0.99))[1],
        pct_start=optim["PCT_START"],
        div_factor=optim["DIV_FACTOR"],
        grad_norm_clip=optim["GRAD_NORM_CLIP"],
        parameter_groups=parameter_groups,
    )


def _groups(config: Mapping[str, Any], model: nn.Module) -> Literal["all", "published"]:
    """Which parameters the case's optimiser got: as published, or all, as where LION adds those that were missing."""
    known: tuple[Literal["published", "all"], ...] = ("published", "all")
    wanted = config.get("_in_optimizer")
    if wanted is None:
        return "published"
    for groups in known:
        trained = trained_parameters(model, groups)
        names = {name for name, parameter in model.named_parameters() if any(parameter is one for one in trained)}
        if names == set(wanted):
            return groups
    raise ValueError(
        f"_in_optimizer: {sorted(wanted)} is known neither with all parameters nor with the published ones"
    )


@runs("openpcdet", "onecycle")
@every_setting
def one_cycle(case: Case, grads: bool) -> Values:
    """The schedule, and the parameters after some of the steps with the case's gradients."""
    model = _model(case)
    settings = settings_of(case.config["optim"], _groups(case.config, model))
    total = case.config["iters_per_epoch"] * case.config["epochs"]
    schedule = np.array([settings.at(step, total) for step in range(total)], np.float32)
    values: dict[str, Value] = {"out.lr": schedule[:, 0], "out.momentum": schedule[:, 1]}
    optimizer = build_optimizer(model, settings)
    gradients = case.tensors("in.grad")
    for step in range(case.config["n_steps"]):
        optimizer.zero_grad()
        for name, parameter in model.named_parameters():
            new = gradients[name][step]
            parameter.grad = new.clone() if parameter.grad is None else parameter.grad + new
        set_schedule(optimizer, *settings.at(step, total))
        values[f"mid.grad_norm_step{step}"] = clip_gradients(model.parameters(), settings.grad_norm_clip)
        optimizer.step()
        if step + 1 in case.config["snap"]:
            with torch.no_grad():
                values |= {f"out.step{step + 1}.{name}": p.clone() for name, p in model.named_parameters()}
    return values
