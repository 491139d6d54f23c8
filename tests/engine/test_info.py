"""What `pcdet info` tells."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from pcdet_ext.engine import info


def run(**environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "pcdet_ext", "info"],
        env=os.environ | environment,
        capture_output=True,
        check=True,
        text=True,
    ).stdout


def test_it_names_versions_devices_and_kernels() -> None:
    text = run()
    for title in ("versions:", "devices:", "native kernels:", "optional packages:"):
        assert title in text
    assert torch.__version__ in text
    assert f"python         {sys.version.split()[0]}" in text
    assert "cpu" in text.partition("devices:")[2]


def test_native_kernels_that_are_switched_off_are_told() -> None:
    assert "switched off by PCDET_EXT_NATIVE=0" in run(PCDET_EXT_NATIVE="0")


def test_optional_packages_are_told_with_how_to_get_them(monkeypatch) -> None:
    for name, version in info.optional_packages().items():
        assert (version is not None) == (find_spec(name) is not None)
    monkeypatch.setitem(info.OPTIONAL, "no_such_package", ("vis", ("no-such-package",)))
    assert info.optional_packages()["no_such_package"] is None
    assert "missing (pip install 'pcdet_ext[vis]')" in info.describe()


def test_every_extra_that_is_named_exists(root) -> None:
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    for extra, _ in info.OPTIONAL.values():
        assert f"\n{extra} = [" in text


def test_every_package_that_is_required_is_listed(root) -> None:
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^dependencies = (\[.*\])$", text, re.MULTILINE)
    assert {re.split("[><=]", name)[0] for name in ast.literal_eval(listed)} == set(info.REQUIRED)
    assert all(info.versions()[name] != "missing" for name in info.REQUIRED)


def test_a_library_that_is_not_built_is_told(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("PCDET_EXT_NATIVE", raising=False)
    monkeypatch.setattr(info._native, "library_path", lambda kind: tmp_path / "none.so")
    assert info.native_status("cpu").startswith("not built")
    assert f"cd {Path(info.__file__).parents[2]} && python setup.py build_ext --inplace" in info.native_status("cpu")
    monkeypatch.setattr(info._native, "CHECKOUT", tmp_path / "site-packages")
    for kind, compiler in (("cpu", "g++"), ("cuda", "nvcc")):  # installed, without a checkout
        told = info.native_status(kind)
        assert "setup.py" not in told
        assert f"where {compiler}" in told
        assert "pip install --force-reinstall --no-deps" in told


def test_a_library_that_does_not_load_is_told(monkeypatch, tmp_path) -> None:
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"no library")
    monkeypatch.delenv("PCDET_EXT_NATIVE", raising=False)
    monkeypatch.setattr(info._native, "library_path", lambda kind: damaged)
    monkeypatch.setattr(info._native, "library", info._native.library.__wrapped__)
    assert info.native_status("cpu").startswith("built, but not loaded")
    assert str(damaged) in info.native_status("cpu")


def test_hardware_is_described() -> None:
    machine = info.hardware()
    assert machine["cores"] >= 1
    assert machine["processor"]
    assert machine["threads"] == torch.get_num_threads()
    assert len(machine["gpus"]) == torch.cuda.device_count()
