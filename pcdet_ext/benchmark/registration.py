"""Registration by a trained network beside FPFH: the same pairs, the same matching and the same RANSAC, in one run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from tqdm import tqdm

from pcdet_ext.data.places import PlacesDataset
from pcdet_ext.files import atomic_write
from pcdet_ext.inference import resolve_device
from pcdet_ext.models.registration import RegistrationNetwork
from pcdet_ext.registration.checks import check_length
from pcdet_ext.registration.ground import GROUND
from pcdet_ext.registration.pairs import APART, CloudPair, CloudPairs, turned_at_random
from pcdet_ext.registration.pose import (
    FPFH,
    MATCH_DISTANCE,
    ROTATION,
    TRANSLATION,
    Describer,
    NetworkDescriber,
    PoseError,
    open3d,
    register,
)
from pcdet_ext.registration.training import RegistrationTrainer, RegistrationTraining

SAVE_EVERY = 20  # steps
OURS, PEER = "LSH windows", "FPFH"
GROUPS = ("all", "same direction", "opposite direction")


@dataclass(frozen=True)
class Registered:
    """How one method did on a pair: how far off its pose is, whether the clouds face away from each other, seconds."""

    error: PoseError
    opposite: bool
    seconds: float

    @property
    def found(self) -> bool:
        """Whether its pose is right, up to `ROTATION` and `TRANSLATION`."""
        return self.error.within(ROTATION, TRANSLATION)


def run_registration(
    root: str | Path,
    checkpoint: str | Path,
    steps: int = 800,
    pairs: int = 200,
    apart: tuple[float, float] = APART,
    json_file: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    ground: float | None = GROUND,
) -> dict[str, list[Registered]]:
    """Train a network on one split of a folder for place recognition, and register pairs of another one with it.

    Args:
        root: prepared folder whose frames have positions and headings (docs/place_recognition.md).
        checkpoint: of the network, written as it is trained. One that exists is loaded, and its training goes on where
            it was stopped, with the settings it began with.
        steps: of training, on the split train.
        pairs: of the split val, or all where there are fewer; at least one.
        apart: metres between the two clouds of a tested pair, at least and at most; in training they are those of
            `APART`.
        json_file: file for all numbers.
        device: where the network runs, "cpu", "cuda", or "auto" for CUDA where there is one.
        seed: of training and of the pairs.
        ground: metres above the lowest points around up to which a point of a tested pair is on the ground; None keeps
            all points. Training leaves the ground out in any case.

    Returns:
        For each method how it did on each pair.

    Raises:
        ConfigError: the device is not there.
        ValueError: for less than one pair, distances that are no range, and a ground below 0 or not finite.
        DataError: the folder is not prepared or damaged, or has no pairs.
        CheckpointError: the checkpoint is no network for registration.
        ImportError: without Open3D.
    """
    if ground is not None:
        check_length(ground, "ground", zero=True)
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    if not 0 <= apart[0] < apart[1] < np.inf:
        raise ValueError(f"apart must be two distances, the smaller first, got {apart[0]:g} and {apart[1]:g}")
    place = str(resolve_device(device))
    open3d()  # what is missing is said before the training takes its time
    tested = _pairs(root, "val", apart)
    network = _network(root, checkpoint, RegistrationTraining(steps=steps, seed=seed), place)
    size = network.voxel_size
    methods: dict[str, Describer] = {OURS: NetworkDescriber(network), PEER: FPFH(size)}
    results: dict[str, list[Registered]] = {name: [] for name in methods}
    rng = np.random.default_rng(seed)
    for number in tqdm(tested.some(pairs, rng), unit="pair", desc="register", leave=False):
        pair = turned_at_random(tested[number], rng)
        for name, method in methods.items():
            results[name].append(_registered(pair, method, MATCH_DISTANCE * size, ground))
    print("\n".join(table(results)))
    if json_file is not None:
        with atomic_write(json_file) as temporary:
            temporary.write_text(json.dumps({"ground_metres": ground} | _plain(results), indent=1), encoding="utf-8")
    return results


def _network(
    root: str | Path, checkpoint: str | Path, options: RegistrationTraining, device: str
) -> RegistrationNetwork:
    """The network of a checkpoint; one that is not there, or not finished, is trained and written."""
    if Path(checkpoint).exists():
        trainer = RegistrationTrainer.load(checkpoint, device)
    else:
        torch.manual_seed(options.seed)
        trainer = RegistrationTrainer(RegistrationNetwork().to(device), options)
    if trainer.finished:
        return trainer.network
    pairs = _pairs(root, "train", APART)
    with tqdm(initial=trainer.step, total=trainer.options.steps, unit="step", desc="train") as bar:
        while not trainer.finished:
            bar.set_postfix(loss=f"{trainer.advance(pairs):.3f}", refresh=False)
            bar.update()
            if trainer.finished or trainer.step % SAVE_EVERY == 0:
                trainer.save(checkpoint)
    return trainer.network


def _pairs(root: str | Path, split: str, apart: tuple[float, float]) -> CloudPairs:
    everything = (-1e4, -1e4, -1e4, 1e4, 1e4, 1e4)  # the network and FPFH see to what they read
    dataset = PlacesDataset(
        root=root,
        split=split,
        point_cloud_range=everything,
        positive_radius=apart[1],
        negative_radius=2 * apart[1],
    )
    return CloudPairs(dataset, *apart)


def _registered(pair: CloudPair, method: Describer, distance: float, ground: float | None) -> Registered:
    begun = time.perf_counter()
    found = register(pair.source, pair.target, method, distance, ground)
    return Registered(found.error(pair.pose), pair.opposite, time.perf_counter() - begun)


def recall(results: Mapping[str, list[Registered]]) -> dict[str, dict[str, float]]:
    """Share of the pairs whose pose was found, for each group of pairs and method; NaN for a group without pairs."""
    chosen = {name: _groups(found) for name, found in results.items()}
    return {group: {name: _share(chosen[name][group]) for name in results} for group in GROUPS}


def table(results: Mapping[str, list[Registered]]) -> list[str]:
    """Lines with the recall of each method and its 95 % interval (Wilson), what one alone found, and the errors."""
    lines = [f"recall in percent: rotation below {ROTATION:g}°, translation below {TRANSLATION:g} m; 95 % intervals"]
    lines.append(f"{'':20}{'pairs':>7}" + "".join(f"{name:>22}" for name in results))
    grouped = {name: _groups(found) for name, found in results.items()}
    for group in GROUPS:
        cells = [_with_interval(grouped[name][group]) for name in results]
        count = len(next(iter(grouped.values()))[group])
        lines.append(f"{group:20}{count:7}" + "".join(f"{cell:>22}" for cell in cells))
    lines.append(_alone(results))
    for name, found in results.items():
        right = [one.error for one in found if one.found]
        errors = "none found"
        if right:
            turn, shift = np.mean([(e.rotation, e.translation) for e in right], 0)
            errors = f"mean error where found {turn:.2f}° and {100 * shift:.0f} cm"
        seconds = np.median([one.seconds for one in found])
        lines.append(f"{name}: {errors}; {seconds:.2f} s per pair")
    return lines


def _with_interval(found: list[Registered]) -> str:
    """Recall in percent, with the interval that holds the true one in 95 of 100 cases."""
    if not found:
        return "-"
    right = sum(one.found for one in found)
    low, high = binomtest(right, len(found)).proportion_ci(0.95, "wilson")
    return f"{100 * right / len(found):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _alone(results: Mapping[str, list[Registered]]) -> str:
    """How many pairs one of two methods found and the other did not, and how likely that is where none is better."""
    (first, ours), (second, theirs) = results.items()
    pairs = [(a.found, b.found) for a, b in zip(ours, theirs, strict=True)]
    more, fewer = pairs.count((True, False)), pairs.count((False, True))
    chance = binomtest(more, more + fewer).pvalue if more + fewer else 1.0
    return f"found by {first} alone {more}, by {second} alone {fewer}; as uneven by chance: {chance:.2g} (sign test)"


def _groups(found: list[Registered]) -> dict[str, list[Registered]]:
    opposite = [one for one in found if one.opposite]
    return dict(zip(GROUPS, (found, [one for one in found if not one.opposite], opposite), strict=True))


def _share(found: list[Registered]) -> float:
    return float(np.mean([one.found for one in found])) if found else float("nan")


def _plain(results: Mapping[str, list[Registered]]) -> dict[str, Any]:
    return {
        "limits": {"rotation_degrees": ROTATION, "translation_metres": TRANSLATION},
        "recall": recall(results),
        "pairs": {
            name: [
                {
                    "rotation_degrees": _or_none(one.error.rotation),
                    "translation_metres": _or_none(one.error.translation),
                    "opposite": one.opposite,
                    "seconds": one.seconds,
                }
                for one in found
            ]
            for name, found in results.items()
        },
    }


def _or_none(value: float) -> float | None:
    """A number, or None, which JSON has, where there was no pose."""
    return value if math.isfinite(value) else None
