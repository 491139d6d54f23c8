"""Training of a `RegistrationNetwork` on pairs of clouds whose pose is known, and its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcdet_ext import checkpoint
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.models.registration import DescribedPoints, RegistrationNetwork, correspondence_loss
from pcdet_ext.registration.ground import GROUND, above_ground
from pcdet_ext.registration.pairs import CloudPair, CloudPairs, turned_at_random
from pcdet_ext.structures import Array, PointBatch

KIND = "registration"


@dataclass(frozen=True)
class RegistrationTraining:
    """How a network is trained.

    Args:
        steps: of the optimiser.
        batch_size: pairs per step.
        learning_rate: the highest; it rises for a tenth of the steps and falls to nothing along a cosine.
        weight_decay: of AdamW.
        seed: of pairs, turns and points that are drawn.

    Raises:
        ValueError: for numbers below one, or rates that are not positive.
    """

    steps: int = 800
    batch_size: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}")
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise ValueError(
                "learning_rate must be positive and weight_decay at least 0, "
                f"got {self.learning_rate} and {self.weight_decay}"
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising, share = 0.1, (step + 1) / self.steps
        if share < rising:
            return self.learning_rate * share / rising
        return self.learning_rate * (1 + math.cos(math.pi * (share - rising) / (1 - rising))) / 2


class RegistrationTrainer:
    """A network that is trained step by step, on pairs that are turned at random.

    What a step does depends on the seed and its number alone, so that a training that goes on from its file ends as one
    that was never stopped.

    Attributes: network; step: how many steps are done.
    """

    def __init__(self, network: RegistrationNetwork, options: RegistrationTraining) -> None:
        self.network, self.options, self.step = network, options, 0
        self.optimizer = torch.optim.AdamW(
            network.parameters(), options.learning_rate, weight_decay=options.weight_decay
        )

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.options.steps

    def advance(self, pairs: CloudPairs) -> float:
        """One step; returns its loss."""
        options, size = self.options, self.options.batch_size
        rng = np.random.default_rng([options.seed, self.step])
        drawn = [turned_at_random(pairs[int(n)], rng) for n in rng.integers(len(pairs), size=size)]
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        loss = loss_of(self.network.train(), drawn, generator)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        for group in self.optimizer.param_groups:
            group["lr"] = options.rate(self.step)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def save(self, path: str | Path) -> None:
        """Write the network with all that is needed to go on. Raises CheckpointError where it cannot be written."""
        config = {"name": KIND, "network": self.network.settings, "training": asdict(self.options)}
        progress = {"step": self.step}
        model, optimizer = self.network.state_dict(), self.optimizer.state_dict()
        checkpoint.write(path, {"config": config, "model": model, "optimizer": optimizer, "progress": progress})

    @staticmethod
    def load(path: str | Path, device: str = "cpu") -> RegistrationTrainer:
        """A training as `save` wrote it. Raises CheckpointError for anything else."""
        content = _read(path)
        network = _network_of(content, path).to(device)
        try:
            trainer = RegistrationTrainer(network, RegistrationTraining(**content["config"]["training"]))
            trainer.optimizer.load_state_dict(content["optimizer"])
            trainer.step = int(content["progress"]["step"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: holds no training of a network for registration ({error!r})") from error
        return trainer


def loss_of(network: RegistrationNetwork, pairs: list[CloudPair], generator: torch.Generator | None = None) -> Tensor:
    """The mean loss of pairs, of points above the ground, since poses are found from those (`register`).

    Partners are within one voxel, points within three do not count against each other.

    Args:
        network: what is trained.
        pairs: of clouds, with the pose that moves the source onto the target.
        generator: of what the loss draws; torch's own when None.
    """
    device = network.embed.weight.device
    clouds = [torch.from_numpy(np.ascontiguousarray(c[:, :3])) for pair in pairs for c in (pair.source, pair.target)]
    found = network(PointBatch.from_points([cloud.to(device) for cloud in clouds]))
    size = network.voxel_size
    losses = [
        correspondence_loss(
            _standing(found.of_frame(2 * i), pair.source),
            _standing(found.of_frame(2 * i + 1), pair.target),
            torch.from_numpy(pair.pose).to(device),
            size,
            3 * size,
            generator=generator,
        )
        for i, pair in enumerate(pairs)
    ]
    return torch.stack(losses).mean()


def _standing(described: DescribedPoints, cloud: Array) -> DescribedPoints:
    """What stands above the ground."""
    kept = torch.from_numpy(above_ground(described.points.cpu().numpy(), cloud, GROUND)).to(described.points.device)
    return DescribedPoints(described.points[kept], described.descriptors[kept], described.frame[kept])


def load_network(path: str | Path) -> RegistrationNetwork:
    """The network of a file that a training wrote, for use. Raises CheckpointError for anything else."""
    return _network_of(_read(path), path).eval()


def _read(path: str | Path) -> dict[str, Any]:
    content = checkpoint.read(path)
    settings = content["config"]
    if settings.get("name") != KIND or not isinstance(settings.get("network"), dict):
        raise CheckpointError(f"{path}: holds no network for registration; `pcdet benchmark registration` trains one")
    return content


def _network_of(content: Mapping[str, Any], path: str | Path) -> RegistrationNetwork:
    try:
        network = RegistrationNetwork(**content["config"]["network"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its settings make no network for registration ({error})") from error
    checkpoint.load_model(network, content["model"], path)
    return network
