"""`pcdet train` and `pcdet test` from made-up frames to detections, and what they say about bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pcdet_ext
from pcdet_ext import checkpoint, config
from pcdet_ext.cli.command import main
from pcdet_ext.config import ConfigError, Node, construct
from pcdet_ext.data import kitti
from pcdet_ext.data.index import index_path, read_index, write_index
from pcdet_ext.data.kitti import prepare_kitti
from pcdet_ext.engine.fading import training_datasets
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.ops import iou_bev

CALIBRATION = kitti.Calibration(
    p2=np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]]),
    r0_rect=np.eye(3),
    velo_to_cam=np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]),
    image_size=(375, 1242),
)
SMALL = (
    "data.point_cloud_range=[0, -9.6, -3, 19.2, 9.6, 1]",
    "model.voxel_size=[0.4, 0.4, 4]",
    "model.bev_backbone.layer_nums=[1, 1, 1]",
    "train.num_workers=0",
    "test.num_workers=0",
)


def write_frames(root: Path, count: int, name: str = "Car") -> None:
    """Frames with a car's sides above flat ground, labelled as `name`."""
    for i in range(count):
        rng = np.random.default_rng(i)
        x, y, heading = rng.uniform(8, 16), rng.uniform(-4, 4), rng.uniform(-3, 3)
        box = np.array([[x, y, -1, 3.9, 1.6, 1.5, heading]])
        local = rng.uniform(-0.5, 0.5, (400, 3)) * box[0, 3:6]
        local[np.arange(400), rng.integers(0, 2, 400)] *= 0.999 / np.abs(local / (box[0, 3:6] / 2)).max(1).clip(0.02)
        local = np.clip(local, -box[0, 3:6] / 2, box[0, 3:6] / 2)
        cos, sin = np.cos(heading), np.sin(heading)
        body = np.column_stack(
            [cos * local[:, 0] - sin * local[:, 1], sin * local[:, 0] + cos * local[:, 1], local[:, 2]]
        )
        ground = np.column_stack([rng.uniform(0, 20, 1500), rng.uniform(-10, 10, 1500), rng.normal(-1.75, 0.01, 1500)])
        points = np.concatenate([body + box[0, :3], ground])
        points = np.column_stack([points, rng.random(len(points))]).astype(np.float32)
        labels = kitti.boxes_to_labels(box, [name], CALIBRATION)
        kitti.write_frame(root, f"{i:06d}", points, labels, CALIBRATION)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten prepared frames."""
    root = tmp_path_factory.mktemp("kitti")
    write_frames(root, 10)
    prepare_kitti(root, progress=False)
    return root


@pytest.fixture
def arguments(root: Path, data: Path, tmp_path: Path) -> list[str]:
    """The command line of a short training in tmp_path / "run"."""
    config_file = root / "configs" / "kitti" / "demo.yaml"
    return [str(config_file), f"data.root={data}", *SMALL, "--out", str(tmp_path / "run"), "--device", "cpu"]


def test_a_detector_learns_its_frames_and_finds_the_cars(
    root: Path, data: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    # Batch norms keep 99 % of their running statistics in a step, so detecting needs some hundred steps.
    options = ["data.augment=[]", "train.epochs=80", "train.evaluate_every=80", "train.batch_size=2"]
    assert main(["train", *arguments, *options]) == 0
    best = tmp_path / "run" / "best.ckpt"
    detector = pcdet_ext.load(best, device="cpu")
    assert detector.highest["intensity"] == pytest.approx(1.0, abs=0.05)  # what the frames were written with
    frames = kitti.find_frames(data, "train")
    hits = 0
    for frame, found in zip(frames, detector.detect([f.points for f in frames], score_threshold=0.3), strict=True):
        truth = kitti.labels_to_boxes(kitti.read_labels(frame.labels), kitti.Calibration.read(frame.calibration))
        overlap = iou_bev(torch.from_numpy(truth.boxes), torch.from_numpy(found.boxes))
        hits += int(len(found) > 0 and float(overlap.max()) > 0.5)
    assert hits >= len(frames) - 1

    out, numbers = tmp_path / "results", tmp_path / "ap.json"
    capsys.readouterr()
    options = ["--split", "train", "--out", str(out), "--json", str(numbers), "--device", "cpu"]
    assert main(["test", str(best), *options]) == 0
    printed = capsys.readouterr().out
    assert "Car             bev   0.70" in printed
    assert f"{len(frames)} frames of train" in printed
    assert {p.stem for p in out.iterdir()} == {f.frame_id for f in frames}
    assert len(kitti.read_labels(out / f"{frames[0].frame_id}.txt", with_scores=True)) >= 1
    assert json.loads(numbers.read_text())["frames"] == len(frames)


def test_classes_that_kitti_does_not_measure_are_trained_and_evaluated(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_frames(tmp_path / "yard", 4, "Forklift")
    prepare_kitti(tmp_path / "yard", progress=False)
    options = [f"data.root={tmp_path / 'yard'}", "data.classes=[Forklift]", "data.augment.0.groups={Forklift: 2}"]
    options += ["model.head.anchors.0.class_name=Forklift", "train.max_steps=1", "test.metric.overlap={Forklift: 0.4}"]
    assert main(["train", *arguments, *options]) == 0
    shown = capsys.readouterr().err
    assert "Forklift        3d    0.40" in shown
    assert "ground-truth sampling: 3 of 3 Forklift can be drawn" in shown
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    (tested,) = [line for line in lines if line["kind"] == "test"]
    assert {"Forklift 3d moderate R40", "Forklift bev moderate R40"} <= set(tested)
    assert (tmp_path / "run" / "best.ckpt").exists()
    wrong = [*arguments, *options, "--overwrite", "test.metric.overlap={Forklit: 0.4}"]
    assert main(["train", *wrong]) == 2
    assert "'Forklit' is not one of the classes; did you mean 'Forklift'" in capsys.readouterr().err


def test_a_split_without_labels_is_refused_before_the_training(
    data: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prepare_kitti(data, splits=["train"], progress=False)
    infos = read_index(index_path(data / "pcdet_ext", "train"))
    bare = [replace(info, boxes=None, names=()) for info in infos]
    write_index(index_path(data / "pcdet_ext", "bare"), bare, "kitti")
    assert main(["train", *arguments, "test.split=bare"]) == 2
    assert "test.split: 'bare' has no labels to evaluate on" in capsys.readouterr().err
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_resume_refuses_overwrites_and_continues(
    root: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    short = [*arguments, "train.max_steps=2", "train.evaluate_every=0", "train.log_every=1"]
    assert main(["train", *short, "--resume"]) == 0  # nothing to resume: starts
    log = tmp_path / "run" / "log.jsonl"
    first = log.read_text()
    assert main(["train", *short]) == 2
    assert "holds a run already; pass --resume" in capsys.readouterr().err
    assert main(["train", *short, "--resume"]) != 0
    assert "this training is complete (1 epochs, 2 steps), there is nothing to do" in capsys.readouterr().err
    assert log.read_text() == first
    assert main(["train", *short, "data.classes=[Van]", "model.head.score_threshold=0.5", "--resume"]) != 0
    error = capsys.readouterr().err
    assert "data.classes was ['Car'], now ['Van']" in error
    assert "model.head.score_threshold was" in error
    assert main(["train", *short, "--resume", "model.head.score_threshold=0.5"]) != 0  # a change, no checkpoint
    assert "model.head.score_threshold was" in capsys.readouterr().err
    assert main(["train", *short, "--resume", "--overwrite"]) == 2
    assert "give one of them" in capsys.readouterr().err
    last = (tmp_path / "run" / "last.ckpt").read_bytes()
    assert main(["train", *short, "--overwrite", "model.head.nams=1"]) == 2
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == last  # what cannot train replaces nothing
    (tmp_path / "run" / "best.ckpt").write_bytes(last)
    assert main(["train", *short, "--overwrite"]) == 0
    assert log.read_text() == first
    assert not (tmp_path / "run" / "best.ckpt").exists()
    (tmp_path / "run" / "last.ckpt").rename(tmp_path / "run" / "best.ckpt")
    assert main(["train", *short, "--resume"]) != 0  # the best one, where there is no last one
    assert "best.ckpt: this training is complete" in capsys.readouterr().err
    assert config.load(tmp_path / "run" / "config.yaml")["train"]["max_steps"] == 2


def test_one_training_at_a_time_writes_into_a_folder(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    short = [*arguments, "train.max_steps=1", "train.evaluate_every=0", "data.augment=[]"]
    (tmp_path / "run").mkdir()
    for name in (".last.ckpt.abcdefgh.ckpt", ".best.ckpt.abcdefgh.ckpt", ".config.yaml.abcdefgh.yaml"):
        (tmp_path / "run" / name).write_bytes(b"half a file, as a killed process leaves it")
    hold = "import sys\nfrom pathlib import Path\nfrom pcdet_ext.engine.run_folder import RunFolder\n"
    hold += "with RunFolder(Path(sys.argv[1])) as folder:\n    folder.claim()\n    print('held')\n    input()"
    command = [sys.executable, "-c", hold, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for extra in ([], ["--resume"], ["--overwrite"]):
            assert main(["train", *short, *extra]) == 2
            assert f"another training writes here (process {holder.pid} on " in capsys.readouterr().err
        holder.kill()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]
    assert main(["train", *short]) == 0
    assert main(["train", *short, "train.max_steps=2", "--resume"]) == 0  # the lock goes with the training


def test_damaged_checkpoints_are_named_and_nothing_is_lost(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    short = [*arguments, "train.max_steps=1", "train.evaluate_every=0", "data.augment=[]"]
    assert main(["train", *short]) == 0
    last, damaged = tmp_path / "run" / "last.ckpt", tmp_path / "damaged.ckpt"
    whole, before = checkpoint.read(last), last.read_bytes()
    first = next(iter(whole["model"]))
    changes: list[tuple[dict[str, Any], str]] = [
        ({"optimizer": None}, "holds no training to continue (it has no optimizer)"),
        ({"progress": None}, "holds no training to continue (it has no progress)"),
        ({"rng": None}, "holds no training to continue (it has no rng)"),
        ({"config": [1]}, "'config' must be a mapping, it is a list"),
        ({"model": [1]}, "'model' must be a mapping, it is a list"),
        ({"model": whole["model"] | {first: "text"}}, f"the parameter '{first}' is a str, no tensor"),
        ({"rng": {}}, "'rng' must be a sequence, it is a dict"),
        ({"rng": [1]}, "the state of the random numbers does not fit"),
        ({"rng": [{"python": [3, [], None]}]}, "the state of the random numbers does not fit"),
        ({"optimizer": {"a": 1}}, "the state of the optimiser does not fit"),
        ({"progress": {"epoch": "x"}}, "does not say where a training stands"),
        ({"progress": whole["progress"] | {"batch": -1}}, "does not say where a training stands"),
    ]
    for change, message in changes:
        content = {k: v for k, v in (whole | change).items() if v is not None and k != "format"}
        checkpoint.write(damaged, content)
        assert main(["train", *short, "train.max_steps=2", "--resume", str(damaged)]) != 0
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert re.search(f"{re.escape(str(damaged))}: .*{re.escape(message)}", error)
        assert last.read_bytes() == before
    checkpoint.write(damaged, {k: whole[k] for k in ("config", "model")})
    assert main(["train", *short, "--overwrite", f"train.init_from={damaged}"]) == 0  # what the first message advises
    content = {"config": whole["config"] | {"statistics": {"highest": "abc"}}, "model": whole["model"]}
    checkpoint.write(damaged, content)
    assert main(["test", str(damaged)]) != 0
    assert "statistics.highest must give a number per column" in capsys.readouterr().err


def test_a_training_starts_from_a_checkpoint_with_other_classes(
    root: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    short = [*arguments, "train.max_steps=1", "train.evaluate_every=0", "data.augment=[]"]
    assert main(["train", *short]) == 0
    source = tmp_path / "run" / "last.ckpt"
    anchor = {"sizes": [[4, 1.6, 1.6]], "bottom_height": -1.8, "matched": 0.6, "unmatched": 0.45}
    anchors = [{"class_name": name, **anchor} for name in ("Car", "Van")]
    more = ["data.classes=[Car, Van]", f"model.head.anchors={json.dumps(anchors)}", "train.learning_rate=1.0e-9"]
    more += [f"train.init_from={source}", "--out", str(tmp_path / "tuned")]
    capsys.readouterr()
    assert main(["train", *short, *more]) == 0
    shown = capsys.readouterr().err
    assert "parameters and buffers taken" in shown
    assert "not taken, another shape: head." in shown
    assert f"{source}: data.classes was ['Car'], now ['Car', 'Van']" in shown
    before, after = (checkpoint.read(path)["model"] for path in (source, tmp_path / "tuned" / "last.ckpt"))
    name = next(name for name in before if name.startswith("encoder.") and name.endswith("linear.weight"))
    assert torch.allclose(before[name], after[name])
    assert main(["train", *short, f"train.init_from={tmp_path}/none.ckpt", "--out", str(tmp_path / "b")]) == 2
    assert "none.ckpt: no such checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epocs=3", "did you mean 'epochs'"),
        ("model.encoder.max_pionts=3", "did you mean 'max_points'"),
        ("data.root=/nowhere", "/nowhere"),
        ("data.classes=[Cra]", "Cra"),
        ("data.classes=Car", "data.classes: expected Sequence[str], got 'Car'; write [Car] for a list of one"),
        ("data.point_features=xyz", "data.point_features: expected Sequence[str], got 'xyz'"),
        ("data.point_cloud_range=3", "data.point_cloud_range: expected Sequence[float], got 3"),
        ("data.augment=RandomFlip", "data.augment: expected"),
        ("data.root=$NO_SUCH_PLACE/kitti", "data.root: $NO_SUCH_PLACE/kitti: there is no environment variable"),
        ("train.init_from=~no_such_user/a.ckpt", "train.init_from: ~no_such_user/a.ckpt: there is no user"),
        ("imports=[no_such_module]", "imports: there is no module 'no_such_module'"),
        ("train.fade_augmentations=[RandomFilp]", "did you mean 'RandomFlip'"),
        ("train.precision=fp16", "fp16 needs a CUDA device"),
        ("train.seed=99999999999999999999", "seed must be at most 9223372036854775807"),
        ("foo=1", "foo: a configuration has no such section; known: data"),
        ("test={splt: val}", "test.splt: EvalConfig has no such key; did you mean 'split'"),
        ("test.score_threshold=5", "test.score_threshold: EvalConfig: score_threshold must be from 0 to 1, got 5"),
        ("data.min_points=-1", "min_points must be at least 0, got -1"),
        ("data.seed=-1", "seed must be at least 0, got -1"),
        ("data.min_box_corners=99", "min_box_corners must lie in [0, 8], got 99"),
        (
            "data.process=[{name: PointSampling, number: 100000000000}]",
            "number must lie in [1, 100000000], got 1000000",
        ),
        ("model.head.nms.iou_threshold=5", "iou_threshold must lie in [0, 1], as an overlap does, got 5"),
        ("novalue", "write key.path=value"),
    ],
)
def test_bad_settings_are_one_line(
    root: Path, arguments: list[str], change: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["train", *arguments, change, "train.evaluate_every=0"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("pcdet train: ")
    assert message in error
    assert "\n" not in error


def test_bad_checkpoints_are_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04")
    wrong = (("none.ckpt", 2, "no such checkpoint"), ("cut.ckpt", 1, "damaged or no checkpoint"))
    for name, code, message in wrong:
        assert main(["test", str(tmp_path / name)]) == code
        error = capsys.readouterr().err.strip()
        assert error.startswith(f"pcdet test: {tmp_path / name}: {message}")
        assert "\n" not in error


def test_faded_augmentations_leave_in_the_last_epochs(root: Path, data: Path) -> None:
    settings = config.load(root / "configs" / "kitti" / "demo.yaml", [f"data.root={data}"])
    options = TrainConfig(epochs=5, fade_epochs=2, fade_augmentations=["RandomFlip"])
    dataset = training_datasets(settings["data"], options)
    names = [[type(step).__name__ for step in dataset(epoch).augmentations] for epoch in range(5)]
    rest = ["GroundTruthSampling", "RandomScaling"]
    assert names == [["GroundTruthSampling", "RandomFlip", "RandomScaling"]] * 3 + [rest] * 2
    assert dataset(3) is dataset(4)
    given = {**settings["data"], "disable_augmentations": ["RandomScaling"]}
    for restores, last in ((False, ["GroundTruthSampling"]), (True, rest)):
        dataset = training_datasets(Node(given), dataclasses.replace(options, fade_restores=restores))
        names = [[type(step).__name__ for step in dataset(epoch).augmentations] for epoch in (2, 3)]
        assert names == [["GroundTruthSampling", "RandomFlip"], last]
    with pytest.raises(ConfigError, match="did you mean 'RandomFlip'"):
        training_datasets(settings["data"], TrainConfig(epochs=1, fade_augmentations=["randomFlip"]))


def test_a_training_counts_the_damaged_frames_that_it_skipped(
    data: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "kitti"
    shutil.copytree(data, root)
    frames = {split: read_index(index_path(root / "pcdet_ext", split)).frame_ids for split in ("train", "val")}
    short = [*arguments, f"data.root={root}", "data.on_error=skip", "train.epochs=1", "train.num_workers=2"]
    for frame_id in (frames["train"][3], frames["val"][0]):
        (root / "training" / "velodyne" / f"{frame_id}.bin").write_bytes(b"")
    assert main(["train", *short]) == 0
    error = capsys.readouterr().err
    assert "training: 1 of 8 frames are damaged and were skipped" in error
    assert "test: 1 of 2 frames are damaged and were skipped" in error
    for frame_id in frames["train"]:
        (root / "training" / "velodyne" / f"{frame_id}.bin").write_bytes(b"")
    assert main(["train", *short, "--overwrite"]) == 1
    assert "frames in a row are damaged and were skipped" in capsys.readouterr().err


def test_each_source_fades_its_own_augmentations(root: Path, data: Path) -> None:
    settings = config.load(root / "configs" / "kitti" / "demo.yaml", [f"data.root={data}"])
    own = [{"name": "RandomRotation"}, {"name": "RandomScaling"}]
    sources = [Node({"root": str(data)}), Node({"root": str(data), "augment": own})]
    section = Node({**settings["data"], "sources": sources})

    def names(dataset: Any) -> list[list[str]]:
        return [[type(step).__name__ for step in part.augmentations] for part in dataset.parts]

    for fading, last in (
        (["RandomFlip"], [["GroundTruthSampling", "RandomScaling"], ["RandomRotation", "RandomScaling"]]),
        (["RandomRotation"], [["GroundTruthSampling", "RandomFlip", "RandomScaling"], ["RandomScaling"]]),
    ):
        dataset = training_datasets(section, TrainConfig(epochs=2, fade_epochs=1, fade_augmentations=fading))
        whole = [["GroundTruthSampling", "RandomFlip", "RandomScaling"], ["RandomRotation", "RandomScaling"]]
        assert [names(dataset(epoch)) for epoch in (0, 1)] == [whole, last]
    with pytest.raises(ConfigError, match=r"fade_augmentations: data\.augment has no 'RandomTurn'"):
        training_datasets(section, TrainConfig(epochs=2, fade_epochs=1, fade_augmentations=["RandomTurn"]))


@pytest.mark.parametrize("name", ["demo", "pointpillars", "second", "centerpoint_pillar"])
def test_the_configurations_have_valid_training_sections(root: Path, name: str) -> None:
    settings = config.load(root / "configs" / "kitti" / f"{name}.yaml")
    assert construct(TrainConfig, settings["train"]).epochs > 0


def test_ctrl_c_in_the_first_step_leaves_a_checkpoint(root: Path, arguments: list[str], tmp_path: Path) -> None:
    """A real process: interrupted as soon as it says that training began."""
    command = [sys.executable, str(root / "tools" / "train.py"), *arguments, "train.num_workers=1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    seen = b""
    while b"0/" not in seen:  # the bar appears before the first batch is read
        character = process.stderr.read(1)
        assert character, seen.decode()
        seen += character
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=600)
    assert process.returncode == 130, rest.decode()
    assert b"continues from here" in rest
    assert b"Traceback" not in rest
    assert checkpoint.read(tmp_path / "run" / "last.ckpt")["progress"]["step"] <= 2


def test_training_steps_are_timed(root: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(root / "configs" / "kitti" / "demo.yaml")
    given = ["benchmark", "steps", path, f"data.root={data}", *SMALL]
    assert main([*given, "train.batch_size=3", "--steps", "2", "--threads", "1"]) == 0
    assert "kitti/demo" in (line := capsys.readouterr().out)
    assert "s per step of 3 frames (median of 2, fastest" in line
    assert main(["benchmark", "steps", path, "data.root=/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err
    assert main(["benchmark", "steps", path, "train.batchsize=3", f"data.root={data}"]) == 2
    assert "batch_size" in capsys.readouterr().err
    assert main(["benchmark", "steps", f"data.root={data}"]) == 2
    assert "name a configuration" in capsys.readouterr().err


def test_undecayed_names_that_no_parameter_has_are_an_error(
    root: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, "train.undecayed=[bn_]"]) == 2
    assert "train.undecayed: no parameter of the model has 'bn_' in its name" in capsys.readouterr().err
    assert main(["train", *arguments, "train.undecayed=norm", "--overwrite"]) == 2
    assert "train.undecayed" in capsys.readouterr().err


def test_paths_in_settings_may_begin_with_home_and_variables(
    data: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(data.parent))
    monkeypatch.setenv("PREPARED", str(data))
    short = [*arguments, "train.max_steps=1", "train.evaluate_every=0", f"data.root=~/{data.name}"]
    assert main(["train", *short, "data.index=${PREPARED}/pcdet_ext", "--out", str(tmp_path / "run")]) == 0
    kept = config.load(tmp_path / "run" / "config.yaml")["data"]
    assert (kept["root"], kept["index"]) == (f"~/{data.name}", "${PREPARED}/pcdet_ext")  # good on other machines too
    monkeypatch.setenv("RUNS", str(tmp_path))
    more = ["train.init_from=$RUNS/run/last.ckpt", "--out", "$RUNS/second"]
    assert main(["train", *short, *more]) == 0
    assert (tmp_path / "second" / "last.ckpt").exists()
