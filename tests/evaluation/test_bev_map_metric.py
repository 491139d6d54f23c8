"""Map segmentation: counts against plain comparisons, and what is said about wrong files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pcdet_ext.cli.command import main
from pcdet_ext.evaluation.bev_map import CLASSES, THRESHOLDS, BevMapCounts, evaluate

PROBABILITIES = st.floats(-0.5, 1.5, width=32) | st.sampled_from([np.float32(t) for t in THRESHOLDS])
PROBABILITIES = PROBABILITIES | st.sampled_from([float("nan"), float("inf"), float("-inf")])


@settings(deadline=None, max_examples=50)
@given(
    arrays.arrays(np.float32, (2, 3, 4, 5), elements=PROBABILITIES),
    arrays.arrays(np.uint8, (2, 3, 4, 5), elements=st.integers(0, 1)),
)
def test_counts_are_those_of_comparing_every_cell(found: np.ndarray, truth: np.ndarray) -> None:
    result = evaluate(zip(found, truth, strict=True), ("a", "b", "c"))
    for c in range(3):
        for t, threshold in enumerate(THRESHOLDS):
            hit, true = found[:, c] >= np.float32(threshold), truth[:, c] == 1
            expected = [(hit & true).sum(), (hit & ~true).sum(), (~hit & true).sum()]
            assert result.counts[c, t].tolist() == expected
            union = sum(expected)
            assert result.values[f"map/{'abc'[c]}/iou@{threshold:.2f}"] == (expected[0] / union if union else 0)
    best = [max(result.values[f"map/{c}/iou@{t:.2f}"] for t in THRESHOLDS) for c in "abc"]
    assert result.score == pytest.approx(np.mean(best))


def test_counts_are_summed_over_samples_before_they_are_divided() -> None:
    truth = np.ones((2, 1, 1, 4), np.uint8)
    found = np.array([[1, 1, 1, 1], [1, 0, 0, 0]], np.float32).reshape(2, 1, 1, 4)
    assert evaluate(zip(found, truth, strict=True), ("a",), (0.5,)).score == 5 / 8


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        (np.zeros((1, 2, 2), np.float32), np.zeros((2, 2, 2), np.uint8), r"\[6, H, W\] both, got \[1, 2, 2\]"),
        (np.zeros((6, 2, 2), np.int64), np.zeros((6, 2, 2), np.uint8), "pred must be probabilities, got int64"),
        (np.zeros((6, 2, 2), np.float32), np.full((6, 2, 2), 255, np.uint8), "gt must be whole numbers, 0 or 1"),
        (np.zeros((6, 2, 2), np.float32), np.zeros((6, 2, 2), np.float32), "gt must be whole numbers, 0 or 1"),
    ],
)
def test_wrong_arrays_are_refused(found: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BevMapCounts().add(found, truth)


def test_thresholds_must_ascend() -> None:
    with pytest.raises(ValueError, match="ascending thresholds"):
        BevMapCounts(CLASSES, (0.5, 0.4))


def test_the_command_line_takes_files_and_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    found, truth = rng.random((3, 6, 8, 9), np.float32), rng.integers(0, 2, (3, 6, 8, 9), np.uint8)
    np.savez(tmp_path / "gt.npz", gt=truth)
    np.savez_compressed(tmp_path / "pred.npz", pred=found)
    for folder, name, data in (("gt", "gt", truth), ("pred", "pred", found)):
        (tmp_path / folder).mkdir()
        for i, sample in enumerate(data):
            np.savez(tmp_path / folder / f"{i}.npz", **{name: sample})
    scores = []
    for end in (".npz", ""):
        arguments = ["--ground-truth", str(tmp_path / f"gt{end}"), "--results", str(tmp_path / f"pred{end}")]
        out = tmp_path / "out.json"
        assert main(["evaluate", "bev_map", *arguments, "--json", str(out), "--plots", str(tmp_path / "plots")]) == 0
        scores.append(json.loads(out.read_text())["score"])
    expected = evaluate(zip(found, truth, strict=True)).score
    assert scores == [expected, expected]
    capsys.readouterr()
    np.savez(tmp_path / "gt" / "1.npz", gt=truth[1] + 1)
    assert main(["evaluate", "bev_map", *arguments]) != 0
    assert "gt/1.npz: gt must be whole numbers, 0 or 1" in capsys.readouterr().err
    np.savez(tmp_path / "gt" / "1.npz", gt=truth[1])
    np.savez(tmp_path / "pred" / "2.npz", pred=found[2].astype(int))
    assert main(["evaluate", "bev_map", *arguments]) != 0
    assert "pred/2.npz: pred must be probabilities, got int64" in capsys.readouterr().err
    np.savez(tmp_path / "pred" / "2.npz", pred=4 * found[2] - 2)
    assert main(["evaluate", "bev_map", *arguments]) == 0
    assert "they should be probabilities, not logits" in caplog.text
    (tmp_path / "pred" / "1.npz").unlink()
    assert main(["evaluate", "bev_map", *arguments]) != 0
    assert "pred/1.npz: no such file" in capsys.readouterr().err
    (tmp_path / "pred" / "1.npz").write_bytes(b"PK\x03\x04")
    assert main(["evaluate", "bev_map", *arguments]) != 0
    assert "pred/1.npz: no readable .npz with pred" in capsys.readouterr().err
    for name, data in (("gt", truth), ("pred", found)):
        np.savez(tmp_path / f"{name}.npz", **{name: data[:0]})
    arguments = ["--ground-truth", str(tmp_path / "gt.npz"), "--results", str(tmp_path / "pred.npz")]
    assert main(["evaluate", "bev_map", *arguments]) != 0
    assert "gt.npz: has no sample: there is nothing to measure" in capsys.readouterr().err
