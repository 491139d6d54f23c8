"""The report on CUDA kernels says what the compiler says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pcdet_ext.benchmark import kernels
from pcdet_ext.benchmark.kernels import KernelResources, read_resources
from pcdet_ext.cli.command import main

# As ptxas 13.0 printed it, names shortened.
REPORT = """\
ptxas info    : 272 bytes gmem, 16 bytes cmem[4]
ptxas info    : Compiling entry function '_Z9first_boxIdEvPKT_' for 'sm_80'
ptxas info    : Function properties for _Z9first_boxIdEvPKT_
    40 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 52 registers, used 1 barriers, 40 bytes cumulative stack size, 8192 bytes smem, 408 bytes cmem[0]
ptxas info    : Compile time = 83.980 ms
ptxas info    : Function properties for __internal_trig_reduction_slowpathd
    99 bytes stack frame, 99 bytes spill stores, 99 bytes spill loads
ptxas info    : Compiling entry function '_Z4walkl' for 'sm_80'
ptxas info    : Function properties for _Z4walkl
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, 400 bytes cmem[0]
"""


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt")
def test_resources_are_read_by_kernel() -> None:
    assert list(read_resources(REPORT, "nms", "80")) == [
        KernelResources("nms", "first_box<double>", "80", 52, 20, 40, 8192),
        KernelResources("nms", "walk", "80", 255, 0, 0, 0),
    ]


def test_a_report_without_registers_is_refused() -> None:
    with pytest.raises(ValueError, match="ptxas does not tell what"):
        list(read_resources(REPORT.replace("Used 255", "Took 255"), "nms", "80"))


@pytest.mark.parametrize(
    ("registers", "warps"), [(16, 64), (32, 64), (33, 48), (52, 36), (64, 32), (128, 16), (255, 8)]
)
def test_resident_warps_are_those_of_the_occupancy_calculator(registers: int, warps: int) -> None:
    assert KernelResources("nms", "walk", "80", registers, 0, 0, 0).resident_warps == warps


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_command_reports_every_kernel_of_a_source(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    assert main(["benchmark", "kernels", "--only", "segment_reduce", "--architectures", "80", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert len(found) == 4  # two kernels, two types
    assert {(entry["architecture"], entry["spills"]) for entry in found} == {("80", 0)}
    assert all(1 <= entry["moved"] < 2 for entry in found)


def test_faults_are_spills_and_bytes_without_a_reason() -> None:
    good = KernelResources("nms", "walk", "80", 32, 0, 0, 0, 1.5)
    assert (good.fault, good.reason) == ("", "")
    assert "4 bytes per thread are spilled" in replace(good, spills=4).fault
    assert "moves 2.5 times the least" in replace(good, moved=2.5).fault
    known = replace(good, kernel="mark_pairs<float>", moved=4.9)
    assert (known.fault, known.reason) == ("", kernels.REASONS["nms", "mark_pairs"])


def test_what_cannot_be_compiled_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "count_moved", lambda *_: {})
    monkeypatch.setattr(kernels.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(ValueError, match="no CUDA kernels"):
        kernels.run_kernels(sources=tmp_path)
    with pytest.raises(ValueError, match="no operation 'nmss' has a CUDA kernel, only causal_conv1d"):
        kernels.run_kernels(["nmss"])
    with pytest.raises(ValueError, match="does not compile for sm_80"):
        kernels.run_kernels(["nms"])
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="nvcc, which is not found"):
        kernels.run_kernels()
