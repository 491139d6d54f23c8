"""Run by mmdetection3d's interpreter through the launcher: train, resume and test the example with mmengine's Runner.

python -m pcdet_ext.plugins.mmdet3d mmdet3d_runner.py CONFIG OUT STEPS, in the folder that has data/kitti. Into OUT go
the checkpoints, detections.json with what the model finds in each frame and the KITTI metric, and the frames' points.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import kept_compilations  # noqa: E402, F401
import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

CONFIG, OUT, STEPS = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
SCORES = {"model.test_cfg.score_thr": 0.001}  # after so few steps none may be higher


def config(iterations: int, **changes: Any) -> Config:
    """The example, trained for a number of steps instead of epochs."""
    found = Config.fromfile(CONFIG)
    found.merge_from_dict(
        {"work_dir": str(OUT), "randomness": {"seed": 0}, "log_level": "WARNING", **SCORES, **changes}
    )
    found.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": iterations, "val_begin": 1000}
    found.param_scheduler = None
    found.default_hooks.checkpoint = {"type": "CheckpointHook", "interval": STEPS, "by_epoch": False}
    return found


def losses(runner: Runner) -> list[float]:
    history = runner.message_hub.get_scalar("train/loss")._log_history
    return [float(value) for value in history]


def detections(runner: Runner) -> list[Any]:
    """What the model finds in each frame of the test set, whose points are written."""
    runner.model.eval()
    found = []
    for number, batch in enumerate(runner.test_dataloader):
        np.save(OUT / f"frame_{number}.npy", batch["inputs"]["points"][0].numpy())
        with torch.no_grad():
            sample = runner.model.test_step(batch)[0].pred_instances_3d
        found.append([sample.bboxes_3d.tensor.tolist(), sample.scores_3d.tolist(), sample.labels_3d.tolist()])
    return found


def ground_truth(runner: Runner) -> list[Any]:
    """Boxes of each training frame as their data set makes them of our info files, in the LiDAR frame."""
    dataset = runner.train_dataloader.dataset
    annotations = [dataset.get_ann_info(i) for i in range(len(dataset))]
    return [[a["gt_bboxes_3d"].tensor.tolist(), a["gt_labels_3d"].tolist()] for a in annotations]


def main() -> None:
    gc.freeze()  # their data sets and metric collect garbage, each time among all that was imported
    first = Runner.from_cfg(config(STEPS))
    first.train()
    more = Runner.from_cfg(config(STEPS + 1, resume=True, experiment_name="resumed"))
    more.train()
    test = Runner.from_cfg(config(STEPS, load_from=str(OUT / f"iter_{STEPS}.pth"), experiment_name="tested"))
    scores = test.test()
    results = {
        "losses": losses(first),
        "iterations": more.iter,
        "scores": {key: float(value) for key, value in scores.items()},
        "truth": ground_truth(more),
        "found": detections(test),
    }
    (OUT / "results.json").write_text(json.dumps(results), encoding="utf-8")


main()
