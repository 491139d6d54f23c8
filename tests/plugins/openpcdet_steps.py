"""Run by OpenPCDet's interpreter through the launcher: train, save, resume and evaluate the models of a plan.

python -m pcdet_ext.plugins.openpcdet openpcdet_steps.py TOOLS PLAN.json: `TOOLS` is OpenPCDet's folder tools, the plan
has `configs` (YAML files by name), `steps` (0 for no training), and the file `out`, into which the results are written
as JSON. `kitti`, if it is there, is a folder in KITTI's layout that is prepared first.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

TOOLS, PLAN = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
sys.path.insert(0, str(TOOLS))

import kept_compilations  # noqa: E402, F401
import numpy as np  # noqa: E402
import torch  # noqa: E402
from easydict import EasyDict  # noqa: E402
from pcdet.config import cfg_from_yaml_file  # noqa: E402
from pcdet.datasets import build_dataloader  # noqa: E402
from pcdet.datasets.kitti import kitti_dataset  # noqa: E402
from pcdet.models import build_network, load_data_to_gpu, model_fn_decorator  # noqa: E402
from pcdet.utils import common_utils  # noqa: E402
from train_utils.optimization import build_optimizer, build_scheduler  # noqa: E402
from train_utils.train_utils import checkpoint_state, save_checkpoint  # noqa: E402

FRAMES = Path(PLAN["out"]).parent / "frames"  # points of each frame, as models get them
LOGGER = common_utils.create_logger()


def loader(cfg: EasyDict, training: bool) -> Any:
    return build_dataloader(cfg.DATA_CONFIG, cfg.CLASS_NAMES, 2, False, workers=0, training=training, logger=LOGGER)[:2]


def build(cfg: EasyDict, dataset: Any) -> Any:
    torch.manual_seed(0)
    return build_network(model_cfg=cfg.MODEL, num_class=len(cfg.CLASS_NAMES), dataset=dataset).cuda()


def train(cfg: EasyDict, model: Any, optimizer: Any, batches: Any, steps: int) -> tuple[list[float], list[str]]:
    """The loss of each step on the first batch, and the parameters that no step moved."""
    scheduler = build_scheduler(optimizer, steps, 1, -1, cfg.OPTIMIZATION)[0]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    batch, losses, run = next(iter(batches)), [], model_fn_decorator()
    for step in range(steps):
        model.train()
        scheduler.step(step)
        optimizer.zero_grad()
        loss = run(model, dict(batch)).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    unmoved = [name for name, value in model.named_parameters() if torch.equal(before[name], value)]
    without = [name for name, value in model.named_parameters() if value.grad is None]
    return losses, sorted({*unmoved, *without})


def detections(model: Any, batches: Any) -> tuple[list[Any], list[Any]]:
    """What a model finds in each frame, and the same as OpenPCDet's KITTI annotations."""
    model.eval()
    found, annotations = [], []
    for batch in batches:
        for frame, name in enumerate(batch["frame_id"]):
            np.save(FRAMES / f"{name}.npy", batch["points"][batch["points"][:, 0] == frame, 1:])
        load_data_to_gpu(batch)
        with torch.no_grad():
            frames = model(batch)[0]
        lists = [{key: value.tolist() for key, value in frame.items()} for frame in frames]
        found += [own | {"frame": name} for own, name in zip(lists, batch["frame_id"], strict=True)]
        annotations += batches.dataset.generate_prediction_dicts(batch, frames, batches.dataset.class_names)
    return found, annotations


def run(name: str, path: str, steps: int, folder: Path) -> dict[str, Any]:
    cfg = cfg_from_yaml_file(path, EasyDict(ROOT_DIR=folder, LOCAL_RANK=0))
    train_set, train_batches = loader(cfg, True)
    model = build(cfg, train_set)
    optimizer = build_optimizer(model, cfg.OPTIMIZATION)
    losses, unmoved = train(cfg, model, optimizer, train_batches, steps)
    save_checkpoint(checkpoint_state(model, optimizer, 1, steps), str(folder / name))
    again = build(cfg, train_set)
    resumed = again.load_params_with_optimizer(
        str(folder / f"{name}.pth"), to_cpu=True, optimizer=build_optimizer(again, cfg.OPTIMIZATION), logger=LOGGER
    )
    test_set, test_batches = loader(cfg, False)
    found, annotations = detections(model, test_batches)
    repeated, _ = detections(again, test_batches)
    _, scores = test_set.evaluation(annotations, cfg.CLASS_NAMES)
    return {
        "losses": losses,
        "unmoved": unmoved,
        "resumed": list(resumed),
        "same": found == repeated,
        "found": found,
        "scores": {key: float(value) for key, value in scores.items()},
    }


def metric(cfg: EasyDict, folder: Path) -> dict[str, float]:
    """OpenPCDet's KITTI metric of made-up detections, which are also written as result files."""
    dataset = loader(cfg, False)[0]
    rng, folder, annotations = np.random.default_rng(0), folder / "detections", []
    folder.mkdir()
    for info in dataset.kitti_infos:
        truth, frame = info["annos"], info["point_cloud"]["lidar_idx"]
        rows = np.flatnonzero([name in cfg.CLASS_NAMES for name in truth["name"]])
        rows = np.concatenate([rows[rng.uniform(size=len(rows)) < 0.8], rows[:1]])
        count = len(rows)
        found = {
            "name": np.where(rng.uniform(size=count) < 0.1, "Pedestrian", truth["name"][rows]),
            "truncated": np.zeros(count),
            "occluded": np.zeros(count),
            "alpha": truth["alpha"][rows] + rng.normal(0, 0.2, count),
            "bbox": truth["bbox"][rows] + rng.normal(0, 3, (count, 4)),
            "dimensions": truth["dimensions"][rows] * rng.uniform(0.9, 1.1, (count, 3)),
            "location": truth["location"][rows] + rng.normal(0, 0.15, (count, 3)),
            "rotation_y": truth["rotation_y"][rows] + rng.normal(0, 0.1, count),
            "score": rng.permutation(count) / count + 0.01,
        }
        found = {key: value if key == "name" else value.round(4) for key, value in found.items()}  # as files have them
        annotations.append(found | {"frame_id": frame})
        lines = []
        for i in range(count):
            length, height, width = found["dimensions"][i]
            numbers = [found["alpha"][i], *found["bbox"][i], height, width, length, *found["location"][i]]
            numbers += [found["rotation_y"][i], found["score"][i]]
            lines.append(f"{found['name'][i]} -1 -1 " + " ".join(f"{value:.4f}" for value in numbers))
        (folder / f"{frame}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {key: float(value) for key, value in dataset.evaluation(annotations, cfg.CLASS_NAMES)[1].items()}


def main() -> None:
    results: dict[str, Any] = {}
    out = Path(PLAN["out"])
    FRAMES.mkdir(exist_ok=True)
    if "kitti" in PLAN:
        any_config = cfg_from_yaml_file(next(iter(PLAN["configs"].values())), EasyDict())
        folder = Path(PLAN["kitti"])
        kitti_dataset.Path = Path  # which that module imports only when it is run as a script
        kitti_dataset.create_kitti_infos(any_config.DATA_CONFIG, any_config.CLASS_NAMES, folder, folder, workers=1)
        results["metric"] = metric(any_config, out.parent)
    for name, path in PLAN["configs"].items() if PLAN["steps"] else ():
        try:
            results[name] = run(name, path, PLAN["steps"], out.parent)
        except Exception as error:
            traceback.print_exc()
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    out.write_text(json.dumps(results), encoding="utf-8")


main()
