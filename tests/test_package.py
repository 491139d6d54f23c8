"""The package as users get it: a wheel, built here and installed where nothing leads back to the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path

import numpy
import pytest

import pcdet_ext

SMALL = (
    "data.point_cloud_range=[0, -19.2, -3, 38.4, 19.2, 1]",
    "model.voxel_size=[0.8, 0.8, 4]",
    "model.bev_backbone.layer_nums=[1, 1, 1]",
    "data.augment=[]",
    "train.max_steps=2",
    "train.num_workers=0",
    "test.num_workers=0",
)


@dataclass(frozen=True)
class Installation:
    """A virtual environment that holds the wheel, and a working directory far from the checkout."""

    folder: Path
    work: Path

    @property
    def package(self) -> Path:
        """Where the package is installed."""
        return next(self.folder.glob("lib/python*/site-packages/pcdet_ext"))

    def run(self, program: str, *arguments: object) -> str:
        """Output of a program of the environment, which must succeed."""
        done = self.start(program, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """A program of the environment, after its end."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PCDET"))}
        command = [str(self.folder / "bin" / program), *map(str, arguments)]
        return subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, without its CUDA part. Objects of the native library are taken from earlier builds."""
    tmp = tmp_path_factory.mktemp("wheel")
    (tmp / "lib" / "pcdet_ext").mkdir(parents=True)
    (tmp / "lib" / "pcdet_ext" / "gone.py").touch()  # a module of an earlier build that is no more
    commands = ["egg_info", "--egg-base", tmp, "build", "--build-base", tmp / "build", "--build-lib", tmp / "lib"]
    commands += ["bdist_wheel", "--bdist-dir", tmp / "bdist", "--dist-dir", tmp / "dist"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PCDET_EXT_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", *map(str, commands)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel in a new environment that sees the packages installed here, but not this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Files *.pth in a folder that a *.pth names do not count, so the editable installation of the checkout is not seen.
    (packages / "installed_here.pth").write_text(f"{Path(numpy.__file__).parent.parent}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    options = ["install", "--no-index", "--no-deps", "--ignore-installed", "--no-compile", "--quiet"]
    subprocess.run([*pip, *options, str(wheel)], check=True, capture_output=True)
    return Installation(folder, tmp_path_factory.mktemp("work"))


def test_the_wheel_holds_the_package_and_nothing_beside_it(root: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata_folder = f"pcdet_ext-{pcdet_ext.__version__}.dist-info"
        metadata = message_from_string(archive.read(f"{metadata_folder}/METADATA").decode())
        scripts = archive.read(f"{metadata_folder}/entry_points.txt").decode()
        licence = archive.read(f"{metadata_folder}/licenses/LICENSE").decode()
    assert {name.split("/")[0] for name in names} == {"pcdet_ext", metadata_folder}
    modules = {str(p.relative_to(root)) for p in root.glob("pcdet_ext/**/*.py")}
    configs = {f"pcdet_ext/{p.relative_to(root)}" for p in root.glob("configs/**/*.yaml")}
    native = {"pcdet_ext/ops/libpcdet_ext_cpu.so"} if shutil.which(os.environ.get("CXX", "g++")) else set()
    inside = {name for name in names if name.startswith("pcdet_ext/")}
    viewer = {str(p.relative_to(root)) for p in root.glob("pcdet_ext/visualization/viewer/*")}
    assert "pcdet_ext/visualization/viewer/page.html" in viewer
    weights = {str(p.relative_to(root)) for p in root.glob("pcdet_ext/weights/**/*.ckpt")}
    assert inside == modules | configs | native | viewer | weights | {"pcdet_ext/py.typed"}
    assert "pcdet_ext/weights/kitti/demo_sim.ckpt" in weights
    assert (metadata["Name"], metadata["Version"]) == ("pcdet_ext", pcdet_ext.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"vis", "spconv", "scatter", "train", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert "pcdet = pcdet_ext.cli.command:console" in scripts
    assert "Version 2.0, January 2004" in licence


def test_what_is_installed_knows_its_models_and_its_parts(root: Path, installation: Installation) -> None:
    code = """
import pcdet_ext
print(pcdet_ext.__file__, pcdet_ext.__version__)
print(*pcdet_ext.list_models("*mamba*"))
print(type(pcdet_ext.build("kitti/demo", device="cpu").model).__name__)
"""
    first, models, model = installation.run("python", "-c", code).splitlines()
    assert first == f"{installation.package / '__init__.py'} {pcdet_ext.__version__}"
    assert models.split() == pcdet_ext.list_models("*mamba*")
    assert model == "VoxelDetector"
    assert installation.run("pcdet", "--version") == f"pcdet_ext {pcdet_ext.__version__}\n"
    told = installation.run("pcdet", "info")
    assert f"pcdet_ext in {installation.package}" in told
    if shutil.which(os.environ.get("CXX", "g++")):
        assert "cpu            built, loaded" in told


def test_from_simulated_streets_to_a_picture(installation: Installation) -> None:
    pytest.importorskip("open3d")
    pcdet, work = installation.run, installation.work
    (work / "user_parts.py").write_text("print('user code runs')")
    pcdet("pcdet", "simulate", "--frames", 6, "--beams", 32, "--azimuths", 400, "--workers", 1, "--out", "streets")
    assert pcdet("pcdet", "prepare", "kitti", "--root", "streets", "--quiet").startswith("train: 5 frames, ")
    pcdet(
        "pcdet",
        "train",
        "kitti/demo",
        "data.root=streets",
        "imports=[user_parts]",
        *SMALL,
        "--out",
        "run",
        "--device",
        "cpu",
    )
    refused = installation.start("pcdet", "test", "run/best.ckpt", "--device", "cpu")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "run/best.ckpt: imports: the module 'user_parts' is needed and is not imported" in refused.stderr
    options = ["--imports", "--out", "results", "--json", "ap.json", "--device", "cpu"]
    tested = pcdet("pcdet", "test", "run/best.ckpt", *options)
    assert tested.startswith("user code runs")
    assert "Car" in tested
    assert (work / "ap.json").stat().st_size > 0
    frame = next((work / "streets/training/velodyne").glob("*.bin"))
    pcdet("pcdet", "visualize", "run/best.ckpt", frame, "--imports", "--out", "map.png", "--device", "cpu")
    assert (work / "map.png").read_bytes().startswith(b"\x89PNG")
