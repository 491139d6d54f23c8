"""Cases of the published training loop: the one-cycle optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from pcdet_ext.conformance.golden import Case, Value, Values, runs
from pcdet_ext.engine.optimizer import OneCycle, build_optimizer, clip_gradients, set_schedule


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


def settings_of(optim: Mapping[str, Any]) -> OneCycle:
    """Our settings from the published OPTIMIZATION section."""
    return OneCycle(
        learning_rate=optim["LR"],
        weight_decay=optim["WEIGHT_DECAY"],
        momentum=tuple(optim["MOMS"]),
        beta2=optim.get("BETAS", (0.9, 0.99))[1],
        pct_start=optim["PCT_START"],
        div_factor=optim["DIV_FACTOR"],
        grad_norm_clip=optim["GRAD_NORM_CLIP"],
        parameter_groups="published",
    )


@runs("openpcdet", "onecycle")
def one_cycle(case: Case, grads: bool) -> Values:
    """The schedule, and the parameters after some of the steps with the case's gradients."""
    settings = settings_of(case.config["optim"])
    total = case.config["iters_per_epoch"] * case.config["epochs"]
    schedule = np.array([settings.at(step, total) for step in range(total)], np.float32)
    values: dict[str, Value] = {"out.lr": schedule[:, 0], "out.momentum": schedule[:, 1]}
    model = _model(case)
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
