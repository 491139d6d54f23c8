"""Cases of published data pipelines that need no data set, and the generator that gives their recorded draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.conformance.cases.data_common import RecordedDraws
from pcdet_ext.conformance.golden import run_case

CASES = ("cbgs_uneven", "db_sampling", "db_sampling_tanh", "fade", "processor", "processor_mask_z")


@pytest.mark.parametrize("name", CASES)
def test_published_pipelines_are_reproduced(shared: Path, name: str) -> None:
    report = run_case(shared / "golden" / "data" / f"{name}.json")
    assert report.status == "pass", report.line()


def test_recorded_draws_must_fit() -> None:
    members = np.array([3, 5, 8])
    assert RecordedDraws([np.array([2, 2])]).choice(members, 2).tolist() == [8, 8]
    assert RecordedDraws([np.array([8, 3])], places=False).choice(members, 2, replace=False).tolist() == [8, 3]
    for rng, options, message in (
        (RecordedDraws([]), {}, "was not recorded"),
        (RecordedDraws([np.array([1])]), {}, "where 1 were recorded"),
        (RecordedDraws([np.array([1, 3])]), {}, "a draw among 3 has the numbers 1 to 3"),
        (RecordedDraws([np.array([8, 8])], places=False), {"replace": False}, "a number twice"),
        (RecordedDraws([np.array([8, 4])], places=False), {}, "were not to be drawn"),
    ):
        with pytest.raises(ValueError, match=message):
            rng.choice(members, 2, **options)
    with pytest.raises(ValueError, match="of other numbers"):
        RecordedDraws([], [np.array([1, 2])]).shuffle(np.array([1, 3]))
