"""Where the numbers of a training go, and what it says at its end."""

from __future__ import annotations

import csv
import importlib.machinery
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from toy_detector import toy_inputs
from toy_runs import run, stop_at

from pcdet_ext import checkpoint
from pcdet_ext.config import ConfigError
from pcdet_ext.engine.progress import Progress
from pcdet_ext.engine.records import CsvTables, JsonLines, Wandb, WandbConfig, keep_whole_lines, require_wandb
from pcdet_ext.engine.run_folder import LAST
from pcdet_ext.engine.summary import summary


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [entry for entry in found if entry.pop("kind") == kind]


def test_tables_hold_what_the_log_holds(tmp_path: Path) -> None:
    assert not run(tmp_path, stop_at(toy_inputs(), 4))
    assert run(tmp_path, resume=checkpoint.read(tmp_path / LAST))
    for kind in ("train", "test"):
        numbers = [{name: float(value) for name, value in row.items()} for row in rows(tmp_path / f"{kind}.csv")]
        assert numbers == entries(tmp_path, kind)
    assert list(rows(tmp_path / "train.csv")[0]) == ["step", "epoch", "centre", "total", "grad_norm", "lr"]


def test_steps_taken_again_take_the_place_of_the_lines_that_were_there(tmp_path: Path) -> None:
    for first, values in ((1, (1.0, 2.0, 3.0)), (2, (5.0, 6.0))):  # the second time from a checkpoint after step 1
        table = CsvTables(tmp_path)
        for step, value in enumerate(values, first):
            table.add("train", step, {"a": value}, {"epoch": 0})
        table.close()
    assert [(row["step"], row["a"]) for row in rows(tmp_path / "train.csv")] == [
        ("1", "1.0"),
        ("2", "5.0"),
        ("3", "6.0"),
    ]


def test_a_new_number_gets_a_column(tmp_path: Path) -> None:
    table = CsvTables(tmp_path)
    table.add("test", 1, {"a": 1.0}, {})
    table.add("test", 2, {"b, c": 2.0}, {})
    expected = [{"step": "1", "a": "1.0", "b, c": ""}, {"step": "2", "a": "", "b, c": "2.0"}]
    assert rows(tmp_path / "test.csv") == expected


@pytest.mark.parametrize("left", ["", "half a line", "a whole line\n", "a whole line\nand half"])
def test_half_lines_go(tmp_path: Path, left: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(left)
    keep_whole_lines(path)
    assert path.read_text() == ("a whole line\n" if "\n" in left else "")


def test_what_a_full_disk_cut_off_does_not_spoil_what_follows(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    (tmp_path / "train.csv").write_text("step,a\n1,0.5\n2,0.")
    for record in (JsonLines(tmp_path / "log.jsonl"), CsvTables(tmp_path)):
        record.add("train", 2, {"a": 0.25}, {})
        record.close()
    assert entries(tmp_path, "train") == [{"step": 1}, {"step": 2, "a": 0.25}]
    assert rows(tmp_path / "train.csv") == [{"step": "1", "a": "0.5"}, {"step": "2", "a": "0.25"}]


class FakeRun:
    """What `wandb.init` gives."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module in the place of wandb, which keeps what it is called with in `calls`, and its runs in `runs`."""
    module: Any = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.Error = type("Error", (Exception,), {})
    module.calls, module.runs = [], []

    def init(**settings: Any) -> FakeRun:
        module.calls.append(settings)
        module.runs.append(FakeRun())
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases_gets_the_settings_and_all_numbers(tmp_path: Path, wandb: Any) -> None:
    settings = WandbConfig(project="lidar", tags=("small",), mode="offline")
    require_wandb(settings)
    assert not run(tmp_path, stop_at(toy_inputs(), 4), wandb=settings)
    assert run(tmp_path, resume=checkpoint.read(tmp_path / LAST), wandb=settings)
    first, second = wandb.calls
    assert first == second  # with the same id, so that the run is continued
    assert (first["project"], first["tags"], first["mode"]) == ("lidar", ["small"], "offline")
    assert (first["dir"], first["resume"], first["config"]) == (str(tmp_path), "allow", {"model": {"name": "Toy"}})
    logged = [entry for a_run in wandb.runs for entry in a_run.logged]
    trained = [(step, values["train/total"]) for step, values in logged if "train/total" in values]
    assert trained == [(entry["step"], entry["total"]) for entry in entries(tmp_path, "train")]
    assert [values["test/score"] for _, values in logged if "test/score" in values] == [
        entry["score"] for entry in entries(tmp_path, "test")
    ]
    assert all(a_run.finished for a_run in wandb.runs)


def test_weights_and_biases_that_cannot_begin_is_refused(
    tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**settings: Any) -> None:
        raise wandb.Error("no API key")

    wandb.init = refuse
    with pytest.raises(ConfigError, match=r"train\.wandb: no API key"):
        Wandb(tmp_path, WandbConfig(project="lidar"), {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_wandb(None)
    with pytest.raises(ConfigError, match=r"train\.wandb: the package is missing: pip install 'pcdet_ext\[wandb\]'"):
        require_wandb(WandbConfig(project="lidar"))


def test_the_end_names_the_best_checkpoint_and_how_to_test_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my run"
    assert run(folder)
    best = checkpoint.read(folder / "best.ckpt")["progress"]
    shown = capsys.readouterr().err
    assert "trained for 3 epochs, 9 steps" in shown
    assert f"best score {best['best']:.4g} after epoch {best['best_epoch']}: {folder / 'best.ckpt'}" in shown
    assert f"to test it: pcdet test '{folder / 'best.ckpt'}'" in shown
    assert "never evaluated; the last weights" in summary(Progress(epoch=1), tmp_path)
