"""Every page: links lead somewhere, commands can be parsed, Python runs, YAML can be read."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from test_house import FLOORS

import pcdet_ext
from pcdet_ext import config
from pcdet_ext.cli.command import COMMANDS, WITH_SUBCOMMANDS
from pcdet_ext.files import DataError

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "ops/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
# The file behind each script of tools/; benchmark has subcommands.
TOOLS = {"prepare_data": "prepare", "simulate_data": "simulate", "convert_checkpoint": "convert"}
OTHER_PROGRAMS = {
    "cd",
    "cp",
    "ln",
    "mkdir",
    "rm",
    "pip",
    "git",
    "sudo",
    "apt-get",
    "srun",
    "sbatch",
    "kubectl",
    "pre-commit",
}


@pytest.fixture(scope="module")
def links() -> ModuleType:
    """The module that the site takes links with."""
    spec = importlib.util.spec_from_file_location("site_links", ROOT / "tools" / "site" / "links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in some languages, without their fences."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for language, content in found if language in languages]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str, links: ModuleType) -> None:
    path = ROOT / page
    for target in links.targets(path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        there = path.parent / name if name else path
        assert there.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in links.anchors(there.read_text(encoding="utf-8")), f"{page}: {target}"


def test_links_are_found_and_code_is_none(links: ModuleType) -> None:
    text = (
        "[a](b.md#c-d) ![x](p.png)\n`[no](link)` [`f(x)`](g.md)\n```\n[no](link)\n```\n[out](https://a.b)\n## C `d`!\n"
    )
    assert links.targets(text) == ["b.md#c-d", "p.png", "g.md"]
    assert links.anchors(text) == {"c-d"}
    assert links.replace_targets(text, lambda target: "z").count("](z)") == 4  # that in a line of code too


def test_pages_of_the_site_stand_for_their_files(root: Path, links: ModuleType) -> None:
    for name in (
        "docs/idea.md",
        "CONTRIBUTING.md",
        "ops/README.md",
        "configs/kitti/demo.yaml",
        "README.md",
        "docs/detections.png",
    ):
        assert links.source_of(root, links.site_uri(root, root / name)) == root / name
    assert links.site_uri(root, root / "no_such_file.md") is None
    assert links.site_uri(root, root / "docs" / ".." / ".." / "elsewhere") is None


def command_lines(page: str) -> Iterator[list[str]]:
    """Words of each command of a page, comments and what starts the interpreter taken off."""
    for block in blocks(page, "sh", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"\w+=\$\(", line):  # a variable of the shell
                continue
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a subcommand."""
    assert command in COMMANDS, f"no command is named {command}"
    parser = argparse.ArgumentParser(prog=command, exit_on_error=False)
    import_module(f"pcdet_ext.cli.{command}").add_arguments(parser)
    return parser


def subcommand(words: list[str]) -> list[str] | None:
    """The arguments of `pcdet` that a command line stands for; None where it starts another program."""
    program, *rest = words
    name = program.rpartition("/")[2]
    if name == "pcdet":
        return rest
    if name in ("python", "python3") and rest[:2] == ["-m", "pcdet_ext"]:
        return rest[2:]
    if name in ("python", "python3") and rest and re.fullmatch(r"tools/\w+\.py", rest[0]):
        stem = Path(rest[0]).stem
        return [TOOLS.get(stem, stem), *rest[1:]]
    return None


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh", "bash")])
def test_commands_can_be_parsed(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in command_lines(page):
        arguments = subcommand(words)
        if arguments is not None:
            check_command(arguments)
        elif words[0] == "make":
            assert {w for w in words[1:] if re.fullmatch(r"[\w-]+", w)} <= targets, words
        elif words[0].rpartition("/")[2] in ("python", "python3", "torchrun"):
            check_script(page, words[1:])
        elif words[0] == "sh":
            assert (ROOT / words[1]).is_file(), f"{page}: {words[1]}"
        else:
            assert words[0] in OTHER_PROGRAMS, f"{page}: nothing checks {shlex.join(words)}"


def check_command(arguments: list[str]) -> None:
    """Parse the arguments of `pcdet`, and find the configuration that they name where it comes with the package."""
    command, *words = arguments
    if command.startswith("--"):
        return
    parser = parser_of(command)
    parse = parser.parse_args if command in WITH_SUBCOMMANDS else parser.parse_intermixed_args
    options = parse(words)
    name = str(getattr(options, "config", ""))
    if re.fullmatch(r"(?:configs/)?(kitti|waymo|nuscenes|lion|mixed|semantickitti|place_recognition|custom)/.*", name):
        config.load(ROOT / name if name.startswith("configs/") else name)


def check_script(page: str, words: list[str]) -> None:
    """What else Python runs: a module or file of this project exists; other code bases' scripts are their own."""
    if "-m" in words:
        module = words[words.index("-m") + 1]
        top = module.partition(".")[0]
        assert top not in ("pcdet_ext",) or importlib.util.find_spec(module), f"{page}: {module}"
        return
    script = next((w for w in words if w.endswith(".py")), "")
    ours = script.startswith(("examples/", "tools/", "benchmarks/"))
    assert not ours or (ROOT / script).is_file(), f"{page}: {script}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_yaml_can_be_read(page: str) -> None:
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block.replace(", …", "").replace("…", "x")) is not None


Prepare = Callable[[Path, pytest.MonkeyPatch], dict[str, Any]]


def own_test(page: str) -> Path | None:
    """The test file that runs the Python of a page with the data that it needs."""
    name = Path(page).name
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if f'"{name}"' in text and re.search(r"exec\(|subprocess\.run\(", text) and path != Path(__file__):
            return path
    return None


def prepare_tracking(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A detector, and a drive of three clouds."""
    detector = pcdet_ext.build("kitti/demo", ["data.point_cloud_range=[0, -8, -3, 16, 8, 1]"], "cpu")
    rng = np.random.default_rng(0)
    cloud = rng.uniform([0, -8, -2, 0], [16, 8, 0, 1], (500, 4)).astype(np.float32)
    return {"detector": detector, "drive": [(cloud, np.eye(4), 0.1 * i) for i in range(3)]}


PREPARATIONS: dict[str, Prepare] = {"docs/tracking.md": prepare_tracking}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page not in PREPARATIONS and own_test(page) is not None:
        return
    prepare = PREPARATIONS.get(page, lambda folder, patch: {})
    names = prepare(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        if "…" in re.sub(r"#.*", "", block):  # an excerpt: it has to be Python all the same
            ast.parse(re.sub(r",?[ \t]*…", "", block))
            continue
        exec(compile(block, page, "exec"), names)


def test_what_is_checked_can_fail(tmp_path: Path) -> None:
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        check_command(["train", "kitti/demo", "--no-such-option"])
    with pytest.raises((config.ConfigError, DataError)):
        check_command(["train", "kitti/no_such_model"])
    with pytest.raises(AssertionError):
        check_command(["no-such-command"])


def test_every_room_stands_in_the_architecture(root: Path) -> None:
    page = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d) \| (.+?) \|", page, re.MULTILINE))
    stated = {name: int(floor) for floor, names in rows.items() for name in re.findall(r"`(\w+)`", names)}
    assert stated == {name: floor for name, floor in FLOORS.items() if name != "__main__"}


def test_changelog_and_citation_are_of_this_version(root: Path) -> None:
    newest = re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert newest is not None
    assert newest[1] == citation["version"] == pcdet_ext.__version__


def test_commits_are_checked_with_tools_that_are_there(root: Path) -> None:
    hooks = yaml.safe_load((root / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    lint = (root / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    for tool in ("ruff check", "ruff format", "mypy"):
        assert f"$(BIN)/{tool}" in lint
        assert any(hook["entry"].startswith(f".venv/bin/{tool}") for hook in hooks)
