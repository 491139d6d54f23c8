"""Place recognition models: losses against loops over queries, chunks against whole batches, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.config import ConfigError, Node
from pcdet_ext.models.detector import build_detector
from pcdet_ext.models.places import BatchHardTriplet, PlaceRecognizer, TruncatedSmoothAP
from pcdet_ext.models.places.recognizer import frames_of
from pcdet_ext.structures import PointBatch, Targets


def batch_of_descriptors(seed: int, count: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator, dtype=torch.float64), dim=1)
    place = torch.randint(0, 4, (count,), generator=generator).double()
    apart = (place[:, None] - place).abs()
    return values, (apart == 0) & ~torch.eye(count, dtype=torch.bool), apart > 1


def smooth_ap_by_hand(values: Tensor, positives: Tensor, negatives: Tensor, temperature: float, most: int) -> float:
    losses = []
    for q in range(len(values)):
        own = [i for i in range(len(values)) if positives[q, i]]
        if not own:
            continue
        similarity = [-math.dist(values[q].tolist(), values[i].tolist()) for i in range(len(values))]
        nearest = sorted(own, key=lambda i: -similarity[i])[:most]
        terms = []
        for p in nearest:

            def before(i: int, p: int = p, similarity: list[float] = similarity) -> float:
                return 1 / (1 + math.exp(-(similarity[i] - similarity[p]) / temperature))

            rank = 1 + sum(before(i) for i in own if i != p)
            terms.append(rank / (rank + sum(before(i) for i in range(len(values)) if negatives[q, i])))
        losses.append(1 - sum(terms) / len(terms))
    return sum(losses) / len(losses) if losses else 0.0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), most=st.integers(1, 5), temperature=st.sampled_from([0.05, 0.2, 1.0]))
def test_smooth_ap_is_what_a_loop_over_queries_gives(seed: int, most: int, temperature: float) -> None:
    values, positives, negatives = batch_of_descriptors(seed)
    loss = TruncatedSmoothAP(temperature, most)(values, positives, negatives)
    assert float(loss) == pytest.approx(smooth_ap_by_hand(values, positives, negatives, temperature, most), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), margin=st.floats(0.05, 2.0))
def test_batch_hard_triplet_is_what_a_loop_over_queries_gives(seed: int, margin: float) -> None:
    values, positives, negatives = batch_of_descriptors(seed)
    terms = []
    for q in range(len(values)):
        far = [math.dist(values[q].tolist(), values[i].tolist()) for i in range(len(values)) if positives[q, i]]
        near = [math.dist(values[q].tolist(), values[i].tolist()) for i in range(len(values)) if negatives[q, i]]
        if far and near:
            terms.append(max(0.0, max(far) - min(near) + margin))
    loss = BatchHardTriplet(margin)(values, positives, negatives)
    assert float(loss) == pytest.approx(sum(terms) / len(terms) if terms else 0.0, abs=1e-9)


@pytest.mark.parametrize("loss", [TruncatedSmoothAP(0.2, 2), BatchHardTriplet(0.5)])
def test_gradients_of_losses(loss: torch.nn.Module) -> None:
    values, positives, negatives = batch_of_descriptors(1)
    assert torch.autograd.gradcheck(lambda v: loss(v, positives, negatives), values.requires_grad_())


@pytest.mark.parametrize("loss", [TruncatedSmoothAP(), BatchHardTriplet()])
def test_equal_descriptors_and_batches_without_positives_have_finite_gradients(loss: torch.nn.Module) -> None:
    same = torch.ones(4, 3, requires_grad=True)
    pairs = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], dtype=torch.bool)
    loss(same, pairs, ~pairs & ~torch.eye(4, dtype=torch.bool)).backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()
    nothing = torch.zeros(4, 4, dtype=torch.bool)
    value = loss(same, nothing, ~nothing)
    value.backward()
    assert value == 0
    assert same.grad.isfinite().all()


def config(**model: Any) -> Node:
    settings: dict[str, Any] = {
        "data": {
            "name": "PlacesDataset",
            "root": "nowhere",
            "point_cloud_range": [-8, -8, -2, 8, 8, 2],
            "positive_radius": 3.0,
            "negative_radius": 10.0,
        },
        "model": {
            "name": "PlaceRecognizer",
            "voxel_size": [1, 1, 1],
            "encoder": {"name": "DynamicVoxelVFE", "num_filters": [8], "use_norm": False},
            "backbone": {
                "name": "SequenceBackbone",
                "layers": [
                    {
                        "order": {"name": "ZOrder"},
                        "partition": {"name": "EqualGroups", "group_size": 16, "masked": True},
                        "mixer": {"name": "SoftmaxAttention", "num_heads": 2},
                    }
                ],
            },
            "pooling": {"name": "PyramidGeM", "out_channels": 12, "batch_norm": False},
            **model,
        },
    }
    return Node(settings)


def model_of(**model: Any) -> PlaceRecognizer:
    torch.manual_seed(0)
    built = build_detector(config(**model))
    assert isinstance(built, PlaceRecognizer)
    return built


def batch(frames: int = 6) -> PointBatch:
    """Frames in pairs of the same place, twenty metres apart, with coordinates as large as those of a country."""
    generator = torch.Generator().manual_seed(1)
    clouds = [torch.rand(60, 3, generator=generator) * 14 - 7 for _ in range(frames)]
    made = PointBatch.from_points(clouds)
    offset = torch.tensor([5e5, 6.9e6, 0.0], dtype=torch.float64)
    at = [offset + torch.tensor([20.0 * (i // 2) + (i % 2), 0, 0], dtype=torch.float64) for i in range(frames)]
    return PointBatch(made.points, made.batch_index, frames, tuple(Targets(position=p) for p in at))


def test_descriptors_have_unit_length_and_do_not_depend_on_the_batch() -> None:
    model, points = model_of().eval(), batch()
    whole = model(points)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(6))
    for frame in range(6):
        torch.testing.assert_close(model(frames_of(points, frame, frame + 1))[0], whole[frame])


def test_frames_without_points_have_a_descriptor_of_zeros() -> None:
    points = batch(2)
    three = PointBatch(points.points, points.batch_index * 2, 3)
    found = model_of().eval().predict(three)
    assert [bool(f.values.any()) for f in found] == [True, False, True]


def test_loss_takes_positions_for_pairs() -> None:
    model, points = model_of(loss={"name": "BatchHardTriplet"}), batch()
    place = torch.arange(6) // 2
    positives = (place[:, None] == place) & ~torch.eye(6, dtype=torch.bool)
    wanted = BatchHardTriplet()(model(points), positives, place[:, None] != place)
    torch.testing.assert_close(model.loss(points)["total"], wanted)


def test_chunks_have_the_gradients_of_the_whole_batch() -> None:
    whole, chunked = model_of(), model_of(chunk_size=4)
    points = batch()
    losses = [model.loss(points)["total"] for model in (whole, chunked)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for (name, a), (_, b) in zip(whole.named_parameters(), chunked.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name, rtol=1e-4, atol=1e-6)


def test_training_tells_places_apart() -> None:
    model, points = model_of(loss={"name": "BatchHardTriplet"}), batch()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    first = None
    for _ in range(40):
        loss = model.loss(points)["total"]
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first is not None
    assert model.loss(points)["total"].item() < 0.2 * first


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="chunk_size must be at least 2"):
        model_of(chunk_size=1)
    with pytest.raises(ConfigError, match="no loss is named 'TruncatedSmothAP'"):
        model_of(loss={"name": "TruncatedSmothAP"})
    with pytest.raises(ConfigError, match="pools relay tokens"):
        model_of(pooling={"name": "TokenAttentionPooling", "num_queries": 4, "out_channels": 8})
    settings = config()
    settings["data"]["positive_radius"] = 20.0
    with pytest.raises(ConfigError, match="at most negative_radius"):
        build_detector(settings)
    del settings["data"]["positive_radius"]
    with pytest.raises(ConfigError, match="PlaceRecognizer needs 'positive_radius'"):
        build_detector(settings)
    with pytest.raises(ValueError, match="no position to learn from"):
        model_of().loss(PointBatch(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), 1, (Targets(),)))
    with pytest.raises(ValueError, match="3 columns"):
        model_of()(PointBatch(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), 1))
