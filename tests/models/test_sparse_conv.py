"""Sparse convolutions against dense ones on the whole grid, both engines, and SECOND's backbones."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.config import ConfigError
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.layers import sparse_conv
from pcdet_ext.models.layers.sparse_conv import SparseConv3d, SubMConv3d
from pcdet_ext.structures import SparseVoxels

needs_spconv = pytest.mark.skipif(find_spec("spconv") is None, reason="spconv is not installed")


def random_voxels(
    seed: int, grid: tuple, channels: int, batch_size: int = 2, density: float = 0.2, dtype: torch.dtype = torch.float32
) -> SparseVoxels:
    """Voxels in a random order, the last frame empty."""
    generator = torch.Generator().manual_seed(seed)
    coords = (torch.rand(batch_size - 1, *grid, generator=generator) < density).nonzero().int()
    coords = coords[torch.randperm(len(coords), generator=generator)]
    features = torch.randn(len(coords), channels, generator=generator, dtype=dtype)
    return SparseVoxels(features, coords, grid, batch_size)


def dense_result(conv: SparseConv3d, voxels: SparseVoxels) -> tuple[Tensor, Tensor]:
    """The convolution on all cells [B, C, Z, Y, X], and which of them are active [B, Z, Y, X].

    In float64: PyTorch's float32 convolution leaves out cells for some strides beyond the kernel on the CPU, for
    example kernel (1, 1, 2) with stride (3, 1, 3) on 6 x 6 x 3 cells.
    """
    weight, bias = conv.weight.permute(0, 4, 1, 2, 3).double(), None if conv.bias is None else conv.bias.double()
    result = torch.nn.functional.conv3d(voxels.dense().double(), weight, bias, conv.stride, conv.padding)
    result = result.to(conv.weight.dtype)
    occupied = voxels.with_features(voxels.features.new_ones(len(voxels), 1)).dense().double()
    if conv.submanifold:
        return result, occupied[:, 0] > 0
    reached = torch.nn.functional.conv3d(occupied, torch.ones_like(weight[:1, :1]), None, conv.stride, conv.padding)
    return result, reached[:, 0] > 0.5


def assert_equals_dense(conv: SparseConv3d, voxels: SparseVoxels, out: SparseVoxels) -> None:
    dense, active = dense_result(conv, voxels)
    assert out.grid == tuple(dense.shape[2:])
    b, z, y, x = out.coords.long().unbind(1)
    assert len(out) == int(active.sum())
    assert active[b, z, y, x].all()
    torch.testing.assert_close(out.features, dense.permute(0, 2, 3, 4, 1)[b, z, y, x], rtol=1e-5, atol=1e-5)


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.tuples(st.integers(3, 6), st.integers(3, 7), st.integers(3, 8)),
    sizes,
    sizes,
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
    st.booleans(),
    st.sampled_from([0.0, 0.02, 0.2, 1.0]),
)
def test_strided_convolution_equals_a_dense_one(seed, grid, kernel, stride, padding, bias, density):
    conv = SparseConv3d(3, 4, kernel, stride, padding, bias, engine="native")
    voxels = random_voxels(seed, grid, 3, density=density)
    out = conv(voxels)
    assert_equals_dense(conv, voxels, out)
    assert out.coords.tolist() == sorted(out.coords.tolist())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7)),
    st.tuples(*[st.sampled_from([1, 3, 5])] * 3),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_submanifold_convolution_equals_a_dense_one(seed, grid, kernel, bias, density):
    conv = SubMConv3d(3, 4, kernel, bias, engine="native")
    voxels = random_voxels(seed, grid, 3, batch_size=3, density=density)
    out = conv(voxels)
    assert out.coords is voxels.coords
    assert_equals_dense(conv, voxels, out)


@pytest.mark.parametrize("conv", [SubMConv3d(2, 3, 3, True), SparseConv3d(2, 3, 3, 2, 1, True), SparseConv3d(2, 3, 2)])
def test_gradients_are_right_in_float64(conv):
    conv = copy.deepcopy(conv).double()
    conv.engine = "native"
    voxels = random_voxels(0, (3, 4, 4), 2, density=0.3, dtype=torch.float64)

    def run(features: Tensor, *parameters: Tensor) -> Tensor:
        names = dict(zip(dict(conv.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(conv, names, (voxels.with_features(features),)).features

    inputs = [voxels.features.requires_grad_(), *conv.parameters()]
    assert torch.autograd.gradcheck(run, inputs)


@needs_spconv
@pytest.mark.parametrize("conv", [SubMConv3d(4, 6, 3), SubMConv3d(4, 6, 3, True), SparseConv3d(4, 6, 3, 2, (0, 1, 1))])
def test_engines_agree_on_outputs_and_gradients(conv):
    results = []
    for engine in ("native", "spconv"):
        layer = copy.deepcopy(conv)
        layer.engine = engine
        voxels = random_voxels(3, (9, 10, 11), 4, batch_size=3)
        voxels.features.requires_grad_()
        out = layer(voxels)
        dense = out.dense()
        (dense * torch.linspace(-1, 1, dense.numel()).view_as(dense)).sum().backward()
        results.append([dense.detach(), voxels.features.grad, *(p.grad for p in layer.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@needs_spconv
def test_spconv_shares_tables_between_layers():
    voxels = random_voxels(3, (9, 10, 11), 4)
    first, second = (SubMConv3d(4, 4, 3, engine="spconv") for _ in range(2))
    middle = first(voxels)
    tables = dict(voxels.plans["spconv_tables"])
    second(middle)
    assert tables
    assert all(voxels.plans["spconv_tables"][key] is value for key, value in tables.items())


def test_tables_are_made_once_for_one_geometry(monkeypatch):
    made = []
    original = sparse_conv.submanifold_pairs
    monkeypatch.setattr(sparse_conv, "submanifold_pairs", lambda *a: made.append(a) or original(*a))
    voxels = random_voxels(0, (4, 5, 6), 2)
    first, second = (SubMConv3d(2, 2, 3, engine="native") for _ in range(2))
    second(first(voxels))
    SubMConv3d(2, 2, 1, engine="native")(voxels)
    assert len(made) == 2
    down = SparseConv3d(2, 2, 3, 2, 1, engine="native")
    assert down(voxels).plans is down(voxels).plans


def test_environment_and_argument_choose_the_engine(monkeypatch):
    calls = []
    monkeypatch.setattr(SparseConv3d, "_forward_spconv", lambda self, v: calls.append("spconv") or v)
    monkeypatch.setattr(SparseConv3d, "_forward_native", lambda self, v, *_: calls.append("native") or v)
    voxels = random_voxels(0, (4, 5, 6), 2)
    monkeypatch.delenv(sparse_conv.ENVIRONMENT, raising=False)
    SubMConv3d(2, 2)(voxels)
    monkeypatch.setenv(sparse_conv.ENVIRONMENT, "spconv")
    SubMConv3d(2, 2)(voxels)
    SubMConv3d(2, 2, engine="native")(voxels)
    assert calls == ["native", "spconv", "native"]
    monkeypatch.setenv(sparse_conv.ENVIRONMENT, "fast")
    with pytest.raises(ValueError, match="PCDET_EXT_SPARSE_CONV must be"):
        SubMConv3d(2, 2)(voxels)


@needs_spconv
def test_engines_agree_with_a_bias_in_inference():
    """spconv itself refuses a bias on the CPU outside of training."""
    ours, theirs = (SubMConv3d(3, 4, 3, bias=True, engine=engine).eval() for engine in ("native", "spconv"))
    theirs.load_state_dict(ours.state_dict())
    voxels = random_voxels(1, (4, 5, 6), 3)
    torch.testing.assert_close(ours(voxels).features, theirs(voxels).features)


def test_missing_spconv_is_told_with_its_remedy():
    code = (
        "import sys; sys.modules['spconv'] = None; import torch\n"
        "from pcdet_ext.models.layers.sparse_conv import SubMConv3d\n"
        "from pcdet_ext.structures import SparseVoxels\n"
        "v = SparseVoxels(torch.zeros(1, 2), torch.zeros(1, 4, dtype=torch.int32), (1, 1, 1), 1)\n"
        "SubMConv3d(2, 2, 3)(v)\n"
        "try: SubMConv3d(2, 2, 3, engine='spconv')(v)\n"
        "except ImportError as e: sys.exit('pip install pcdet_ext[spconv]' not in str(e))\n"
        "sys.exit('no error')"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("engine", ["native", pytest.param("spconv", marks=needs_spconv)])
def test_layers_copy_and_reload(engine):
    layer = SubMConv3d(3, 4, 3, engine=engine)
    voxels = random_voxels(1, (4, 5, 6), 3)
    expected = layer(voxels).features
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(twin(voxels).features, expected)
    with torch.no_grad():
        twin.weight.zero_()
    assert list(layer.state_dict()) == ["weight"]
    assert not twin(voxels).features.any()
    torch.testing.assert_close(layer(voxels).features, expected)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="must be odd"):
        SubMConv3d(2, 2, 2)
    with pytest.raises(ValueError, match="stride must be"):
        SparseConv3d(2, 2, 3, stride=0)
    with pytest.raises(ValueError, match="engine must be"):
        SparseConv3d(2, 2, engine="cudnn")
    with pytest.raises(ValueError, match="takes 2 channels, got 3"):
        SubMConv3d(2, 2)(random_voxels(0, (4, 5, 6), 3))
    with pytest.raises(ValueError, match="too small"):
        SparseConv3d(2, 2, 5)(random_voxels(0, (4, 5, 6), 2))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["VoxelBackBone8x", "VoxelResBackBone8x"])
@pytest.mark.parametrize("number", [0, 1, 200])
def test_second_backbones_fit_their_attributes(name, number, training):
    backbone = BACKBONES.build({"name": name, "channels": [2, 4, 4, 6, 8]}, in_channels=3, grid=(40, 16, 24))
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(40 * 16 * 24, generator=generator)[:number]
    coords = torch.stack([cells * 0, cells // 384, cells // 24 % 16, cells % 24], dim=1).int()
    out = backbone.train(training)(SparseVoxels(torch.randn(number, 3), coords, (40, 16, 24), 2))
    assert out.grid == backbone.out_grid == (2, 2, 3)
    assert backbone.stride == 8
    assert out.features.shape[1] == backbone.out_channels == 8
    assert out.features.isfinite().all()
    assert all(value.isfinite().all() for value in backbone.state_dict().values())


def test_too_flat_a_grid_is_refused():
    with pytest.raises(ConfigError, match="too small"):
        BACKBONES.build({"name": "VoxelBackBone8x"}, in_channels=3, grid=(4, 16, 16))
