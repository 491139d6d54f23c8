"""Runners of UniLION on variations of published cases: what they must use, and what they must refuse."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcdet_ext.conformance.cases.unilion import run_memory
from pcdet_ext.conformance.cases.unilion_detection import run_decoding
from pcdet_ext.conformance.cases.unilion_heads import run_grid_transform, run_motion_head, run_planning_head
from pcdet_ext.conformance.golden import Case, Runner, Values, compare
from pcdet_ext.conformance.gradients import loss_gradients

UNILION = Path(__file__).resolve().parents[1] / "data" / "golden" / "unilion"


@pytest.mark.parametrize(
    ("runner", "name", "key"),
    [
        (run_grid_transform, "grid_transform", "in.z"),
        (run_motion_head, "motion_head_b2", "in.task_list"),
        (run_decoding, "det_decode_nms", "in.pred.attributes"),
        (run_memory, "temporal_b2", "in.3.voxel_scores"),
    ],
)
def test_arrays_that_nobody_reads_are_refused(runner: Runner, name: str, key: str) -> None:
    case = Case.read(UNILION / f"{name}.json")
    case.arrays[key] = np.ones(3)
    with pytest.raises(ValueError, match=f"^{key}: of no use"):
        runner(case, False)


@pytest.mark.parametrize(("loss", "key", "value"), [("plan_cls", "activated", True), ("plan_reg", "type", "MSELoss")])
def test_losses_of_other_kinds_are_refused_with_their_section(loss: str, key: str, value: object) -> None:
    case = Case.read(UNILION / "planner_head_b3.json")
    config = case.config | {f"loss_{loss}": case.config[f"loss_{loss}"] | {key: value}}
    with pytest.raises(ValueError, match=rf"loss_{loss}\.{key}: {value!r} is not known here"):
        run_planning_head(replace(case, config=config), False)


def with_times(case: Case, shift: float) -> Case:
    """The same frames, with the times of the last step in its settings later, and none beside them."""
    config: dict[str, Any] = copy.deepcopy(case.config)
    config["frames"][-1] = [[name, time + shift] for name, time in config["frames"][-1]]
    return replace(case, config=config, arrays={k: v for k, v in case.arrays.items() if "timestamp" not in k})


def test_times_of_the_settings_count() -> None:
    """The first sequence of the last step goes on at 2.0 s; a little later it begins anew."""
    case = Case.read(UNILION / "temporal_b2.json")
    last = len(case.config["frames"]) - 1
    for shift, begins in ((0.0, False), (0.1, True)):
        found = run_memory(with_times(case, shift), False)
        assert bool(torch.as_tensor(found[f"out.{last}.start"])[0]) is begins  # type: ignore[arg-type]


def test_times_that_contradict_each_other_are_refused() -> None:
    case = Case.read(UNILION / "temporal_b2.json")
    with pytest.raises(ValueError, match="frames: times"):
        run_memory(replace(with_times(case, 0.1), arrays=case.arrays), False)


def test_predictions_to_decode_are_in_metres_however_large() -> None:
    """Longer and wider boxes are found longer and wider, with all of them larger than a metre or smaller."""
    case = Case.read(UNILION / "det_decode_nms.json")
    first = run_decoding(case, False)
    for scale in (4.0, 0.1):
        factors = np.array([scale, scale, 1.0], np.float32)[:, None]  # heights decide what is in range
        other = replace(case, arrays=case.arrays | {"in.pred.dim": case.arrays["in.pred.dim"] * factors})
        torch.testing.assert_close(sizes(run_decoding(other, False)), sizes(first) * torch.tensor(factors)[:, 0])
    wrong = replace(case, arrays=case.arrays | {"in.pred.dim": np.log(case.arrays["in.pred.dim"])})
    with pytest.raises(ValueError, match=r"in\.pred\.dim: sizes must be positive"):
        run_decoding(wrong, False)


def sizes(found: Values) -> torch.Tensor:
    boxes = found["out.boxes"]
    assert isinstance(boxes, torch.Tensor)
    return boxes[:, 3:6]


def test_a_gradient_of_another_shape_than_expected_fails() -> None:
    """It is brought into the shape of the published parameter, not into the expected one."""
    layer = torch.nn.Linear(3, 2)
    arrays = {"param.weight": np.zeros((2, 3, 1), np.float32), "grad.param.weight": np.ones((3, 2), np.float32)}
    case = Case(Path("made.json"), "made", "made", {}, {}, arrays)
    found = loss_gradients(case, layer(torch.ones(3)).sum(), layer, {}, str)
    assert found["grad.param.weight"].shape == (2, 3, 1)
    report = compare("made", case, found, True)
    assert (report.status, "shape" in report.message) == ("fail", True)
