"""Training of a `RegistrationNetwork` on pairs of clouds whose pose is known, and its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcdet_ext import checkpoint
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.models.registration import RegistrationNetwork, correspondence_loss
from pcdet_ext.registration.pairs import CloudPair, CloudPairs, turned_at_random
from pcdet_ext.structures import PointBatch

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


def train_network(
    network: RegistrationNetwork,
    pairs: CloudPairs,
    options: RegistrationTraining,
    tell: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train a network in place, on pairs that are turned at random; `tell` is given each step's number and loss."""
    rng = np.random.default_rng(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate, weight_decay=options.weight_decay)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=max(options.steps, 2), pct_start=0.1
    )
    order = rng.permutation(len(pairs))
    for step in range(options.steps):
        numbers = [order[(step * options.batch_size + i) % len(order)] for i in range(options.batch_size)]
        loss = loss_of(network.train(), [turned_at_random(pairs[int(n)], rng) for n in numbers], generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        rates.step()
        tell(step + 1, float(loss.detach()))


def loss_of(network: RegistrationNetwork, pairs: list[CloudPair], generator: torch.Generator | None = None) -> Tensor:
    """The mean loss of pairs: partners are within one voxel, points within three do not count against each other."""
    device = network.embed.weight.device
    clouds = [torch.from_numpy(np.ascontiguousarray(c[:, :3])) for pair in pairs for c in (pair.source, pair.target)]
    found = network(PointBatch.from_points([cloud.to(device) for cloud in clouds]))
    size = network.voxel_size
    losses = [
        correspondence_loss(
            found.of_frame(2 * i),
            found.of_frame(2 * i + 1),
            torch.from_numpy(pair.pose).to(device),
            size,
            3 * size,
            generator=generator,
        )
        for i, pair in enumerate(pairs)
    ]
    return torch.stack(losses).mean()


def save_network(path: str | Path, network: RegistrationNetwork, options: RegistrationTraining) -> None:
    """Write a network to a file, with how it was trained. Raises CheckpointError where it cannot be written."""
    settings = {"name": KIND, "network": network.settings, "training": asdict(options)}
    checkpoint.write(path, {"config": settings, "model": network.state_dict()})


def load_network(path: str | Path) -> RegistrationNetwork:
    """A network from a file that `save_network` wrote. Raises CheckpointError for anything else."""
    content = checkpoint.read(path)
    settings = content["config"]
    if settings.get("name") != KIND or not isinstance(settings.get("network"), dict):
        raise CheckpointError(f"{path}: holds no network for registration; `pcdet benchmark registration` trains one")
    try:
        network = RegistrationNetwork(**settings["network"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its settings make no network for registration ({error})") from error
    checkpoint.load_model(network, content["model"], path)
    return network.eval()
