"""The page about one's own data: its commands and its Python run one after the other on a small made-up folder."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from custom_folder import make_folder

from pcdet_ext.cli.command import main
from pcdet_ext.data.custom import Settings, read_labels

HERE = ["train.num_workers=0", "test.num_workers=0"]  # no processes that load: frames are few


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of the page's fenced blocks, in their order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_everything_on_the_page_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path / "my_data", 10)
    monkeypatch.chdir(tmp_path)
    found = blocks((root / "docs" / "custom_data.md").read_text())
    commands = [line for language, text in found if language == "sh" for line in text.splitlines()]
    assert [shlex.split(c)[1] for c in commands] == [
        "prepare", "train", "test", "test", "evaluate", "visualize", "visualize",
    ]  # fmt: skip
    for language, text in found:
        if language == "python":
            exec(compile(text, "custom_data.md", "exec"), {})
        elif language == "sh":
            for line in text.splitlines():
                program, command, *rest = shlex.split(line)
                assert program == "pcdet"
                assert main([command, *rest, *(HERE if command in ("train", "test") else [])]) == 0, line
    output = capsys.readouterr().out
    assert output.count("AP40 in percent") >= 3
    assert re.search(r"Fork lift +0\.50 .*\nPerson +0\.30|Person +0\.30 .*\nFork lift +0\.50", output)
    assert json.loads(Path("first.json").read_text())["frames"] == 1
    for name in ("labels.png", "found.html", "plots/Person.png"):
        assert Path(name).stat().st_size > 1000
    np.testing.assert_allclose(
        read_labels("my_labels/000.txt").boxes, [[4.1, 2.0, -0.4, 3.2, 1.4, 2.2, 0.3]], rtol=1e-6
    )


def test_the_settings_on_the_page_are_those_there_are(root: Path) -> None:
    found = [
        yaml.safe_load(t)
        for language, t in blocks((root / "docs" / "custom_data.md").read_text())
        if language == "yaml"
    ]
    assert set(found[0]) == set(Settings.__dataclass_fields__)
    for content in found:
        Settings(**content)
    stated, usual = Settings(**found[0]), Settings()
    same = ("heading_unit", "velocity", "max_sweeps", "val_share")
    assert [getattr(stated, name) for name in same] == [getattr(usual, name) for name in same]
