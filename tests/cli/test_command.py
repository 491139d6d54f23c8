"""The command `pcdet`: finding subcommands, exit codes, one line for expected errors, and the doors in tools/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pcdet_ext
from pcdet_ext.checkpoint import CheckpointError, MissingCheckpointError
from pcdet_ext.cli import command
from pcdet_ext.cli.command import COMMANDS, main
from pcdet_ext.cli.errors import FailureError, UsageError, wrong_use
from pcdet_ext.config import ConfigError
from pcdet_ext.files import DataError, MissingFileError

TOOLS = {
    "train": "train",
    "test": "test",
    "evaluate": "evaluate",
    "visualize": "visualize",
    "prepare_data": "prepare",
    "simulate_data": "simulate",
    "convert_checkpoint": "convert",
    "export": "export",
    "benchmark": "benchmark",
    "reproduce": "reproduce",
}


def run(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process in `folder` that knows of the checkout only what its environment says."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command_line = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command_line, cwd=folder, env=inherited | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_are_the_commands_from_any_folder(root: Path, tmp_path: Path, tool: str) -> None:
    done = run(tmp_path, root / "tools" / f"{tool}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: pcdet {TOOLS[tool]} ")
    wrong = run(tmp_path, root / "tools" / f"{tool}.py", "--no-such-option")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_every_tool_is_tried(root: Path) -> None:
    assert {path.stem for path in (root / "tools").glob("*.py")} == set(TOOLS)


def test_help_is_quick_to_load(root: Path) -> None:
    code = "import sys; from pcdet_ext.cli.command import main; main(sys.argv[1:])"
    for arguments in (["--help"], ["train", "--help"], ["test", "--help"]):
        done = run(root, "-X", "importtime", "-c", code, *arguments)
        assert done.returncode == 0
        assert " torch\n" not in done.stderr


def test_the_module_is_the_command(root: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "pcdet_ext", "--version", PYTHONPATH=str(root))
    assert (done.returncode, done.stdout) == (0, f"pcdet_ext {pcdet_ext.__version__}\n")
    listed = run(tmp_path, "-m", "pcdet_ext", "--help", PYTHONPATH=str(root)).stdout
    assert all(f"  {name} " in listed for name in COMMANDS)
    wrong = run(tmp_path, "-m", "pcdet_ext", "train", "kitti/dmeo", PYTHONPATH=str(root))
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("pcdet train: kitti/dmeo: no such configuration file")
    assert wrong.stderr.endswith("did you mean 'kitti/demo'?\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a command"),
        (["trian"], "no command is named 'trian'; did you mean 'train'?"),
        (["--verbose"], "no command is named '--verbose'"),
        (["train"], "the following arguments are required: config"),
        (["test", "a.ckpt", "--devise", "cpu"], "unrecognized arguments: --devise"),
        (["train", "kitti/demo", "--out", "$NO_SUCH_VARIABLE/x"], "no environment variable 'NO_SUCH_VARIABLE'"),
    ],
)
def test_wrong_command_lines_end_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a"), 2),
        (UsageError("a"), 2),
        (MissingFileError("a"), 2),
        (MissingCheckpointError("a"), 2),
        (FileNotFoundError("a"), 2),
        (FileExistsError("a"), 2),
        (CheckpointError("a"), 1),
        (DataError("a"), 1),
        (FailureError("a"), 1),
        (OSError("a"), 1),
        (ImportError("a"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_expected_errors_are_one_line_and_a_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("pcdet_ext.cli.info.run", fail)
    assert main(["info"]) == code
    assert capsys.readouterr().err == f"pcdet info: {'interrupted' if code == 130 else 'a'}\n"


def test_errors_that_nobody_expects_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcdet_ext.cli.info.run", lambda _: {}["no such key"])
    with pytest.raises(KeyError):
        main(["info"])
    with pytest.raises(UsageError, match="no number"), wrong_use():
        raise ValueError("no number")


def test_every_command_has_a_module_that_says_what_it_does() -> None:
    for name in COMMANDS:
        module = command.import_module(f"pcdet_ext.cli.{name}")
        assert module.__doc__
        assert callable(module.add_arguments)
        assert callable(module.run)


def test_a_lack_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(options: object) -> int:
        raise MemoryError

    monkeypatch.setattr("pcdet_ext.cli.info.run", run)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == "pcdet info: out of memory\n"
