"""The check that somebody with a GPU runs: what it does without one, and how it reads what its tools say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pcdet_ext import config


@pytest.fixture(scope="module")
def gpu_check(root: Path) -> ModuleType:
    """benchmarks/gpu_check.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("gpu_check", root / "benchmarks" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu_check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    assert "gpu-check needs a CUDA device" in capsys.readouterr().err


def test_a_step_that_there_is_not_is_named(gpu_check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["--steps", "tests", "bench"])
    assert "invalid choice: 'bench'" in capsys.readouterr().err
    assert gpu_check.STEPS == ("build", "tests", "memcheck", "racecheck", "ops", "models")


def test_reports_of_the_tools_are_read(gpu_check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert False\n"
        "@pytest.mark.skip\ndef test_left(): pass\ndef test_fine(): pass\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--junitxml",
        "report.xml",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
    ]
    subprocess.run([*command, "test_some.py"], cwd=tmp_path, capture_output=True, check=False)
    assert gpu_check.count_tests((tmp_path / "report.xml").read_text()) == {"passed": 2, "failed": 1, "skipped": 1}
    # As NVIDIA's manual of compute-sanitizer has them.
    memcheck = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 2 errors\n"
    assert gpu_check.count_errors(memcheck) == 2
    assert gpu_check.count_errors("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n") == 1
    assert gpu_check.count_errors("========= ERROR SUMMARY: 0 errors\n") == 0
    assert gpu_check.count_errors("========= COMPUTE-SANITIZER\nKilled\n") is None


def test_every_published_model_is_a_configuration(gpu_check: ModuleType) -> None:
    names = gpu_check.published_models()
    assert {"waymo/flatformer", "lion/once_mamba", "kitti/second"} <= set(names)
    assert not any("demo" in name for name in names)
    assert all(config.find(name).exists() for name in names)


def test_failures_and_missing_time_are_outcomes(gpu_check: ModuleType, tmp_path: Path) -> None:
    check = gpu_check.Check(tmp_path, [], time.monotonic() + 600)
    assert check.call("good", sys.executable, "-c", "print('said')") == 0
    assert check.log("good") == "said\n"
    assert check.call("bad", sys.executable, "-c", "raise SystemExit(3)") == 3
    check.end = time.monotonic() + 0.5
    assert check.call("slow", sys.executable, "-c", "import time; time.sleep(60)") == 124
    assert (gpu_check._outcome(3, "see bad.log").status, gpu_check._outcome(124, "").why[:16]) == (
        "failed",
        "no time was left",
    )
    check.end = time.monotonic() - 1
    check.run("tests")
    assert check.outcomes["tests"].status == "skipped"


def test_the_file_names_the_hardware(gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "describe", lambda: {"gpu": "some"})
    check = gpu_check.Check(tmp_path, [], time.monotonic() + 60.0)
    check.run("models")  # of none
    gpu_check.write(tmp_path / "out.json", check)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["hardware"] == {"gpu": "some"}
    assert written["steps"]["models"]["status"] == "passed"
