"""`pcdet export` from a checkout, installed or not: `python tools/export.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pcdet_ext.cli.command import console

if __name__ == "__main__":
    console("export")
