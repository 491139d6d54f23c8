"""Settings and checkpoints of LION (happinesslz/LION) in the words of this library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pcdet_ext.config import suggest
from pcdet_ext.mixers import MIXERS

Config = Mapping[str, Any]


def from_official(config: Config, state_dict: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A module of LION with its parameters, in eval mode.

    config: of an operator, OPERATOR (its CFG with d_model).
    Raises ValueError for what this library does not have or that does not fit.
    """
    module = mixer(config["OPERATOR"])
    if state_dict is not None:
        load(module, state_dict)
    return module.eval()


def load(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load every entry of a state dict; ValueError that lists what is missing, left over or of another shape."""
    try:
        module.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ValueError(f"the state dict does not fit the configuration: {error}") from error


def mixer(config: Config) -> nn.Module:
    """The mixer of an OPERATOR section whose CFG says `d_model` (and `layer_id`, `n_layer`, where they matter)."""
    settings = config["CFG"]
    context = {"layer_id": settings.get("layer_id", 0), "num_layers": settings.get("n_layer", 1)}
    return MIXERS.build(operator(config), channels=settings["d_model"], **context)


def operator(config: Config) -> dict[str, Any]:
    """The configuration of a mixer for an OPERATOR section (NAME and CFG).

    Raises ValueError for operators and settings that this library does not have.
    """
    name, settings = config["NAME"], dict(config["CFG"])
    if name not in OPERATORS:
        raise ValueError(f"OPERATOR: {name!r} is not in this library{suggest(name, OPERATORS)}")
    for key in GIVEN_BY_THE_BACKBONE:
        settings.pop(key, None)
    node = OPERATORS[name](settings)
    if settings:
        raise ValueError(f"OPERATOR {name}: settings that are not known here: {', '.join(sorted(settings))}")
    return node


GIVEN_BY_THE_BACKBONE = ("d_model", "layer_id", "n_layer", "with_cp")  # with_cp: see `checkpointed`


def _mamba(settings: dict[str, Any]) -> dict[str, Any]:
    known = ("d_state", "d_conv", "expand", "drop_path")
    return {"name": "Mamba"} | {key: settings.pop(key) for key in known if key in settings}


def _retnet(settings: dict[str, Any]) -> dict[str, Any]:
    _must_be("RetNet", settings, mode="chunk", used_MLP=True)
    return {
        "name": "RetNet",
        "num_heads": settings.pop("n_head"),
        "expand_k": settings.pop("expand_k"),
        "expand_v": settings.pop("expand_v"),
        "ffn_ratio": settings.pop("hidden_rate"),
        "within": "symmetric",
        "drop_path": settings.pop("drop_path", 0.0),
    }


def _xlstm(settings: dict[str, Any]) -> dict[str, Any]:
    return {"name": "XLSTM", "drop_path": settings.pop("drop_path", 0.0)}


def _ttt(settings: dict[str, Any]) -> dict[str, Any]:
    _must_be("TTT", settings, use_gate=False)
    return {"name": "TTT", "num_heads": settings.pop("n_head"), "drop_path": settings.pop("drop_path", 0.0)}


OPERATORS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "Mamba": _mamba,
    "RetNet": _retnet,
    "xLSTM": _xlstm,
    "TTT": _ttt,
}


def _must_be(name: str, settings: dict[str, Any], **only: Any) -> None:
    """Take out settings of which this library has one value only."""
    for key, value in only.items():
        if settings.pop(key, value) != value:
            raise ValueError(f"OPERATOR {name}: {key} must be {value!r}")
