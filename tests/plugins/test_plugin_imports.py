"""The finder behind the plugins: modules that are answered, stand-ins, and what follows an import."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pcdet_ext.plugins import imports


@pytest.fixture(autouse=True)
def finder() -> Iterator[None]:
    """The finder as it was, and no module of these tests left."""
    kept = {name: dict(getattr(imports._FINDER, name)) for name in ("provided", "packages", "following")}
    yield
    for name, content in kept.items():
        setattr(imports._FINDER, name, content)
    for name in [n for n in sys.modules if n.partition(".")[0] in ("plugin_probe", "absent_package")]:
        del sys.modules[name]


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `plugin_probe` with a module that imports a compiled one."""
    package = tmp_path / "plugin_probe"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "user.py").write_text("from . import fast_cuda\nREGISTRY = {}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return package


def test_an_answered_module_has_what_is_offered_and_names_what_is_not(probe: Path) -> None:
    imports.provide_module("plugin_probe.fast_cuda", {"double": lambda x: 2 * x})
    fast = importlib.import_module("plugin_probe.user").fast_cuda
    assert fast.double(4) == 8
    later = fast.triple  # as `from plugin_probe.fast_cuda import triple` does
    with pytest.raises(ImportError, match=r"plugin_probe\.fast_cuda\.triple is a compiled operation"):
        later(4)


def test_modules_that_are_not_answered_stay_missing(probe: Path) -> None:
    with pytest.raises(ImportError, match="fast_cuda"):
        importlib.import_module("plugin_probe.user")


@pytest.mark.parametrize("first", [True, False])
def test_what_follows_an_import_follows_at_once_or_later(probe: Path, first: bool) -> None:
    (probe / "user.py").write_text("REGISTRY = {}\n", encoding="utf-8")

    def enter(module: ModuleType) -> None:
        module.REGISTRY["ours"] = 1

    if first:
        importlib.import_module("plugin_probe.user")
    imports.after_import("plugin_probe.user", enter)
    assert importlib.import_module("plugin_probe.user").REGISTRY == {"ours": 1}


def test_an_error_in_the_module_that_is_followed_is_its_own(probe: Path) -> None:
    (probe / "user.py").write_text("1 / 0\n", encoding="utf-8")
    imports.after_import("plugin_probe.user", lambda module: pytest.fail("must not follow"))
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("plugin_probe.user")


def test_a_stand_in_can_be_imported_and_inherited_from_and_says_what_to_install() -> None:
    imports.stand_in("absent_package", "pip install absent")
    module = importlib.import_module("absent_package.deep.inside")

    class Layer(module.Base):  # type: ignore[misc, name-defined]
        pass

    for use in (module.function, module.Base, module.Base.method, Layer):
        with pytest.raises(ImportError, match="absent_package is not installed: pip install absent"):
            use()
    assert not isinstance(3, module.Base)
    assert not imports.is_installed("absent_package")


def test_a_line_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    imports.tell("a line of this test")
    imports.tell("a line of this test")
    assert capsys.readouterr().err == "pcdet_ext: a line of this test\n"


def test_importing_the_plugins_needs_no_other_code_base(root: Path) -> None:
    code = (
        "import sys, pcdet_ext.plugins.openpcdet\n"
        "sys.exit('pcdet' in sys.modules or 'spconv' in sys.modules or 'torch_scatter' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "usage: "), (["nothing_here.py"], "nothing_here.py: no such script"), (["--help"], "usage: ")],
)
def test_the_launcher_says_what_it_needs(arguments: list[str], message: str) -> None:
    from pcdet_ext.plugins.launch import launch

    with pytest.raises(SystemExit, match=message):
        launch(arguments, "usage: …")


def test_the_launcher_runs_scripts_and_modules(probe: Path) -> None:
    (probe / "user.py").write_text("import sys\nprint(__name__, sys.argv[1:], sys.path[0])\n", encoding="utf-8")
    code = "import sys; from pcdet_ext.plugins.launch import launch; launch(sys.argv[1:], 'usage')"

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, check=True, cwd=probe.parent, capture_output=True, text=True).stdout

    assert run("plugin_probe/user.py", "--x", "1") == f"__main__ ['--x', '1'] {probe}\n"
    assert run("-m", "plugin_probe.user", "--x") == f"__main__ ['--x'] {probe.parent}\n"
