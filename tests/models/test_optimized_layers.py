"""Layers of the copy for inference: derivatives through them, and state dicts that are loaded into them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from pcdet_ext.models.layers.folding import folded

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(16, 32), (40, 16)),
    "winograd": (lambda: nn.Conv2d(16, 16, 3, padding=1), (1, 16, 9, 8)),
    "enlarging": (lambda: nn.ConvTranspose2d(16, 16, 2, 2), (1, 16, 5, 6)),
}


def task(name: str, seed: int = 0) -> tuple[nn.Module, nn.Module, Tensor]:
    """The plain layer, its copy for inference, and an input."""
    torch.manual_seed(seed)
    make, shape = LAYERS[name]
    plain = nn.Sequential(make()).eval()
    copy = folded(plain)
    assert type(copy[0]) is not type(plain[0])
    return plain, copy, torch.randn(shape)


@pytest.mark.parametrize("name", LAYERS)
def test_forward_derivatives_are_those_of_the_plain_layer(name: str) -> None:
    plain, copy, x = task(name)
    tangent = torch.randn_like(x)
    wanted = torch.func.jvp(plain, (x,), (tangent,))
    assert wanted[1].abs().max() > 0.1
    torch.testing.assert_close(torch.func.jvp(copy, (x,), (tangent,)), wanted, atol=1e-4, rtol=1e-4)
    with forward_ad.dual_level(), torch.no_grad():
        found = forward_ad.unpack_dual(copy(forward_ad.make_dual(x, tangent))).tangent
        torch.testing.assert_close(found, wanted[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("emptied", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_loaded_weight_is_what_is_computed_with(name: str, emptied: bool, assign: bool) -> None:
    _, copy, x = task(name)
    other, source, _ = task(name, seed=1)
    copy = deepcopy(copy)
    if emptied:
        copy = copy.to("meta").to_empty(device="cpu")
    copy.load_state_dict(source.state_dict(), assign=assign)
    with torch.no_grad():
        torch.testing.assert_close(copy(x), other(x), atol=1e-4, rtol=1e-4)


def test_a_bias_and_an_addend_get_gradients() -> None:
    _, copy, x = task("linear")
    addend = torch.randn(40, 32, requires_grad=True)
    copy[0].bias.requires_grad_()
    copy[0](x, addend).sum().backward()
    assert torch.equal(addend.grad, torch.ones(40, 32))
    assert torch.equal(copy[0].bias.grad, torch.full((32,), 40.0))
