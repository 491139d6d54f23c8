"""Training of TrajectoryFormer: hypotheses at the time of the annotations, their velocities, and what is no number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from pcdet_ext.tracking import trajectory_fit
from pcdet_ext.tracking.trajectory_data import DetectionBlocks, organised
from pcdet_ext.tracking.trajectory_drives import DriveFrame, blocks_at
from pcdet_ext.tracking.trajectory_motion import MotionPredictor
from pcdet_ext.tracking.trajectory_network import TrajectoryNetwork
from pcdet_ext.tracking.trajectory_states import _predicted
from pcdet_ext.tracking.trajectory_training import TrainingOptions, TrainingSample, predicted_tracks, training_step

TINY = TrainingOptions(points=4)


def network() -> TrajectoryNetwork:
    torch.manual_seed(0)
    return TrajectoryNetwork(8, 2, 1, 8).eval()


def drive(frames: int = 5, places: Sequence[float] = (0.0, 10.0)) -> list[DriveFrame]:
    """Cars that drive on at 10 m/s beside each other, 1 m per frame, with annotations where they are."""
    count = len(places)
    found = []
    for i in range(frames):
        boxes = torch.tensor([[10.0 + i, y, 0.9, 4.5, 2.0, 1.6, 0.1] for y in places])
        velocity = torch.tensor([[10.0, 0.0]]).expand(count, 2)
        found.append(
            DriveFrame(
                boxes,
                velocity,
                torch.linspace(0.9, 0.8, count),
                torch.ones(count, dtype=torch.int64),
                torch.eye(4, dtype=torch.float64),
                boxes,
                torch.arange(count).numpy(),
                lambda: torch.zeros(0, 6),
            )
        )
    return found


def blocks(frames: Sequence[DriveFrame]) -> DetectionBlocks:
    return organised([blocks_at(frames, len(frames) - 1, 4)], 0.1, 0.0)


def test_predictions_are_for_the_frame_that_is_annotated() -> None:
    net, frames = network(), drive()
    torch.nn.init.zeros_(net.velboxembed.out_mlps[-1].weight)
    torch.nn.init.zeros_(net.velboxembed.out_mlps[-1].bias)
    own = blocks(frames)
    now, history = predicted_tracks(net, own)
    torch.testing.assert_close(now[0], frames[-1].annotations)
    torch.testing.assert_close(history[0, 0, :, :7], frames[-2].annotations)
    late, published_history = predicted_tracks(net, own, published=True)
    torch.testing.assert_close(late[0, :, 0], frames[-1].annotations[:, 0] + 1)
    assert torch.equal(published_history, history)


def test_predictions_in_training_are_those_of_tracking() -> None:
    net, frames = network(), drive()
    past = [frames[i] for i in (3, 2, 1)]
    boxes = torch.stack([frame.boxes for frame in past], 1)
    expected = _predicted(net, boxes, past[0].velocity, 0).detach()
    found, _ = predicted_tracks(net, blocks(frames))
    assert float((expected - frames[-1].boxes).abs().max()) > 1e-3  # the network has a say
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)


def test_the_order_of_detections_changes_nothing_but_as_published() -> None:
    own = blocks(drive())
    speeds = own.velocity.clone()
    speeds[0, 0] = torch.tensor([[9.0, 1.0], [2.0, -4.0]])
    own = replace(own, velocity=speeds)
    turned = DetectionBlocks(*(torch.cat([c[:, :1].flip(2), c[:, 1:]], 1) for c in vars(own).values()))
    for published in (False, True):
        torch.manual_seed(0)
        predictor = MotionPredictor(8, published=published).eval()
        first, second = predictor(own).future, predictor(turned).future
        assert bool(torch.allclose(first, second)) is not published


def test_detections_that_do_not_touch_are_kept_but_as_published() -> None:
    """Boxes of 2 m width, 5 mm apart."""
    pair = drive(places=(0.0, 2.005))
    for frame in pair:
        frame.boxes[:, 6] = 0
    found = [organised([blocks_at(pair, 4, 4)], 0.0, 0.0, published) for published in (False, True)]
    assert [int((own.score[0, 0] > 0).sum()) for own in found] == [2, 1]


def sample(frames: Sequence[DriveFrame], annotations: torch.Tensor) -> TrainingSample:
    return TrainingSample(blocks_at(frames, len(frames) - 1, 4), torch.zeros(0, 6), annotations)


def test_losses_without_anything_to_learn_from_are_left_out() -> None:
    net, frames = network(), drive()
    drawn = torch.zeros(1, 2, 2, 7)
    far = frames[-1].annotations + 100
    found = [
        training_step(net, [sample(frames, true)], TINY, drawn=drawn).losses
        for true in (frames[-1].annotations, far, far[:0])
    ]
    assert [[*losses] for losses in found] == [["points", "boxes", "joint", "codes", "corners"], ["points"], ["points"]]
    assert all(bool(value.isfinite()) for losses in found for value in losses.values())


def test_frames_without_real_tracks_teach_that_no_hypothesis_is_right() -> None:
    net = network()
    frames = [replace(frame, annotations=frame.annotations + 100) for frame in drive()]
    losses = [*trajectory_fit.fit(net, [frames], 3, 4, 2, options=TINY)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("part", ["boxes_cls", "point_reg", "velboxembed"])
def test_training_that_is_no_longer_finite_stops(part: str) -> None:
    """Among the losses of the hypotheses, of their corrections, and of the motion predictor, one is NaN."""
    net = network()
    torch.nn.init.constant_([*net.get_submodule(part).parameters()][-1], torch.nan)
    fit = trajectory_fit.fit_motion if part == "velboxembed" else trajectory_fit.fit
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        list(fit(net, [drive()], 1, 4, 2, options=TINY))
