"""The options of trackers stand in the help of the command and in the documentation, all of them and no others."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from pcdet_ext.cli.track import BY_CLASS, OPTIONS, TRACKERS
from pcdet_ext.tracking import graph_training, trajectory_fit  # noqa: F401  (registers two trackers)
from pcdet_ext.tracking.base import TRACKERS as KNOWN

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tracking.md"


@pytest.mark.parametrize("tracker", TRACKERS)
def test_options_are_listed(tracker: str) -> None:
    own = list(inspect.signature(KNOWN.get(TRACKERS[tracker])).parameters)
    assert OPTIONS[tracker].split(", ") == own
    assert set(BY_CLASS[tracker]) <= set(own)
    (row,) = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{tracker}` |"))
    assert re.findall(r"`(\w+)`", row.split("|")[3]) == own
