"""KITTI tracking: HOTA, CLEAR MOT and identity against plain definitions, and files that cannot be used."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.cli.command import main
from pcdet_ext.evaluation.kitti_tracking import counted, evaluate
from pcdet_ext.evaluation.kitti_tracking_files import TrackRows, read_rows, read_sequence_map
from pcdet_ext.evaluation.multi_object import ALPHAS, clear_mot, hota, identity
from pcdet_ext.files import DataError, MissingFileError

Frame = dict[int, list[float]]  # boxes by track id


def rows(frames: list[Frame], kind: str = "car") -> TrackRows:
    entries = [(f, track, box) for f, frame in enumerate(frames) for track, box in frame.items()]
    count = len(entries)
    return TrackRows(
        Path("memory"),
        np.array([e[0] for e in entries], np.int64),
        np.array([e[1] for e in entries], np.int64),
        np.full(count, kind),
        np.zeros(count),
        np.zeros(count),
        np.array([e[2] for e in entries], np.float64).reshape(count, 4),
    )


def overlap(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (areas[0] + areas[1] - common)


def assignments(left: list[int], right: list[int]) -> list[list[tuple[int, int]]]:
    """All one-to-one assignments that leave nobody over on the smaller side."""
    if len(left) > len(right):
        return [[(b, a) for a, b in pairs] for pairs in assignments(right, left)]
    return [list(zip(left, chosen, strict=True)) for chosen in permutations(right, len(left))]


def hota_by_definition(truth: list[Frame], found: list[Frame]) -> list[float]:
    """Luiten et al., equations 5 to 12, pair by pair."""
    own, other = Counter(g for frame in truth for g in frame), Counter(p for frame in found for p in frame)
    potential: dict[tuple[int, int], float] = defaultdict(float)
    tables = [{(g, p): overlap(t[g], d[p]) for g in t for p in d} for t, d in zip(truth, found, strict=True)]
    for table in tables:
        for (g, p), value in table.items():
            rest = sum(v for (a, _), v in table.items() if a == g) + sum(v for (_, b), v in table.items() if b == p)
            potential[g, p] += value / (rest - value) if rest - value > 0 else 0.0
    alignment = {(g, p): v / (own[g] + other[p] - v) for (g, p), v in potential.items()}
    chosen = [
        max(assignments(list(t), list(d)), key=lambda pairs: sum(alignment[k] * table[k] for k in pairs))
        for t, d, table in zip(truth, found, tables, strict=True)
    ]
    scores = []
    for alpha in ALPHAS:
        hits = [k for pairs, table in zip(chosen, tables, strict=True) for k in pairs if table[k] >= alpha - 1e-15]
        common = Counter(hits)
        association = [common[g, p] / (own[g] + other[p] - common[g, p]) for g, p in hits]
        total = sum(own.values()) + sum(other.values()) - len(hits)
        scores.append((sum(association) / total) ** 0.5 if hits else 0.0)
    return scores


def identity_by_definition(truth: list[Frame], found: list[Frame]) -> float:
    objects, tracks = ({track for frame in side for track in frame} for side in (truth, found))
    common = Counter(
        (g, p)
        for t, d in zip(truth, found, strict=True)
        for g in t
        for p in d
        if overlap(t[g], d[p]) >= 0.5
    )  # fmt: skip
    hits = max(sum(common[k] for k in pairs) for pairs in assignments(sorted(objects), sorted(tracks)))
    return 2 * hits / (sum(map(len, truth)) + sum(map(len, found)))


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Frame], list[Frame]]:
    seed, frames = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 5))
    rng = np.random.default_rng(seed)
    truth: list[Frame] = []
    found: list[Frame] = []
    for _ in range(frames):
        boxes = {g: [x, 0.0, x + 30, 60.0] for g in range(3) if rng.random() < 0.9 for x in [rng.uniform(0, 60)]}
        near = {p: (np.array(boxes[g]) + rng.normal(0, 4, 4)).tolist() for g, p in zip(boxes, rng.permutation(4))}  # noqa: B905
        truth.append(boxes)
        found.append({int(p): box for p, box in near.items() if rng.random() < 0.8})
    truth[0][0], found[0][0] = [0.0, 0.0, 30.0, 60.0], [2.0, 0.0, 31.0, 60.0]  # there is something on both sides
    return truth, found


@settings(deadline=None, max_examples=40)
@given(scenes())
def test_hota_and_identity_are_their_definitions(scene: tuple[list[Frame], list[Frame]]) -> None:
    truth, found = scene
    data = counted(rows(truth), rows(found), "car", len(truth))
    np.testing.assert_allclose(hota(data)["HOTA"], hota_by_definition(truth, found), atol=1e-12)
    assert identity(data)["IDF1"] == pytest.approx(identity_by_definition(truth, found), abs=1e-12)


BOX = [0.0, 0.0, 40.0, 40.0]


def clear(truth: list[Frame], found: list[Frame]) -> dict[str, float]:
    return clear_mot(counted(rows(truth), rows(found), "car", len(truth)))


def test_a_switch_counts_even_after_a_gap_and_a_frame_without_results_breaks_nothing() -> None:
    row = clear([{0: BOX}] * 4, [{5: BOX}, {}, {5: BOX}, {7: BOX}])
    assert (row["IDSW"], row["Frag"], row["CLR_FN"], row["MOTA"]) == (1, 0, 1, pytest.approx((3 - 1) / 4))
    other = [200.0, 0.0, 240.0, 40.0]
    row = clear([{0: BOX}] * 4, [{5: BOX}, {6: other}, {5: BOX}, {5: BOX}])
    assert (row["IDSW"], row["Frag"], row["CLR_FP"]) == (0, 1, 1)


def test_the_pair_of_the_frame_before_is_kept_against_a_higher_overlap() -> None:
    shifted = [8.0, 0.0, 48.0, 40.0]
    row = clear([{0: BOX}] * 2, [{1: BOX}, {1: shifted, 2: BOX}])
    assert (row["IDSW"], row["CLR_FP"], row["CLR_TP"]) == (0, 1, 2)


@pytest.mark.parametrize(("share", "kind"), [(8, "PT"), (9, "MT"), (2, "PT"), (1, "ML")])
def test_mostly_tracked_is_more_than_four_fifths(share: int, kind: str) -> None:
    row = clear([{0: BOX}] * 10, [{1: BOX}] * share + [{}] * (10 - share))
    assert {name: row[name] for name in ("MT", "PT", "ML")} == {**dict.fromkeys(("MT", "PT", "ML"), 0), kind: 1}


def test_a_van_is_no_car_and_no_false_positive() -> None:
    truth = rows([{0: BOX}], "van")
    assert len(counted(truth, rows([{3: BOX}]), "car", 1).found) == 0
    with pytest.raises(ValueError, match=r"cyclist.*known: car, pedestrian"):
        evaluate({"0": truth}, {"0": truth}, {"0": 1}, ["cyclist"])


LINE = "0 1 Car 0 0 -1.5 10 20 60 80 1.5 1.6 4.0 1 2 30 0.1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1 Car 0 0", r"0\.txt:1: expected 17 columns, and maybe a score, got 5"),
        (LINE.replace("60", "wide"), r"0\.txt:1: column 9 is 'wide'"),
        (LINE + " good", r"0\.txt:1: column 18 is 'good'"),
        (LINE.replace("60", "nan"), r"0\.txt:1: x2 is 'nan'"),
        (LINE + "\n" + LINE.replace("0 1", "0.5 1", 1), r"0\.txt:2: frame is '0\.5'"),
        (LINE.replace("0", "7", 1), r"0\.txt:1: frame 7 is not in the sequence, which has 2 frames"),
        (LINE.replace("Car", "Boat"), r"0\.txt:1: unknown type 'Boat'; known: car, van"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "0.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "0.txt", 2)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no\.txt: no such file"):
        read_rows(tmp_path / "no.txt", 2)
    (tmp_path / "0.txt.gz").write_bytes(gzip.compress(LINE.encode())[:-9])
    with pytest.raises(DataError, match=r"0\.txt\.gz: damaged"):
        read_rows(tmp_path / "0.txt.gz", 2)
    for text, message in (
        ("0000 empty 0", "map:1: expected"),
        ("a e 0 5\na e 0 5", "twice"),
        ("\n", "no sequence"),
        ("0000 empty 0 1000001", "map:1: a sequence has at most 1000000 frames, got 1000001"),
        ("0000 empty 0 " + 5000 * "9", "map:1: a sequence has at most"),
        ("0000 empty 0 \u0665", "map:1: expected"),
    ):
        (tmp_path / "map").write_text(text)
        with pytest.raises(DataError, match=message):
            read_sequence_map(tmp_path / "map")


def test_an_id_twice_in_a_frame_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "0.txt").write_text(f"{LINE}\n{LINE.replace('10 20', '11 20')} 0.9")
    found = read_rows(tmp_path / "0.txt", 1)
    with pytest.raises(DataError, match=r"0\.txt: frame 0 has the track id 1 twice"):
        counted(rows([]), found, "car", 1)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("gt", "results"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0000.txt").write_text(LINE)
    arguments = ["evaluate", "kitti_tracking", "--ground-truth", str(tmp_path / "gt")]
    arguments += ["--results", str(tmp_path / "results"), "--classes", "car", "--json", str(tmp_path / "out.json")]
    assert main(arguments) != 0
    assert "name one with sequence_map=FILE" in capsys.readouterr().err
    (tmp_path / "gt" / "evaluate_tracking.seqmap.val").write_text("0000 empty 000000 000001")
    assert main(arguments) == 0
    found = json.loads((tmp_path / "out.json").read_text())["COMBINED_SEQ"]["car"]
    assert found["HOTA"]["mean"]["HOTA"] == pytest.approx(1)
    assert found["CLEAR"]["MOTA"] == 1
    assert "HOTA" in capsys.readouterr().out
