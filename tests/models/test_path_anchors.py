"""Anchors of paths from files: damaged ones are refused by their name, before memory is taken for what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.models.heads.paths import anchors_of

SHAPE = (2, 3, 4, 2)
HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 4), }"


def test_anchors_come_back_from_a_file(tmp_path: Path) -> None:
    wanted = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    np.save(tmp_path / "anchors.npy", wanted)
    assert np.array_equal(anchors_of(tmp_path / "anchors.npy", SHAPE, "anchors").numpy(), wanted)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x02\x00" + len(HUGE).to_bytes(4, "little") + HUGE, b"x" * 99])
def test_damaged_files_of_anchors_are_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "anchors.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"anchors: .*anchors\.npy cannot be read as a \.npy file"):
        anchors_of(tmp_path / "anchors.npy", SHAPE, "anchors")
