"""Benchmarks run, agree with their peers and write what they measured; times are never judged."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pcdet_ext.benchmark import octrees, report
from pcdet_ext.benchmark.copy import copy_bandwidth, look_up_seconds
from pcdet_ext.benchmark.data import made_up_frames
from pcdet_ext.benchmark.frames import SIZES, load_frames, street_voxels, synthetic_scan
from pcdet_ext.benchmark.memory import peak_memory
from pcdet_ext.benchmark.registry import Contest, LookUps, Workload, all_close, benchmark, benchmarks
from pcdet_ext.benchmark.timing import OURS, REFERENCE, Effort, Timing, measure
from pcdet_ext.cli.command import main
from pcdet_ext.data.index import read_index, write_index
from pcdet_ext.data.kitti import prepare_kitti
from pcdet_ext.data.simulation import SpinningLidar, simulate_kitti
from pcdet_ext.files import DataError

QUICK = Effort(warm_up=0, rounds=1, max_rounds=1, seconds=0.0)
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", [b.name for b in benchmarks() if b.per_frame])
def test_results_equal_those_of_references_and_peers(name: str) -> None:
    load = Workload("tiny", torch.from_numpy(synthetic_scan(600)))
    (entry,) = benchmarks([name])
    settings = []
    for contest in entry.prepare(load):
        settings.append(contest.setting)
        timings = measure(contest, CPU, QUICK)
        assert {n for n, t in timings.items() if not t.agrees} == set(), contest.setting
        assert all(t.rounds == 1 and t.median > 0 for t in timings.values())
    assert settings
    assert len(set(settings)) == len(settings)


@pytest.mark.parametrize(
    ("name", "peer"),
    [("voxelize", "spconv PointToVoxel"), ("dynamic_voxelize", "torch.unique + index_add")],
)
def test_the_peers_of_voxelisation_are_there(name: str, peer: str) -> None:
    if "spconv" in peer:
        pytest.importorskip("spconv")
    load = Workload("tiny", torch.from_numpy(synthetic_scan(200)))
    assert peer in next(iter(benchmarks([name])[0].prepare(load))).peers


def test_a_run_prints_ratios_and_writes_everything(tmp_path: Path, capsys) -> None:
    path = tmp_path / "out.json"
    assert report.run_ops(only=["segment_reduce"], json_path=path, voxels=[300, 3000], effort=QUICK)
    copy, *lines, scaling = capsys.readouterr().out.splitlines()
    content = json.loads(path.read_text())
    assert copy == f"copy on cpu: {content['copy_gb_per_s']:.2f} GB/s, read and written"
    assert len(lines) == len(content["results"]) == 10
    assert all("% of copy)" in line for line in lines)
    assert scaling.startswith("time at 3000 voxels over that at 300: ")
    took = {(r["setting"], r["voxels"]): r["timings"][OURS]["fastest_ms"] for r in content["results"]}
    assert len(content["scaling"]) == 5
    for pair in content["scaling"]:
        assert (pair["name"], pair["few"]) == ("segment_reduce", 300)
        assert pair["ratio"] == pytest.approx(took[pair["setting"], 3000] / took[pair["setting"], 300])
    assert all("ms" in line and "x torch scatter_reduce" in line and "GB/s" in line for line in lines)
    assert content["hardware"]["cores"] >= 1
    assert content["versions"]["torch"]
    assert content["device"] == "cpu"
    assert str(Path(report.__file__).parents[2]) not in path.read_text()  # what is measured is shown to others
    first = content["results"][0]
    assert (first["name"], first["frame"]) == ("segment_reduce", "synthetic-0k")
    timings = first["timings"]
    assert first["ratios"] == {
        n: pytest.approx(t["median_ms"] / timings[OURS]["median_ms"]) for n, t in timings.items() if n != OURS
    }
    assert first["gb_per_s"] == pytest.approx(first["bytes"] / timings[OURS]["median_ms"] / 1e6)
    assert first["of_copy"] == pytest.approx(first["gb_per_s"] / content["copy_gb_per_s"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_wrong_result_is_told() -> None:
    load = Workload("tiny", torch.zeros(3, 4))
    contest = Contest("x", lambda: load.points, lambda: load.points + 1, {"peer": lambda: load.points})
    timings = measure(contest, CPU, QUICK)
    assert (timings[REFERENCE].agrees, timings["peer"].agrees) == (False, True)
    line = report.Result("op", "tiny", contest, timings).line()
    assert line.count("RESULT DIFFERS") == 1


def test_agreement_is_exact_for_integers_and_close_for_floats() -> None:
    whole, real = torch.tensor([1, 2]), torch.tensor([1.0, float("nan")])
    assert all_close((whole, real), (whole, real + 1e-6))
    assert not all_close((whole, real), (whole + 1, real))
    assert not all_close(real, real + 1)
    assert not all_close(whole, whole[:1])
    assert not all_close([whole], [whole, whole])


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    contest = Contest("x", lambda: calls.append("a"), None, {"b": lambda: calls.append("b")}, lambda *_: True)
    timings = measure(contest, CPU, Effort(warm_up=1, rounds=3, max_rounds=3, seconds=0.0))
    assert calls[-6:] == ["a", "b"] * 3
    assert all(t.rounds == 3 for t in timings.values())


def test_a_reference_is_left_out_above_its_limit_and_the_line_says_so() -> None:
    def refused() -> torch.Tensor:
        raise AssertionError("the reference must not run")

    contest = Contest("x", lambda: torch.ones(1), refused, work={"voxels": 11}, flops=10**6, reference_limit=10)
    timings = measure(contest, CPU, QUICK)
    assert set(timings) == {OURS}
    line = report.Result("op", "tiny", contest, timings, peak=2_000_000).line()
    assert line.endswith("peak 2.0 MB, reference left out above 10")
    assert "GFLOP/s" in line
    assert not replace(contest, work={"voxels": 10}).reference_left_out
    assert not replace(contest, reference=None).reference_left_out


def test_large_octrees_are_built_without_the_peer_and_the_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Workload("tiny", torch.from_numpy(synthetic_scan(300)))
    monkeypatch.setattr(octrees, "PEER_LIMIT", 299)
    contest = next(iter(octrees.trees(load)))
    assert not contest.peers
    line = report.Result("octree", "tiny", contest, measure(contest, CPU, QUICK)).line()
    assert line.endswith("ocnn skipped: left out above 299 points")


def test_slow_contenders_run_twice_in_all() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.4)  # far from what the other one takes on a busy machine

    effort = Effort(warm_up=1, rounds=3, max_rounds=3, seconds=0.0, slow=0.3)
    contest = Contest("x", lambda: None, slow, agrees=lambda *_: True)
    timings = measure(contest, CPU, effort)
    assert len(calls) == 2  # to compare, and to time
    assert (timings[OURS].rounds, timings[REFERENCE].rounds) == (3, 1)
    assert timings[REFERENCE].median >= 0.4


def test_scaling_pairs_sizes_a_factor_of_ten_apart() -> None:
    def result(name: str, voxels: int | None, seconds: float) -> report.Result:
        return report.Result(
            name, "f", Contest("s", lambda: None), {OURS: Timing(seconds, seconds, 1, True)}, voxels=voxels
        )

    results = [result("a", 10, 1.0), result("a", 100, 20.0), result("b", 100, 3.0), result("c", None, 1.0)]
    results += [result("b", 10, 1.0), result("b", 30, 1.0)]
    found = report.scalings(results)
    assert [(s.name, s.setting, s.few, s.ratio) for s in found] == [("a", "s", 10, 20.0), ("b", "s", 10, 3.0)]
    (line,) = report.scaling_lines(found)
    assert line == "time at 100 voxels over that at 10: 3.0x to 20.0x, median 11.5x; above 12x: a s 20.0x"
    assert report.scaling_lines([]) == []


def test_peak_memory_counts_what_a_call_takes_at_its_highest() -> None:
    size = 48 << 20

    def call() -> torch.Tensor:
        two = torch.ones(2, size // 4)
        return two.sum(0)[:10].clone()

    peak = peak_memory(call, CPU)
    if peak is None:
        pytest.skip("this system does not say how much memory a process had at most")
    assert 2 * size <= peak <= 4 * size
    assert peak_memory(lambda: None, CPU) < size // 8


def test_a_copy_has_a_bandwidth() -> None:
    assert 1e7 < copy_bandwidth(CPU, size=1 << 20, rounds=3) < 1e13


def test_a_look_up_takes_a_while() -> None:
    assert 1e-12 < look_up_seconds(1 << 12, rounds=3) < 1e-3
    assert look_up_seconds(0, rounds=1) > 0  # a table of no voxels


def test_the_bound_is_the_copy_and_the_look_ups() -> None:
    contest = Contest("s", lambda: None, bytes=1000, look_ups=LookUps(50, 64))
    timings = {OURS: Timing(6e-6, 6e-6, 1, True)}
    result = report.Result("op", "f", contest, timings, copy=1e9, look_up=2e-8)
    assert result.bound == pytest.approx(2e-6)
    assert "3.00x its bound (0.002 ms)" in result.line()
    record = result.record()
    assert record["bound_ms"] == pytest.approx(2e-3)
    assert record["look_ups"] == {"visits": 50, "table_bytes": 64}
    assert replace(result, look_up=None).bound is None
    assert replace(result, contest=replace(contest, look_ups=None)).record()["bound_ms"] is None


def test_hard_voxels_count_the_points_that_are_looked_up() -> None:
    scan = torch.from_numpy(synthetic_scan(300))
    counted = next(iter(benchmarks(["voxelize"])[0].prepare(Workload("tiny", scan)))).look_ups
    low, high = torch.tensor([0.0, -39.68, -3.0]), torch.tensor([69.12, 39.68, 1.0])
    assert counted is not None
    assert counted.visits == int(((scan[:, :3] >= low) & (scan[:, :3] < high)).all(1).sum())


def test_voxels_of_streets_are_as_many_as_asked_for() -> None:
    setting = (-74.88, -74.88, -2.0, 74.88, 74.88, 4.0), (0.32, 0.32, 6.0)
    coords = street_voxels(30_000, *setting)
    assert coords.shape == (30_000, 4)
    assert len(torch.unique(coords, dim=0)) == 30_000
    frames = torch.bincount(coords[:, 0])
    assert len(frames) > 1
    assert frames.min() > 0
    assert bool((coords[:, 0].diff() >= 0).all())


def test_names_are_unique_and_checked() -> None:
    with pytest.raises(ValueError, match="two benchmarks are named 'voxelize'"):
        benchmark("voxelize")(lambda load: [])
    with pytest.raises(ValueError, match=r"no benchmark is named 'voxelise'.*voxelize"):
        benchmarks(["voxelise"])


@pytest.mark.parametrize("size", SIZES[:2])
def test_synthetic_scans_are_like_scans(size: int) -> None:
    points = synthetic_scan(size, seed=3)
    assert points.shape == (size, 4)
    assert points.dtype == np.float32
    assert np.array_equal(points, synthetic_scan(size, seed=3))
    assert not np.array_equal(points, synthetic_scan(size, seed=4))
    distance = np.linalg.norm(points[:, :2], axis=1)
    assert np.isfinite(points).all()
    assert distance.max() < 100
    assert np.median(distance) < 20  # density falls off with the range
    assert 0 <= points[:, 3].min() <= points[:, 3].max() <= 1
    assert (np.abs(points[:, 2] + 1.73) < 0.1).mean() > 0.2  # ground


def test_frames_come_from_files(tmp_path: Path) -> None:
    points = synthetic_scan(50)
    points[3, 1] = np.nan
    points.tofile(tmp_path / "a.bin")
    np.save(tmp_path / "b.npy", points)
    (tmp_path / "notes.txt").write_text("no frame")
    frames = dict(load_frames([tmp_path]))
    assert list(frames) == ["a.bin", "b.npy"]
    assert all(len(p) == 49 for p in frames.values())
    assert [n for n, _ in load_frames([tmp_path / "b.npy"])] == ["b.npy"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no point files"):
        list(load_frames([empty]))
    with pytest.raises(DataError, match=r"missing\.bin"):
        list(load_frames([tmp_path / "missing.bin"]))


def test_the_command(tmp_path: Path, capsys) -> None:
    synthetic_scan(100).tofile(tmp_path / "a.bin")
    frames = ["benchmark", "ops", "--frames", str(tmp_path / "a.bin")]
    assert main([*frames, "--only", "nothing"]) == 2
    assert "no benchmark is named 'nothing'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main([*frames, "--device", "cuda"]) == 2
        assert "no CUDA device" in capsys.readouterr().err
    assert main(["benchmark", "ops", "--voxels", "0", "--only", "segment_reduce"]) == 2
    assert "voxels must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["benchmark", "everything"])


def test_the_making_of_samples_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Simulated frames, augmented and not, in this process and in a worker, and a small made-up index."""
    root = simulate_kitti(
        tmp_path / "sim", 4, val_fraction=0.0, workers=1, sensor=SpinningLidar(beams=16, azimuths=300)
    )
    prepare_kitti(root, splits=["train"], progress=False)
    out = tmp_path / "out.json"
    given = ["kitti/pointpillars", f"data.root={root}", "--samples", "3", "--frames", "300", "--boxes", "5"]
    assert main(["benchmark", "data", *given, "--json", str(out)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " samples per second" in line or "index" in line]
    content = json.loads(out.read_text())
    plain, augmented = content["samples"]
    assert [timing["augmented"] for timing in (plain, augmented)] == [False, True]
    assert lines[0].startswith("kitti/pointpillars without augmentation: ")
    assert lines[1].startswith("kitti/pointpillars with augmentation: ")
    for timing in (plain, augmented):
        assert sum(timing["stages"].values()) == pytest.approx(timing["seconds"])
        assert min(timing["loaded"], timing["worker_seconds"], timing["points"], timing["stages"]["reading"]) > 0
        assert timing["stages"]["sweeps"] == 0
    assert plain["stages"]["sampling"] == plain["stages"]["augmentation"] == 0
    assert min(augmented["stages"]["sampling"], augmented["stages"]["augmentation"]) > 0
    index = content["index"]
    assert (index["frames"], index["boxes"]) == (300, 5)
    assert lines[2].startswith("index of 300 frames with 5 boxes (")


def test_the_made_up_index_is_one(tmp_path: Path) -> None:
    write_index(tmp_path / "index.parquet", made_up_frames(400, 60))
    table = read_index(tmp_path / "index.parquet")
    assert len(table) == 400
    assert len(table[250].targets()) == 60
    assert len(table.previous(table[200].frame_id, 5)) == 2  # the third of its sequence


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--frames", "0"], "name a configuration"), (["--workers", "-1"], "workers must be at least 0")],
)
def test_nothing_to_measure_is_refused(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "data", *given]) != 0
    assert message in capsys.readouterr().err
