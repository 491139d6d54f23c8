"""What is measured of frames in KITTI's layout, and the command that compares two sets of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.cli.command import main
from pcdet_ext.data import kitti
from pcdet_ext.data.kitti.statistics import QUANTITIES, Statistics, differences, measure, ring_of_points
from pcdet_ext.data.simulation.kitti import calibration
from pcdet_ext.structures import Array

PNG = b"\x89PNG\r\n\x1a\n"


def turns(rings: int, firings: int, begin: float, way: int) -> Array:
    """Points of one turn per ring, the highest first: float64 [rings * firings, 4]."""
    azimuth = begin + way * np.arange(firings) * 2 * np.pi / firings
    elevation = np.deg2rad(2 - 0.4 * np.arange(rings))[:, None]
    flat = np.cos(elevation) * np.ones(firings)
    xyz = 20 * np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation) * np.ones(firings)], -1)
    return np.concatenate([xyz.reshape(-1, 3), np.full((rings * firings, 1), 0.3)], 1)


@pytest.mark.parametrize(("begin", "way"), [(0.0, 1), (np.pi - 0.01, -1), (1.0, 1), (-2.0, -1)])
def test_rings_follow_from_the_order(begin: float, way: int) -> None:
    points = turns(64, 90, begin, way)
    np.testing.assert_array_equal(ring_of_points(points), np.repeat(np.arange(64), 90))
    kept = np.sort(np.random.default_rng(0).permutation(len(points))[:4000])
    np.testing.assert_array_equal(ring_of_points(points[kept]), np.repeat(np.arange(64), 90)[kept])


def test_an_order_that_tells_nothing_gives_no_rings() -> None:
    points = turns(64, 90, 0.0, 1)
    assert len(ring_of_points(np.random.default_rng(0).permutation(points))) == 0
    assert len(ring_of_points(turns(32, 90, 0.0, 1))) == 0
    assert len(ring_of_points(np.zeros((0, 4)))) == 0


def write(root: Path, zero_share: float, slope: float = 0.0, rough: float = 0.0) -> Path:
    """A frame with a plane at -1.7 m and a car of 200 points, of which a share has the intensity 0."""
    rng = np.random.default_rng(0)
    ground = np.column_stack(
        [rng.uniform(3, 30, 30000), rng.uniform(-8, 8, 30000), np.zeros(30000), np.full(30000, 0.3)]
    )
    ground[:, 2] = -1.7 + slope * ground[:, 0] + rng.normal(0, 1, len(ground)) * rough
    box = np.array([[15.0, 2.0, -0.9, 4.0, 1.7, 1.6, 0.0]])
    car = np.column_stack([rng.uniform(13.1, 16.9, 200), rng.uniform(1.2, 2.8, 200), rng.uniform(-1.4, -0.2, 200)])
    light = np.where(np.arange(200) < zero_share * 200, 0.0, 0.5)
    post = np.column_stack([np.full(50, 10.0), np.full(50, -4.0), np.linspace(-1.0, 1.0, 50), np.full(50, 0.9)])
    points = np.concatenate([ground, np.column_stack([car, light]), post]).astype(np.float32)
    labels = kitti.boxes_to_labels(box, ("Car",), calibration())
    labels.truncation[:], labels.occlusion[:] = 0, 0
    kitti.write_frame(root, "000000", points, labels, calibration())
    (root / "ImageSets").mkdir(exist_ok=True)
    (root / "ImageSets/train.txt").write_text("000000\n")
    return root


def test_a_frame_is_measured(tmp_path: Path) -> None:
    found = measure(write(tmp_path, 0.6, slope=0.004, rough=0.01), "train")
    assert found.frames == 1
    assert found.points.tolist() == [30250]
    np.testing.assert_allclose(found.cars, [[np.hypot(15, 2), 200]], rtol=1e-4)
    on_cars = found.values["intensity on cars"]
    assert (on_cars == 0).mean() == pytest.approx(0.6)
    assert found.values["length of cars"] == pytest.approx([4.0], abs=0.01)
    assert np.median(found.values["roughness of the ground"]) == pytest.approx(0.01, rel=0.1)  # the slope is taken out
    assert found.values["intensity elsewhere"] == pytest.approx(0.9)  # the post, without its foot
    assert 30 < len(found.values["intensity elsewhere"]) <= 50
    assert np.median(found.values["intensity on the ground"]) == pytest.approx(0.3)
    assert len(found.elevations) == 0
    assert found.points_by_distance() == [None, 200.0, None, None, None, None]


def test_histograms_are_shares_and_differences_lie_between_0_and_1(tmp_path: Path) -> None:
    dark, bright = measure(write(tmp_path / "a", 1.0), "train"), measure(write(tmp_path / "b", 0.0), "train")
    for name in QUANTITIES:
        assert dark.histogram(name).sum() == pytest.approx(1.0 if len(dark.values[name]) else 0.0)
    apart = differences(dark, bright)
    assert apart["intensity on cars"] == pytest.approx(1.0)
    assert apart["length of cars"] == pytest.approx(0.0)
    assert differences(dark, dark) == dict.fromkeys(QUANTITIES, 0.0)


def test_values_outside_the_bins_count_in_the_outermost() -> None:
    values = {name: np.zeros(0) for name in QUANTITIES} | {"length of cars": np.array([1.0, 20.0])}
    shares = Statistics(1, np.ones(1), values, np.zeros((0, 2)), np.zeros(0)).histogram("length of cars")
    assert shares[0] == shares[-1] == 0.5


def test_the_command_writes_a_picture_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    a, b = write(tmp_path / "a", 0.9), write(tmp_path / "b", 0.1)
    picture, numbers = tmp_path / "c.png", tmp_path / "c.json"
    assert main(["compare", str(a), str(b), "--out", str(picture), "--json", str(numbers)]) == 0
    assert picture.read_bytes().startswith(PNG)
    content = json.loads(numbers.read_text())
    assert content["differences"]["intensity on cars"] == pytest.approx(0.8)
    assert content["simulated"]["frames"] == content["real"]["frames"] == 1
    assert "intensity on cars" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--out", "picture.jpg"], "a .png file"),
        (["--names", "x", "x"], "different names"),
        (["--real-split", "tran"], "did you mean 'train'"),
    ],
)
def test_wrong_use_is_named(
    tmp_path: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 0.5)
    assert main(["compare", str(tmp_path), str(tmp_path), *extra]) == 2
    assert message in capsys.readouterr().err
