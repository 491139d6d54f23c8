"""Accumulated gradients, averaged weights, frozen parts and the early stop of a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_detector import toy_inputs
from toy_runs import losses, run, same_model, stop_at

from pcdet_ext import checkpoint
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.config import ConfigError, Node, construct
from pcdet_ext.engine.averaging import EMAConfig
from pcdet_ext.engine.freezing import FrozenParts
from pcdet_ext.engine.loader import EpochBatches
from pcdet_ext.engine.progress import Progress
from pcdet_ext.engine.resuming import check_same_frozen
from pcdet_ext.engine.run_folder import BEST, LAST
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.engine.stopping import EarlyStopConfig
from pcdet_ext.engine.trainer import TrainingInputs
from pcdet_ext.evaluation.base import Result


def test_accumulated_gradients_are_those_of_the_large_batch(tmp_path: Path) -> None:
    for name, settings in {"large": {"batch_size": 4}, "small": {"batch_size": 1, "accumulate": 4}}.items():
        assert run(tmp_path / name, toy_inputs(dropout=0.0), **settings)
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "large"), rel=1e-5)
    large = checkpoint.read(tmp_path / "large" / LAST)["model"]
    for name, value in checkpoint.read(tmp_path / "small" / LAST)["model"].items():
        torch.testing.assert_close(value, large[name], rtol=1e-4, atol=1e-6)


def test_batches_of_a_step_share_the_samples_of_the_large_batch() -> None:
    large = list(EpochBatches(11, 4, seed=0))
    parts = [EpochBatches(11, 1, 0, rank, processes=2, accumulate=2) for rank in range(2)]
    with pytest.raises(ValueError, match=r"train\.accumulate 6: a step would take 12 frames, the data set has 11"):
        EpochBatches(11, 1, 0, processes=2, accumulate=6)
    first, second = (list(part) for part in parts)
    assert [len(part) for part in parts] == [6, 6]
    steps = [first[i] + second[i] + first[i + 1] + second[i + 1] for i in range(0, 6, 2)]
    assert steps == large
    parts[0].seek(0, start=2)
    assert list(parts[0]) == first[4:]


def test_accumulating_continues_exactly(tmp_path: Path) -> None:
    settings = {"batch_size": 2, "accumulate": 2}
    assert run(tmp_path / "whole", **settings)
    assert not run(tmp_path / "parts", stop_at(toy_inputs(), 3), **settings)  # in the middle of the second step
    content = checkpoint.read(tmp_path / "parts" / LAST)
    assert content["progress"]["step"] == 2
    assert run(tmp_path / "parts", resume=content, **settings)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def watched(inputs: TrainingInputs) -> tuple[TrainingInputs, list[torch.Tensor], list[torch.Tensor]]:
    """The same inputs, a list of the first layer's weights as each step finds them, and as each evaluation does."""
    stepped: list[torch.Tensor] = []
    evaluated: list[torch.Tensor] = []
    loss, evaluate, weight = inputs.detector.loss, inputs.evaluate, inputs.detector.layers[0].weight

    def step(batch: Any) -> Any:
        if inputs.detector.training:
            stepped.append(weight.detach().clone())
        return loss(batch)

    def measure(model: nn.Module, should_stop: Any) -> Result | None:
        evaluated.append(weight.detach().clone())
        return evaluate(model, should_stop)

    inputs.detector.loss = step
    return replace(inputs, evaluate=measure), stepped, evaluated


@pytest.mark.parametrize("warmup", [False, True])
def test_averaged_weights_are_evaluated_and_kept(tmp_path: Path, warmup: bool) -> None:
    inputs, stepped, evaluated = watched(toy_inputs())
    assert run(tmp_path, inputs, learning_rate=0.03, ema=EMAConfig(decay=0.6, warmup=warmup))
    content = checkpoint.read(tmp_path / LAST)
    expected = stepped[0].double()
    after_steps = [*stepped[1:], content["ema"]["trained"]["layers.0.weight"]]
    for step, weights in enumerate(after_steps, 1):
        decay = min(0.6, (1 + step) / (10 + step)) if warmup else 0.6
        expected = decay * expected + (1 - decay) * weights.double()
    torch.testing.assert_close(content["model"]["layers.0.weight"], expected.float(), rtol=1e-5, atol=1e-7)
    assert torch.equal(evaluated[-1], content["model"]["layers.0.weight"])
    assert not torch.equal(after_steps[-1], evaluated[-1])
    assert torch.equal(inputs.detector.layers[0].weight, after_steps[-1])  # the training goes on with its own weights
    assert content["ema"]["updates"] == len(after_steps)
    best = checkpoint.read(tmp_path / BEST)
    assert any(torch.equal(best["model"]["layers.0.weight"], weights) for weights in evaluated)


@pytest.mark.parametrize("step", [1, 5])
def test_averaging_continues_exactly(tmp_path: Path, step: int) -> None:
    ema = EMAConfig(decay=0.9)
    assert run(tmp_path / "whole", ema=ema)
    assert not run(tmp_path / "parts", stop_at(toy_inputs(), step), ema=ema)
    assert run(tmp_path / "parts", resume=checkpoint.read(tmp_path / "parts" / LAST), ema=ema)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same_model(tmp_path / "parts" / LAST, tmp_path / "whole" / LAST)
    assert same_model(tmp_path / "parts" / BEST, tmp_path / "whole" / BEST)


def test_averaging_can_begin_and_end_with_a_continuation(tmp_path: Path) -> None:
    assert run(tmp_path / "plain")
    assert run(tmp_path / "plain", resume=checkpoint.read(tmp_path / "plain" / LAST), epochs=4, ema=EMAConfig())
    content = checkpoint.read(tmp_path / "plain" / LAST)
    assert content["ema"]["updates"] == 3
    assert run(tmp_path / "plain", resume=content, epochs=5)
    assert "ema" not in checkpoint.read(tmp_path / "plain" / LAST)


@pytest.mark.parametrize("damage", [{"updates": 3}, {"updates": "x", "trained": None}, {"updates": 3, "trained": {}}])
def test_a_damaged_average_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    assert not run(tmp_path, stop_at(toy_inputs(), 1), ema=EMAConfig())
    content = checkpoint.read(tmp_path / LAST)
    if damage.get("trained", 0) is None:
        damage = damage | {"trained": content["ema"]["trained"]}
    with pytest.raises(CheckpointError, match=r"moving average of the weights does not fit|do not fit the model"):
        run(tmp_path, resume=content | {"ema": damage}, ema=EMAConfig())


class Nested(nn.Module):
    """Two branches, each a layer with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2, affine=False))
        self.upper = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize(
    ("patterns", "frozen", "still"),
    [
        (["lower"], {"lower.0.weight", "lower.0.bias", "lower.1.weight", "lower.1.bias"}, {"lower.1", "lower.2"}),
        (["*.1"], {"lower.1.weight", "lower.1.bias", "upper.1.weight", "upper.1.bias"}, {"lower.1", "upper.1"}),
        (["*.bias"], {"lower.0.bias", "lower.1.bias", "upper.0.bias", "upper.1.bias"}, set()),
        (["upper.1.weight", "upper.1.bias"], {"upper.1.weight", "upper.1.bias"}, {"upper.1"}),
        ([], set(), set()),
    ],
)
def test_patterns_freeze_parameters_and_statistics(patterns: list[str], frozen: set[str], still: set[str]) -> None:
    model = Nested()
    parts = FrozenParts(model, patterns)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen
    model.train()
    parts.keep()
    assert {name for name, m in model.named_modules() if name and not m.training} == still
    assert (f"{len(frozen)} of 8 parameters" in parts.note) if frozen else not parts.note


def test_what_cannot_be_frozen_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.freeze: 'lowr' fits no parameter .* did you mean 'lower'"):
        FrozenParts(Nested(), ["upper", "lowr"])
    with pytest.raises(ConfigError, match=r"\['lower', 'upper'\] leave no parameter to train"):
        FrozenParts(Nested(), ["lower", "upper"])


def test_frozen_parts_stay_as_they_are(tmp_path: Path) -> None:
    inputs = toy_inputs()
    layers = inputs.detector.layers
    layers.append(nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in inputs.detector.state_dict().items()}
    assert run(tmp_path, inputs, freeze=["layers.0", "layers.4"])
    after = checkpoint.read(tmp_path / LAST)["model"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"layers.3.weight", "layers.3.bias"}


def test_other_frozen_parts_cannot_be_continued() -> None:
    content = {"config": {"train": {"freeze": ["a", "b"]}}}
    check_same_frozen(content, ("b", "a"), "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: train\.freeze was \['a', 'b'\], now \['a'\]"):
        check_same_frozen(content, ("a",), "last.ckpt")
    with pytest.raises(CheckpointError, match=r"was \[\], now \['a'\]"):
        check_same_frozen({"config": {}}, ("a",), "last.ckpt")


def with_scores(*scores: float) -> TrainingInputs:
    """Inputs whose evaluations have these scores, one after the other."""
    left = iter(scores)
    return replace(toy_inputs(), evaluate=lambda model, should_stop: Result(next(left)))


@pytest.mark.parametrize(
    ("scores", "min_delta", "epochs"),
    [
        ((1, 2, 2, 1.5), 0.0, 4),
        ((1, 0, 2, 1, 3, 4), 0.0, 6),
        ((1, 1.2, 1.4), 0.5, 3),  # each better than the one before, by too little
        ((1, 1.4, 1.6, 1.7, 1.8), 0.5, 5),
    ],
)
def test_a_training_ends_when_its_score_gets_no_better(
    tmp_path: Path, scores: tuple[float, ...], min_delta: float, epochs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = EarlyStopConfig(patience=2, min_delta=min_delta)
    assert run(tmp_path, with_scores(*scores), epochs=6, early_stop=stop)
    content = checkpoint.read(tmp_path / LAST)
    assert content["progress"]["epoch"] == epochs
    assert content["progress"]["best"] == max(scores[:epochs])
    assert ("no better score in 2 evaluations" in capsys.readouterr().err) == (epochs < 6)
    before = (tmp_path / "log.jsonl").read_text()
    assert run(tmp_path, with_scores(), resume=content, epochs=6, early_stop=stop)  # it is complete
    assert (tmp_path / "log.jsonl").read_text() == before


def test_a_repeated_evaluation_counts_once(tmp_path: Path) -> None:
    """A training continued from best.ckpt stands before the evaluation that made it the best."""
    stop = EarlyStopConfig(patience=2)
    assert run(tmp_path, with_scores(1, 3, 2, 2), epochs=6, early_stop=stop)
    best = checkpoint.read(tmp_path / BEST)
    assert run(tmp_path / "again", with_scores(3, 2, 2), resume=best, epochs=6, early_stop=stop)
    first, second = (checkpoint.read(folder / LAST)["progress"] for folder in (tmp_path, tmp_path / "again"))
    assert first == second
    assert (first["best_epoch"], first["without_better"]) == (2, 2)


def test_progress_of_earlier_versions_is_read() -> None:
    progress = Progress.of({"epoch": 2, "batch": 1, "step": 7, "steps": 3, "best": 0.5})
    assert (progress.best, progress.to_beat, progress.without_better) == (0.5, 0.5, 0)
    for wrong in ({"best_epoch": "x"}, {"without_better": -1}, {"other": 1}):
        with pytest.raises(CheckpointError, match="damaged"):
            Progress.of({"epoch": 2, "batch": 1, "step": 7, "steps": 3, "best": 0.5} | wrong)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ema", Node({"decay": 1.0}), "train.ema.decay: EMAConfig: decay must be in"),
        ("ema", Node({"decey": 0.9}), "did you mean 'decay'"),
        ("ema", 0.999, "train.ema: expected a mapping of decay, warmup, got 0.999"),
        ("early_stop", Node(), "train.early_stop: EarlyStopConfig needs 'patience'"),
        ("early_stop", Node({"patience": 0}), "patience must be at least 1"),
        ("freeze", "encoder", r"write \[encoder\] for a list of one"),
        ("accumulate", 0, "accumulate must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(key: str, value: Any, message: str) -> None:
    if isinstance(value, Node):
        value.key_path = f"train.{key}"
    with pytest.raises(ConfigError, match=message):
        construct(TrainConfig, Node({"epochs": 1, key: value}, "train"))


def test_an_early_stop_needs_evaluations() -> None:
    node = Node({"epochs": 1, "evaluate_every": 0, "early_stop": Node({"patience": 2}, "train.early_stop")}, "train")
    with pytest.raises(ConfigError, match="early_stop needs scores"):
        construct(TrainConfig, node)


def test_settings_of_the_average_are_read() -> None:
    options = construct(TrainConfig, Node({"epochs": 1, "ema": Node({"decay": 0.99}, "train.ema")}, "train"))
    assert options.ema == EMAConfig(decay=0.99)
