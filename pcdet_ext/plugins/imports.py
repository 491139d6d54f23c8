"""Modules that another code base asks for and that are not there, and what is done when one of its modules is imported.

Both work through one finder at the head of `sys.meta_path` (PEP 302, PEP 451), so that no file of the other code base
is touched and it does not matter whether it is imported before or after.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

Fill = Callable[[ModuleType], None]
_SAID: set[str] = set()


def tell(line: str) -> None:
    """Tell the user once, in a line on standard error, what was done for another code base."""
    if line not in _SAID:
        _SAID.add(line)
        print(f"pcdet_ext: {line}", file=sys.stderr, flush=True)


class _Filled(Loader):
    """Makes an empty module and lets a function fill it."""

    def __init__(self, fill: Fill) -> None:
        self.fill = fill

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        self.fill(module)


class _ThenActing(Loader):
    """Another loader, and then what was asked for to follow."""

    def __init__(self, loader: Loader, actions: Sequence[Fill]) -> None:
        self.loader, self.actions = loader, actions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        for action in self.actions:
            action(module)

    def __getattr__(self, name: str) -> Any:  # get_code, get_source, … as runpy and tracebacks ask for
        return getattr(self.loader, name)


class _Finder(MetaPathFinder):
    """Knows the modules that are answered, whole packages of stand-ins, and what follows an import."""

    def __init__(self) -> None:
        self.provided: dict[str, Fill] = {}
        self.packages: dict[str, Fill] = {}
        self.following: dict[str, list[Fill]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self.provided:
            return ModuleSpec(fullname, _Filled(self.provided[fullname]), origin="pcdet_ext")
        package = fullname.partition(".")[0]
        if package in self.packages:
            return ModuleSpec(fullname, _Filled(self.packages[package]), origin="pcdet_ext", is_package=True)
        if fullname not in self.following:
            return None
        found = self._elsewhere(fullname, path, target)
        if found is not None and found.loader is not None:
            found.loader = _ThenActing(found.loader, self.following[fullname])
        return found

    def _elsewhere(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (found := finder.find_spec(fullname, path, target)) is not None:
                return found
        return None


_FINDER = _Finder()


def _finder() -> _Finder:
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    return _FINDER


def provide_module(name: str, content: Mapping[str, Any]) -> None:
    """From now on `import name` gives a module with this content.

    What else is asked of it raises ImportError when it is called, by name, and not before.
    """

    def fill(module: ModuleType) -> None:
        module.__dict__.update(content)
        module.__dict__["__getattr__"] = lambda attribute: _stand_in(module.__name__, attribute, _not_offered)

    _finder().provided[name] = fill


def stand_in(package: str, advice: str) -> None:
    """From now on a package that is not installed can be imported, with all modules in it; its use is what raises.

    Args:
        package: top-level name.
        advice: what the ImportError says to do, for example "pip install kornia".
    """

    def message(name: str) -> str:
        return f"{name} is used, but {package} is not installed: {advice}"

    def fill(module: ModuleType) -> None:
        module.__dict__["__getattr__"] = lambda attribute: _stand_in(module.__name__, attribute, message)

    _finder().packages[package] = fill


def _not_offered(name: str) -> str:
    return f"{name} is a compiled operation of another code base that pcdet_ext has no counterpart of: compile it there"


class _Missing(type):
    """A class in place of whatever is missing: fit to be imported, inherited from and asked for its attributes."""

    message: Callable[[str], str]
    place: str

    def __getattr__(cls, attribute: str) -> Any:
        return _stand_in(cls.place, attribute, cls.message)

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise ImportError(cls.message(cls.place))


def _stand_in(place: str, attribute: str, message: Callable[[str], str]) -> Any:
    """What a module without content has under a name; dunder names are not there, so that Python finds its way."""
    if attribute.startswith("__"):
        raise AttributeError(f"module {place!r} has no attribute {attribute!r}")
    body = {"place": f"{place}.{attribute}", "message": staticmethod(message)}
    return _Missing(attribute, (), body)


def after_import(name: str, action: Fill) -> None:
    """Call `action` with a module as soon as it is imported: now, if it is already."""
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        action(module)
        return
    _finder().following.setdefault(name, []).append(action)


def is_installed(name: str) -> bool:
    """Whether a module can be found; packages above it are imported, it is not, and a stand-in does not count."""
    if name.partition(".")[0] in _FINDER.packages or name in _FINDER.provided:
        return False
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def is_provided(name: str) -> bool:
    """Whether a module is one of those that `provide_module` gives."""
    return name in _FINDER.provided


def loads(name: str, place: Path) -> bool:
    """Whether a compiled module was built at a place, a path without ending, and loads with the torch that is here."""
    built = [Path(f"{place}{suffix}") for suffix in EXTENSION_SUFFIXES if Path(f"{place}{suffix}").is_file()]
    spec = importlib.util.spec_from_file_location(name, built[0]) if built else None
    if spec is None:
        return False
    try:
        importlib.util.module_from_spec(spec)
    except ImportError as error:
        tell(f"{built[0].name} does not load with torch {torch.__version__}: {error}")
        return False
    return True
