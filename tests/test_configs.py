"""Every configuration of the repository: it is read, its detector is built, and it says what cannot be done with it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.config import ConfigError
from pcdet_ext.data.formats import DATASETS
from pcdet_ext.models.detector import build_detector
from pcdet_ext.models.registry import DETECTORS
from pcdet_ext.structures import PointBatch

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MODELS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "datasets")
DATASET_FILES = sorted((CONFIGS / "datasets").glob("*.yaml"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_detector_is_built(path: Path) -> None:
    settings = config.load(path)
    with torch.device("meta"):  # shapes alone: the largest has 20 million parameters
        detector = build_detector(settings)
    assert sum(p.numel() for p in detector.parameters()) > 10_000
    assert detector.classes == tuple(settings["data"].get("classes", ()))
    check_as_module(detector)


def check_as_module(detector: Any) -> None:
    """Copied and pickled it has the same parameters; in half precision it says what to use instead."""
    shapes = {name: value.shape for name, value in detector.state_dict().items()}
    for copied in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert {name: value.shape for name, value in copied.state_dict().items()} == shapes
        copied.load_state_dict(detector.state_dict(), assign=True)
    batch = PointBatch.from_points([torch.rand(20, detector.num_point_features)])
    for half in (detector.half(), detector.bfloat16()):
        with pytest.raises(ValueError, match=r"too coarse: keep them in float32 .*torch\.autocast"):
            half(batch)


def test_every_kind_of_detector_says_what_to_export_instead() -> None:
    kinds: dict[str, Path] = {}
    for path in MODELS:
        kinds.setdefault(config.load(path)["model"]["name"], path)
    assert set(kinds) == set(DETECTORS.names())
    for path in kinds.values():
        with torch.device("meta"):
            detector = build_detector(config.load(path)).eval()
        batch = PointBatch.from_points([torch.rand(20, detector.num_point_features)])
        with pytest.raises(RuntimeError, match="how many voxels and groups there are depends on the points"):
            torch.export.export(detector, (batch,), strict=False)


@pytest.mark.parametrize("path", DATASET_FILES, ids=lambda path: path.stem)
def test_every_data_set_can_be_read(path: Path) -> None:
    assert config.load(path)["data"]["name"] in DATASETS


WALKED = ("kitti/demo.yaml", "kitti/centerpoint_pillar.yaml", "kitti/flatformer.yaml")

REACHED_BY = {"model.encoder.num_filters.0": ("model.backbone",)}  # where a width can be too large as well


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the numbers of a section stand, of a list the first."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from numbers(value[0], (*path, 0))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize("bad", [-1, 0, 10**12, "many"])
@pytest.mark.parametrize("name", WALKED)
def test_numbers_out_of_range_are_refused_by_key_when_a_model_is_built(name: str, bad: object) -> None:
    """Whatever number of the model is replaced, it is built as told, or refused with the section and the key."""
    wrong = []
    for path in numbers(config.load(CONFIGS / name)["model"]):
        place = ".".join(map(str, ("model", *path)))
        settings = config.load(CONFIGS / name, [f"{place}={bad}"])
        try:
            with torch.device("meta"):
                build_detector(settings)
        except ConfigError as error:
            where = (*path, *REACHED_BY.get(place, ()))
            if not any(isinstance(key, str) and key in str(error) for key in where):
                wrong.append(f"{place}: {error}")
        except Exception as error:
            wrong.append(f"{place}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["demo", "hotformerloc"])
def test_places_are_described_in_double_precision_too(name: str) -> None:
    torch.manual_seed(0)
    small = ["model.num_blocks=[1, 1]"] if name == "hotformerloc" else []
    model = build_detector(config.load(CONFIGS / "place_recognition" / f"{name}.yaml", small)).eval()
    batch = PointBatch.from_points([torch.rand(200, 3) * 20 - 10 for _ in range(2)])
    with torch.no_grad():
        plain = model(batch)
        torch.testing.assert_close(model.double()(batch), plain, rtol=1e-4, atol=1e-5, check_dtype=False)
