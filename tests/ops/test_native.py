"""Without the native libraries: installed all the same, told once, and the same results."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from pcdet_ext.ops import _native

OPS = (
    "import torch; from pcdet_ext.ops import segment_reduce, voxelize;"
    "voxelize(torch.rand(9, 4), [0, 0, 0, 1, 1, 1], [.5, .5, .5], 2, 9);"
    "print(segment_reduce(torch.ones(3, 2), torch.tensor([0, 1, 1]), 2).tolist())"
)


@pytest.fixture
def unloaded(monkeypatch):
    """The module as in a fresh process: nothing loaded, nothing said."""
    monkeypatch.delenv("PCDET_EXT_NATIVE", raising=False)
    caches = (_native.library, _native.function)
    for cached in caches:
        cached.cache_clear()
    yield monkeypatch
    for cached in caches:
        cached.cache_clear()


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        check=True,
        text=True,
    )


def test_switched_off_by_the_environment_without_a_word() -> None:
    done = run(OPS, PCDET_EXT_NATIVE="0")
    assert done.stdout.strip() == "[[1.0, 1.0], [2.0, 2.0]]"
    assert "pcdet_ext" not in done.stderr


def test_a_missing_library_is_told_once(unloaded, tmp_path: Path) -> None:
    unloaded.setattr(_native, "library_path", lambda kind: tmp_path / f"lib_{kind}.so")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("pcdet_a", "pcdet_b", "pcdet_a"):
            assert _native.function("cpu", name) is None
    assert [str(w.message) for w in caught] == [
        "pcdet_ext: lib_cpu.so is not built, ops on cpu run on their slower PyTorch references"
    ]


def test_a_damaged_library_is_told_once_with_its_path(unloaded, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"\x7fELF but cut short")
    unloaded.setattr(_native, "library_path", lambda kind: damaged)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert _native.library("cpu") is None
        assert _native.library("cpu") is None
    (message,) = (str(w.message) for w in caught)
    assert f"{damaged} cannot be loaded" in message


def test_other_devices_have_no_library_and_need_no_warning(unloaded) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _native.library("meta") is None


def test_ops_run_on_references_where_nothing_is_built(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "pcdet_ext", tmp_path / "pcdet_ext", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {OPS}")
    assert done.stdout.strip() == "[[1.0, 1.0], [2.0, 2.0]]"
    assert done.stderr.count("libpcdet_ext_cpu.so is not built") == 1


def test_a_failed_kernel_is_an_error_with_its_name(unloaded) -> None:
    class Library:
        @staticmethod
        def pcdet_thing_cpu(*_: object) -> int:
            return -3

    unloaded.setattr(_native, "library", lambda kind: Library)
    with pytest.raises(_native.NativeError, match="pcdet_thing_cpu: status -3"):
        _native.function("cpu", "pcdet_thing_cpu")()


def test_pointers_are_of_contiguous_tensors_only() -> None:
    assert _native.pointer(None) is None
    tensor = torch.zeros(4, 4)
    assert _native.pointer(tensor) == tensor.data_ptr()
    with pytest.raises(ValueError, match="contiguous"):
        _native.pointer(tensor[:, 1])


def build(root: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Build a copy of the project with one tiny kernel."""
    (folder / "ops" / "tiny").mkdir(parents=True)
    (folder / "pcdet_ext" / "ops").mkdir(parents=True)
    shutil.copy(root / "setup.py", folder)
    (folder / "ops" / "tiny" / "tiny_cpu.cpp").write_text('extern "C" int pcdet_tiny_cpu() { return 0; }\n')
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, check=False, text=True
    )


def test_a_build_without_compiler_succeeds_and_says_so(root: Path, tmp_path: Path) -> None:
    done = build(root, tmp_path, CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("libpcdet_ext_cpu is not built") == 1
    assert not list(tmp_path.rglob("*.so"))


def test_a_build_that_has_to_be_native_fails_without_compiler(root: Path, tmp_path: Path) -> None:
    done = build(root, tmp_path, CXX="no-such-compiler", PCDET_EXT_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "libpcdet_ext_cpu" in done.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_a_build_makes_the_library(root: Path, tmp_path: Path) -> None:
    done = build(root, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pcdet_ext" / "ops" / "libpcdet_ext_cpu.so").exists()
