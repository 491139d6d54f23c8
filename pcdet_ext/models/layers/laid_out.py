"""What a kernel reads of a layer's weight, laid out once and again whenever another weight is loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn


def keep_laid_out(layer: nn.Module, name: str, lay_out: Callable[[Tensor], Tensor]) -> None:
    """Give a layer a buffer with its weight in another layout, which follows `load_state_dict`.

    Args:
        layer: has a `weight`, which must not change but by `load_state_dict`.
        name: of the buffer, which is not in state dicts.
        lay_out: makes it from the weight; a function of a module, so that the layer can be copied and pickled.
    """
    layer.register_buffer(name, lay_out(layer.get_parameter("weight")), persistent=False)
    layer.register_load_state_dict_post_hook(partial(_follow_weight, name, lay_out))


def _follow_weight(name: str, lay_out: Callable[[Tensor], Tensor], layer: nn.Module, _: object) -> None:
    setattr(layer, name, lay_out(layer.get_parameter("weight")))
