"""Modules of the user's that a configuration names in `imports:`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcdet_ext.config.construction import setting
from pcdet_ext.config.nodes import ConfigError, Node


def import_modules(settings: Mapping[str, Any], folder: str | Path = ".") -> None:
    """Import the modules that the `imports:` of a trusted configuration names. This runs their code.

    Modules that Python finds anyway come first; then those in the folder of the file that names them, in `folder`, and
    in the working directory, which are added to the end of `sys.path`. Raises ConfigError for a module that is not
    there; an error inside a module is raised as it is.
    """
    names, where = _module_names(settings)
    if not names:
        return
    source = Path(getattr(settings, "sources", {}).get("imports", "").rpartition(":")[0])
    folders = [source.parent, Path(folder)] if source.is_file() else [Path(folder)]
    places = list(dict.fromkeys(str(place.resolve()) for place in (*folders, Path.cwd())))
    sys.path += [place for place in places if place not in sys.path]
    importlib.invalidate_caches()
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and f"{name}.".startswith(f"{error.name}."):
                raise ConfigError(f"{where}: there is no module {name!r}, neither in {', '.join(places)}") from error
            raise ConfigError(f"{where}: module {name!r} cannot be imported: {error}") from error


def require_modules(settings: Mapping[str, Any]) -> None:
    """Check that the modules which `imports:` names are imported already, and import none.

    For configurations that come from files which must not run code, as checkpoints. Raises ConfigError otherwise.
    """
    names, where = _module_names(settings)
    for name in names:
        if name not in sys.modules:
            raise ConfigError(
                f"{where}: the module {name!r} is needed and is not imported, because that would run its code. If you "
                f"trust it, import it first or say so (imports=True, or --imports on the command line)"
            )


def _module_names(settings: Mapping[str, Any]) -> tuple[list[str], str]:
    """What `imports:` lists, and where it stands."""
    names = setting(settings, "imports", list[str], [])
    where = settings.where("imports") if isinstance(settings, Node) else "imports"
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
            raise ConfigError(f"{where}: {name!r} is no name of a module; write it as in `import my_package.my_mixer`")
    return names, where
