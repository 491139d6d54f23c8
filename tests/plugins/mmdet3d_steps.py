"""Run by mmdetection3d's interpreter through the launcher: train, save, load and predict with the models of a plan.

python -m pcdet_ext.plugins.mmdet3d mmdet3d_steps.py PLAN.json: the plan has `models` (their names in
`mmdet3d_models`), `steps`, and the file `out`, into which the results are written as JSON.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import mmdet3d.models  # noqa: E402, F401
import mmdet3d_models  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmdet3d.registry import MODELS  # noqa: E402
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmengine.runner import load_checkpoint, save_checkpoint  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

import pcdet_ext.plugins.mmdet3d  # noqa: E402, F401

PLAN = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
BOXES = [
    [10.0, 0.0, -1.8, 3.9, 1.6, 1.56, 0.3],
    [18.0, 6.0, -1.8, 1.76, 0.6, 1.73, 1.2],
    [25.0, -5.0, -1.8, 0.8, 0.6, 1.7, 0.0],
]
LABELS = [2, 1, 0]


def frame(seed: int, columns: int) -> tuple[torch.Tensor, Det3DDataSample]:
    """Points on a flat ground and in three boxes, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    ground = torch.rand(1500, 4, generator=generator) * torch.tensor([40.0, 40, 0.1, 1]) - torch.tensor([0, 20, 1.8, 0])
    boxes, clouds = torch.tensor(BOXES), [ground]
    for x, y, z, dx, dy, dz, yaw in BOXES:
        local = (torch.rand(150, 3, generator=generator) - torch.tensor([0.5, 0.5, 0])) * torch.tensor([dx, dy, dz])
        cos, sin = torch.tensor(yaw).cos(), torch.tensor(yaw).sin()
        turned = [local[:, 0] * cos - local[:, 1] * sin + x, local[:, 0] * sin + local[:, 1] * cos + y, local[:, 2] + z]
        clouds.append(torch.stack([*turned, torch.rand(150, generator=generator)], 1))
    boxes = torch.cat([boxes, boxes.new_zeros(3, columns - 7)], 1)
    sample = Det3DDataSample(metainfo={"box_type_3d": LiDARInstance3DBoxes})
    found = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=columns), labels_3d=torch.tensor(LABELS))
    sample.gt_instances_3d = found
    return torch.cat(clouds), sample


def batch(columns: int) -> dict[str, Any]:
    frames = [frame(seed, columns) for seed in range(2)]
    return {"inputs": {"points": [points for points, _ in frames]}, "data_samples": [sample for _, sample in frames]}


def found_in(model: Any, data: dict[str, Any]) -> list[Any]:
    model.eval()
    with torch.no_grad():
        samples = model(**model.data_preprocessor(copy.deepcopy(data), training=False), mode="predict")
    parts = [sample.pred_instances_3d for sample in samples]
    return [[p.bboxes_3d.tensor.tolist(), p.scores_3d.tolist(), p.labels_3d.tolist()] for p in parts]


def run(name: str, config: dict[str, Any], steps: int, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    data = batch(9 if "pts_bbox_head" in config else 7)
    model = MODELS.build(ConfigDict(copy.deepcopy(config)))
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.003), []
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    for _ in range(steps):
        model.train()
        prepared = model.data_preprocessor(copy.deepcopy(data), training=True)
        loss, _ = model.parse_losses(model(**prepared, mode="loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    unmoved = [key for key, value in model.named_parameters() if value.grad is None or torch.equal(before[key], value)]
    save_checkpoint({"state_dict": model.state_dict()}, str(folder / f"{name}.pth"))
    again = MODELS.build(ConfigDict(copy.deepcopy(config)))
    load_checkpoint(again, str(folder / f"{name}.pth"), map_location="cpu", strict=True)
    found = found_in(model, data)
    return {"losses": losses, "unmoved": unmoved, "same": found == found_in(again, data), "found": found}


def main() -> None:
    init_default_scope("mmdet3d")
    for number in range(2):
        np.save(Path(PLAN["out"]).parent / f"frame_{number}.npy", frame(number, 7)[0].numpy())
    results: dict[str, Any] = {}
    out = Path(PLAN["out"])
    configs = mmdet3d_models.models()
    for name in PLAN["models"]:
        try:
            results[name] = run(name, configs[name], PLAN["steps"], out.parent)
        except Exception as error:
            traceback.print_exc()
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    out.write_text(json.dumps(results), encoding="utf-8")


main()
