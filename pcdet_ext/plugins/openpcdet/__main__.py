"""python -m pcdet_ext.plugins.openpcdet SCRIPT …: run a script of OpenPCDet, unedited, with this library in it."""

from __future__ import annotations

import sys
from pathlib import Path

from pcdet_ext.plugins.launch import launch
from pcdet_ext.plugins.openpcdet import package_folder, prepare

USAGE = """usage: python -m pcdet_ext.plugins.openpcdet SCRIPT [ARGUMENTS]
       python -m pcdet_ext.plugins.openpcdet -m MODULE [ARGUMENTS]
runs, for example, train.py or test.py (in the folder tools), or the module pcdet.datasets.kitti.kitti_dataset"""


def _find_package(arguments: list[str]) -> None:
    """Put the checkout that a script belongs to on the path, as its own `_init_path` does from the folder tools."""
    places = [Path.cwd(), *Path.cwd().parents[:1]]
    if arguments and arguments[0] != "-m":
        places += list(Path(arguments[0]).resolve().parents[:3])
    for place in places:
        if package_folder() is None and (place / "pcdet" / "__init__.py").is_file():
            sys.path.insert(1, str(place))
    if package_folder() is None:
        raise SystemExit(f"OpenPCDet's package pcdet was not found in {places[0]} or beside the script\n{USAGE}")


if __name__ == "__main__":
    _find_package(sys.argv[1:])
    prepare()
    launch(sys.argv[1:], USAGE)
