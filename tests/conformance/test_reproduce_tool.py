"""tools/reproduce.py: what it finds, what it says, and that it cannot be fooled."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pcdet_ext.conformance import reproduce as module
from pcdet_ext.conformance.reproduce import reproduce, summary, write_json

CASE = "vfe_pillar_dist_nonorm"


@pytest.fixture
def case(shared: Path, tmp_path: Path) -> Path:
    """A copy of a small case, in a folder named like its system."""
    folder = tmp_path / "openpcdet"
    folder.mkdir()
    for suffix in (".json", ".npz"):
        shutil.copy(shared / "golden" / "openpcdet" / f"{CASE}{suffix}", folder)
    return folder / f"{CASE}.json"


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_array(path: Path, key: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(path.with_suffix(".npz")) as archive:
        arrays = dict(archive.items())
    arrays[key] = change(arrays[key])
    np.savez(path.with_suffix(".npz"), **arrays)


def run_tool(root: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, root / "tools" / "reproduce.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def test_tool_passes_and_writes_json(root, case, tmp_path):
    out = tmp_path / "out" / "report.json"
    result = run_tool(root, case, "--grads", "--json", out)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 of 1 cases pass" in result.stdout.splitlines()[-1]
    assert json.loads(out.read_text())["pass"] is True


def test_tool_fails_on_a_kind_without_a_runner(root, case, tmp_path):
    change_json(case, kind="teleport")
    out = tmp_path / "report.json"
    result = run_tool(root, case, "--json", out)
    assert result.returncode == 1
    assert "not covered" in result.stdout.splitlines()[0]
    assert json.loads(out.read_text())["cases"][0]["status"] == "not covered"


def test_one_changed_parameter_is_seen(case):
    change_array(
        case, "param.pfn_layers.0.linear.weight", lambda w: w + 0.01 * (np.arange(w.size) == 3).reshape(w.shape)
    )
    (report,) = reproduce([case])
    assert report.status == "fail"
    assert report.worst > 1


def test_one_changed_expected_value_is_seen(case):
    change_array(case, "out.pillar_features", lambda x: np.where(np.arange(x.size).reshape(x.shape) == 77, x + 0.01, x))
    assert [r.status for r in reproduce([case])] == ["fail"]


def test_one_changed_gradient_is_seen_with_grads_alone(shared, tmp_path):
    for suffix in (".json", ".npz"):
        shutil.copy(shared / "golden" / "openpcdet" / f"bev_backbone_half{suffix}", tmp_path)
    path = tmp_path / "bev_backbone_half.json"
    change_array(path, "grad.param.blocks.0.1.weight", lambda g: g * 1.01)
    assert [r.status for r in reproduce([path])] == ["pass"]
    assert [r.status for r in reproduce([path], grads=True)] == ["fail"]


def test_folders_are_searched_to_any_depth(case, tmp_path):
    evaluator = tmp_path / "eval_x" / "small"
    evaluator.mkdir(parents=True)
    (evaluator / "expected.json").write_text("{}")
    (tmp_path / "manifest.json").write_text("{}")
    reports = [(r.name, r.status) for r in reproduce([tmp_path])]
    assert reports == [("eval_x/small", "not covered"), (f"openpcdet/{CASE}", "pass")]


def test_evaluator_cases_are_run_by_folder_or_file(shared, tmp_path):
    folder = shared / "golden" / "eval_kitti" / "perfect"
    assert [r.status for r in reproduce([folder, folder / "expected.json"])] == ["pass", "pass"]
    damaged = tmp_path / "eval_kitti" / "damaged"
    damaged.mkdir(parents=True)
    (damaged / "expected.json").write_text("{}")
    (report,) = reproduce([damaged])
    assert report.status == "fail"
    assert str(damaged) in report.message


def test_npz_means_its_case_and_repeated_paths_run_once(case):
    assert [r.status for r in reproduce([case, str(case)])] == ["pass"]
    assert [r.status for r in reproduce([case.with_suffix(".npz")])] == ["pass"]


def damage(name: str) -> Callable[[Path], Path]:
    def broken_json(case: Path) -> Path:
        case.write_text("{not json")
        return case

    def list_json(case: Path) -> Path:
        case.write_text("[]")
        return case

    def truncated_npz(case: Path) -> Path:
        npz = case.with_suffix(".npz")
        npz.write_bytes(npz.read_bytes()[:-100])
        return case

    def no_npz(case: Path) -> Path:
        case.with_suffix(".npz").unlink()
        return case

    def missing(case: Path) -> Path:
        return case.with_name("nothing.json")

    def other_file(case: Path) -> Path:
        return Path(__file__)

    def empty_folder(case: Path) -> Path:
        (case.parent / "empty").mkdir()
        return case.parent / "empty"

    return locals()[name]


@pytest.mark.parametrize(
    "name", ["broken_json", "list_json", "truncated_npz", "no_npz", "missing", "other_file", "empty_folder"]
)
def test_what_cannot_be_used_is_a_failure_that_names_it(case, name):
    path = damage(name)(case)
    (report,) = reproduce([path])
    assert report.status == "fail"
    assert str(path) in report.message


def test_no_case_at_all_does_not_pass(tmp_path):
    assert not module.all_pass([])
    assert not module.all_pass(reproduce([tmp_path]))


def test_infinite_errors_become_null(case, tmp_path):
    change_array(case, "out.pillar_features", lambda x: np.full_like(x, np.inf))
    reports = reproduce([case])
    write_json(reports, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["cases"][0]["worst"] is None
    assert summary(reports).startswith("0 of 1 cases pass")


def test_threads_are_restored(case):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        reproduce([case])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_every_case_module_is_loaded(root):
    files = (root / "pcdet_ext" / "conformance" / "cases").glob("*.py")
    with_runners = {p.stem for p in files if "@runs(" in p.read_text(encoding="utf-8")}
    assert set(module.CASE_MODULES) == with_runners | {"evaluators"}  # whose cases are folders
