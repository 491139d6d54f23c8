"""Without the native libraries: installed all the same, one warning, and the same results."""

from __future__ import annotations

import ctypes
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
    caches = (_native.library, _native._function)
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
        for _ in range(3):
            assert not _native.has_kernels(torch.zeros(1))
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


def test_a_library_of_other_sources_is_left_aside(unloaded, tmp_path: Path) -> None:
    (tmp_path / "ops").mkdir()
    (tmp_path / "setup.py").touch()
    (tmp_path / "ops" / "thing_cpu.cpp").write_text("// another kernel")
    unloaded.setattr(_native, "CHECKOUT", tmp_path)
    with pytest.warns(UserWarning, match="was built from other sources .* setup.py build_ext --inplace"):
        assert _native.library("cpu") is None


def test_other_devices_have_no_library_and_need_no_warning(unloaded) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _native.library("meta") is None


def test_ops_run_on_references_where_nothing_is_built(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "pcdet_ext", tmp_path / "pcdet_ext", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {OPS}")
    assert done.stdout.strip() == "[[1.0, 1.0], [2.0, 2.0]]"
    assert done.stderr.count("libpcdet_ext_cpu.so is not built") == 1


class Kernel:
    """What ctypes gives for a function of a library; keeps what it was called with."""

    def __init__(self, status: int) -> None:
        self.status, self.calls = status, []

    def __call__(self, *arguments: object) -> int:
        self.calls.append(arguments)
        return self.status


CPU = torch.device("cpu")


@pytest.fixture
def kernel(unloaded) -> Kernel:
    """A kernel `pcdet_thing_cpu` that does nothing."""
    kernel = Kernel(0)
    unloaded.setattr(_native, "library", lambda kind: {"pcdet_thing_cpu": kernel, "pcdet_thing_float32_cpu": kernel})
    return kernel


def test_a_failed_kernel_is_an_error_with_its_name(kernel: Kernel) -> None:
    kernel.status = -3
    with pytest.raises(_native.NativeError, match="pcdet_thing_cpu: status -3"):
        _native.launch("thing", CPU)


def test_without_library_there_is_no_launch(unloaded) -> None:
    unloaded.setattr(_native, "library", lambda kind: None)
    with pytest.raises(_native.NativeError, match="pcdet_thing_cpu: there is no native library for 'cpu'"):
        _native.launch("thing", CPU)


@pytest.mark.skipif(_native.library("cpu") is None, reason="no native library")
def test_a_kernel_that_an_older_library_does_not_have_is_told_with_its_path() -> None:
    with pytest.raises(_native.NativeError, match=r"pcdet_no_such_op_cpu is not in .*_cpu\.so.* build_ext"):
        _native.launch("no_such_op", CPU)


def test_arguments_are_passed_as_their_types_say(kernel: Kernel) -> None:
    tensor, size, table = torch.zeros(4, 4), ctypes.c_int64(7), (ctypes.c_int64 * 2)(1, 2)
    rows, missing, column = (tensor, torch.float32, 16), (None, torch.float32, 3), (tensor[:, 1], torch.float32, (4,))
    _native.launch("thing", CPU, rows, missing, column, 5, _native.Int32(-2), 0.5, size, table, dtype=torch.float32)
    start = tensor.data_ptr()
    (passed,) = kernel.calls
    assert passed[:6] == (start, None, start + 4, 5, -2, 0.5)
    assert passed[8:] == (torch.get_num_threads(),)
    pointer, i64, i32, f64 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_double
    assert kernel.argtypes == [pointer, pointer, pointer, i64, i32, f64, pointer, pointer, i32]


TENSOR = torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ((TENSOR, torch.float64, 16), r"must be torch.float64 16 contiguous on cpu, got torch.float32 \[4, 4\]"),
        ((TENSOR, torch.float32, 17), r"must be torch.float32 17 contiguous on cpu, got torch.float32 \[4, 4\]"),
        ((TENSOR, torch.float32, 15), "15 contiguous"),
        ((TENSOR.t(), torch.float32, 16), r"16 contiguous on cpu, got .* strides \[1, 4\]"),
        ((TENSOR.to("meta"), torch.float32, 16), "on cpu, got torch.float32 .* on meta"),
        ((TENSOR[:, 1], torch.float32, (5,)), r"must be torch.float32 \[5\] on cpu"),
        ((TENSOR[:, 1], torch.float64, (4,)), r"must be torch.float64 \[4\] on cpu"),
        (-1, "must be from 0 to 9223372036854775807, got -1"),
        (1 << 63, "got 9223372036854775808"),
        (_native.Int32(1 << 31), "must be from -2147483648 to 2147483647, got 2147483648"),
        (_native.Int32(-(1 << 31) - 1), "got -2147483649"),
    ],
)
def test_what_a_kernel_would_misread_is_refused(kernel: Kernel, argument: _native.Argument, message: str) -> None:
    with pytest.raises(ValueError, match=f"argument 2 of pcdet_thing_cpu .*{message}"):
        _native.launch("thing", CPU, 0, argument)
    assert not kernel.calls


def test_what_is_no_argument_is_refused(kernel: Kernel) -> None:
    for argument in (True, "text", None, TENSOR):
        with pytest.raises(TypeError):
            _native.launch("thing", CPU, argument)
    assert not kernel.calls


def test_arrays_of_numbers_that_do_not_fit_are_refused() -> None:
    assert list(_native.int32_array([-1, 2])) == [-1, 2]
    assert list(_native.int64_array([-1, 1 << 62])) == [-1, 1 << 62]
    with pytest.raises(ValueError, match="32 bits"):
        _native.int32_array([0, 1 << 31])
    with pytest.raises(ValueError, match="64 bits"):
        _native.int64_array([-(1 << 63) - 1])


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
