"""Where OpenPCDet is, and KITTI frames as it wants them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

CHECKOUT, PYTHON = "PCDET_EXT_OPENPCDET", "PCDET_EXT_OPENPCDET_PYTHON"
NEEDED = ("easydict", "tensorboardX", "skimage", "spconv")  # packages, besides this library's own
IMAGE_SIZE = (1242, 375)  # of a KITTI picture, width and height
HERE = Path(__file__).resolve().parent


def checkout() -> Path:
    """OpenPCDet's folder, or the test is skipped."""
    folder = os.environ.get(CHECKOUT)
    if not folder:
        pytest.skip(f"{CHECKOUT} names no OpenPCDet checkout (git clone https://github.com/open-mmlab/OpenPCDet)")
    if not Path(folder, "pcdet", "__init__.py").is_file():
        pytest.fail(f"{CHECKOUT}={folder} is no OpenPCDet checkout")
    return Path(folder)


def python() -> str:
    """The interpreter that has what OpenPCDet imports, or the test is skipped."""
    chosen = os.environ.get(PYTHON, sys.executable)
    code = f"import importlib.util as u, sys; sys.exit(' '.join(n for n in {NEEDED} if u.find_spec(n) is None) or None)"
    missing = subprocess.run([chosen, "-c", code], capture_output=True, text=True, check=False)
    if missing.returncode:
        pytest.skip(f"OpenPCDet needs {missing.stderr.strip()}: install them, or let {PYTHON} name another interpreter")
    return chosen


def launch(
    *arguments: str | Path, timeout: float = 600, processes: int = 1, folder: Path = HERE
) -> subprocess.CompletedProcess[str]:
    """Run a script through the plugin's launcher, with the checkout on the path; by torchrun in several processes."""
    places = [str(HERE.parents[1]), str(checkout())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    together = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    command = [python(), "-m", *(together if processes > 1 else [])]
    command += ["pcdet_ext.plugins.openpcdet", *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=timeout, cwd=folder
    )


def write_kitti(folder: Path, frames: Path) -> Path:
    """A folder in KITTI's layout with links to frames, and blank pictures, of which OpenPCDet reads the size."""
    for part in ("velodyne", "calib", "label_2"):
        (folder / "training" / part).mkdir(parents=True)
        for path in (frames / "training" / part).iterdir():
            (folder / "training" / part / path.name).symlink_to(path)
    pictures = folder / "training" / "image_2"
    pictures.mkdir()
    for path in (folder / "training" / "calib").iterdir():
        Image.new("L", IMAGE_SIZE).save(pictures / f"{path.stem}.png")
    (folder / "ImageSets").mkdir()
    for split in ("train", "val"):
        names = (frames / "ImageSets" / f"{split}.txt").read_text(encoding="utf-8").split()
        (folder / "ImageSets" / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / "ImageSets" / "test.txt").write_text("", encoding="utf-8")
    (folder / "testing").symlink_to(folder / "training")
    return folder


def run_plan(folder: Path, configs: dict[str, Any], **plan: Any) -> dict[str, Any]:
    """What `openpcdet_steps.py` says of configurations."""
    paths = {}
    for name, config in configs.items():
        paths[name] = str(folder / f"{name}.yaml")
        Path(paths[name]).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    out, file = folder / "results.json", folder / "plan.json"
    file.write_text(json.dumps({"configs": paths, "out": str(out), **plan}), encoding="utf-8")
    done = launch(HERE / "openpcdet_steps.py", checkout() / "tools", file)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {"log": done.stderr, "results": json.loads(out.read_text(encoding="utf-8"))}
