"""The graph tracker: attention against its definition, its edges by hand, matches by brute force, learning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pcdet_ext.structures import Detections
from pcdet_ext.tracking import graph_edges
from pcdet_ext.tracking.graph import GraphTracker
from pcdet_ext.tracking.graph_matching import matches
from pcdet_ext.tracking.graph_network import Associations, EdgeAttention, GraphTrackerNetwork, association_loss
from pcdet_ext.tracking.graph_states import FrameNodes, GraphOptions, TrackNodes, sequence_losses, step


def network(seed: int = 0, **options: bool) -> GraphTrackerNetwork:
    torch.manual_seed(seed)
    return GraphTrackerNetwork(16, 4, 1, 2, dropout=0.0, **options)


def test_attention_over_edges_is_masked_dense_attention() -> None:
    torch.manual_seed(0)
    attention = EdgeAttention(8, 2, gate=True).double()
    source, target = torch.randn(5, 8).double(), torch.randn(4, 8).double()
    mask = torch.rand(5, 4) < 0.6
    mask[:, 3] = False
    edges = mask.nonzero().T
    features = torch.randn(edges.shape[1], 8).double()
    found, new = attention.attend(source, target, edges, features)
    dense = torch.zeros(5, 4, 8).double()
    dense[edges[0], edges[1]] = features
    query, key = attention.lin_query(target).view(4, 2, 4), attention.lin_key(source).view(5, 2, 4)
    scores = torch.einsum("ihc,jhc->jih", query, key) / 2 + attention.lin_edge_attn(dense)
    share = scores.masked_fill(~mask[..., None], -math.inf).softmax(0).nan_to_num(0)
    value = attention.lin_value(source)[:, None] * attention.lin_edge_gate(dense).sigmoid()
    expected = torch.einsum("jih,jihc->ihc", share, value.view(5, 4, 2, 4)).flatten(1) + attention.lin_skip(target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found[3], attention.lin_skip(target)[3])
    torch.testing.assert_close(new, attention.lin_edge(scores[edges[0], edges[1]]))


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(1)
    attention = EdgeAttention(4, 2).double()
    edges = torch.tensor([[0, 1, 2, 2], [0, 0, 1, 0]])
    inputs = [torch.randn(n, 4).double().requires_grad_() for n in (3, 2, 4)]
    assert torch.autograd.gradcheck(lambda s, t, f: attention.attend(s, t, edges, f), inputs)


def test_the_network_of_the_published_size_has_the_published_parameters(shared: Path) -> None:
    own = GraphTrackerNetwork()
    assert sum(parameter.numel() for parameter in own.parameters()) == 742_043
    manifest = json.loads((shared / "golden" / "tracking" / "manifest.json").read_text())["3dmotformer"]
    assert {name: list(value.shape) for name, value in own.state_dict().items()} == dict(manifest["params"])


@pytest.mark.parametrize("optimal", [False, True])
def test_no_track_and_no_detection_is_matched_twice(optimal: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        shape = rng.integers(0, 7, 2)
        affinity, allowed = rng.random(shape).astype(np.float32), rng.random(shape) < 0.5
        pairs, tracks, detections = matches(affinity, allowed, 0.2, optimal)
        assert (affinity[pairs[:, 0], pairs[:, 1]] > 0.2).all()
        assert allowed[pairs[:, 0], pairs[:, 1]].all()
        for side, left in ((0, tracks), (1, detections)):
            assert sorted([*pairs[:, side], *left]) == list(range(shape[side]))


def nodes(places: list[tuple[float, float]], labels: list[int], objects: list[int] | None = None) -> FrameNodes:
    features = torch.zeros(len(places), 17)
    features[:, :2], features[:, 16] = torch.tensor(places).view(-1, 2), 0.9
    features[torch.arange(len(places)), 9 + torch.tensor(labels, dtype=torch.long)] = 1
    true = torch.tensor(objects if objects is not None else [-1] * len(places))
    zero = torch.zeros(len(places), 2)
    return FrameNodes(features, torch.zeros(len(places), dtype=torch.long), true, zero, true >= 0)


def test_edges_join_a_class_within_its_distance() -> None:
    near = nodes([(0, 0), (4, 0), (10, 0), (0, 0)], [0, 0, 0, 1])
    edges = graph_edges.within(near.features[:, :7], near.label, near.batch)
    assert {tuple(edge) for edge in edges.T.tolist() if edge[0] != edge[1]} == {(0, 1), (1, 0)}
    tracks = TrackNodes.first(nodes([(0, 0), (0, 0)], [0, 1]))
    done = step(network(), tracks, nodes([(3.9, 0), (0.9, 0), (1.1, 0)], [0, 1, 1]), GraphOptions())
    assert done.edges.T.tolist() == [[0, 0], [1, 1]]


def test_life_of_tracks() -> None:
    net, options = network(), GraphOptions(max_age=2)
    tracks = TrackNodes.first(nodes([(0, 0), (50, 0)], [0, 0]))
    ages = []
    for _ in range(3):
        done = step(net, tracks, nodes([(0, 0)], [0]), options)
        tracks = done.tracks
        ages.append(tracks.age.tolist())
    assert ages == [[1, 2], [1], [1]]
    assert tracks.features.shape == (1, 16)


def test_loss_of_one_edge_by_hand() -> None:
    found = Associations(torch.tensor([[0.0]]), torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([[3.0, 0.0]]))
    loss = association_loss(found, torch.ones(1, 1), torch.zeros(1, 2), torch.tensor([True]), velocity_weight=2.0)
    assert float(loss) == pytest.approx(0.5 * math.log(2) + 2 * 2.5 / 2)


def test_it_learns_to_tell_objects_apart_that_cross() -> None:
    """Two cars change places, so that both may be both: the network must learn which is which."""
    net = network(3)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    frames = [nodes([(t, 0.0), (3.0 - t, 1.0), (t, 9.0)], [0, 0, 1], [0, 1, 2]) for t in (0.0, 1.0, 2.0, 3.0)]
    losses = []
    for _ in range(40):
        total = torch.stack(sequence_losses(net, frames, GraphOptions())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.35 * losses[0]
    with pytest.raises(ValueError, match="training needs"):
        sequence_losses(net, [frames[0], FrameNodes(frames[1].features, frames[1].batch)], GraphOptions())


def test_a_live_sequence() -> None:
    tracker = GraphTracker(network())
    found = []
    for i in range(4):
        boxes = np.zeros((3, 9), np.float32)
        boxes[:, 0], boxes[:, 3:6] = (2.0 * i, 40 - 2.0 * i, 90), (4, 2, 1.5)
        boxes[:, 7] = (4, -4, 0)
        rows = slice(0, 0) if i == 1 else slice(None)
        given = Detections(boxes[rows], np.array([0.9, 0.8, 0.7], np.float32)[rows], np.array([0, 0, 1])[rows], NAMES)
        found.append(tracker.update(given, np.eye(4), 0.5 * i))
    assert [boxes.track_ids.tolist() for boxes in found] == [[0, 1], [], [0, 1], [0, 1]]
    tracker.reset()
    assert tracker.update(given, None, 0.0).track_ids.tolist() == [0, 1]


NAMES = ("car", "barrier")


def cars(places: list[float], scores: list[float], width: int = 9, speed: float = 0.0) -> Detections:
    boxes = np.zeros((len(places), width), np.float32)
    boxes[:, 0], boxes[:, 3:6], boxes[:, 7:8] = places, (4, 2, 1.5), speed
    return Detections(boxes, np.array(scores, np.float32), np.zeros(len(places), np.int64), NAMES)


def test_a_track_without_velocity_stays_where_it_was_while_it_is_not_found() -> None:
    tracker = GraphTracker(network())
    tracker.update(cars([0.0, 50.0], [0.9, 0.8], 7), None, 0.0)
    found = tracker.update(cars([0.0], [0.9], 7), None, 0.5)
    assert found.boxes[:, 0].tolist() == [0.0, 50.0]


def test_tracks_are_moved_by_the_time_that_has_passed_unless_a_period_is_given() -> None:
    for period, way in ((None, 1.0), (0.5, 5.0)):
        tracker = GraphTracker(network(), period=period)
        tracker.update(cars([0.0, 50.0], [0.9, 0.8], speed=10.0), None, 7.0)
        found = tracker.update(cars([way], [0.9]), None, 7.1)
        assert found.boxes[:, 0] == pytest.approx([way, 50.0 + way])


def test_places_of_tracks_follow_the_time_since_they_were_seen() -> None:
    net = network()
    tracks = TrackNodes.first(nodes([(0, 0), (50, 0)], [0, 0]))
    for elapsed in (0.1, 0.3):
        tracks = step(net, tracks, nodes([(0, 0)], [0]), GraphOptions(), elapsed).tracks
    assert tracks.unseen.tolist() == pytest.approx([0.0, 0.4])


def test_detections_are_suppressed_filtered_and_limited_as_asked_for() -> None:
    given = cars([0.0, 0.2, 50.0, 90.0], [0.9, 0.8, 0.7, 0.05])
    for options, expected in (
        ({}, [0.0, 0.2, 50.0, 90.0]),
        ({"nms": 0.1}, [0.0, 50.0, 90.0]),
        ({"score_threshold": 0.1}, [0.0, 0.2, 50.0]),
        ({"nms": 0.1, "max_outputs": 1}, [0.0]),
    ):
        found = GraphTracker(network(), **options).update(given, None, 0.0)
        assert found.boxes[:, 0] == pytest.approx(expected)
    for wrong in ({"max_outputs": 0}, {"period": 0.0}):
        with pytest.raises(ValueError, match="must be positive"):
            GraphTracker(network(), **wrong)
