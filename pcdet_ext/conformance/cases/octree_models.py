"""Published octree transformers: blocks, stages and networks of OctFormer and HOTFormerLoc."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pcdet_ext.conformance.cases.octree import listed
from pcdet_ext.conformance.golden import Case, Values, runs
from pcdet_ext.conformance.gradients import probe_gradients
from pcdet_ext.grouping.octree import Octree, build_octree
from pcdet_ext.interop import hotformerloc, octformer
from pcdet_ext.interop.settings import every_setting_counts
from pcdet_ext.models.backbones.hotformer import HierarchicalFeatures
from pcdet_ext.models.layers.octree_block import OctreeOptions
from pcdet_ext.models.layers.relay_tokens import RelayWindows
from pcdet_ext.models.networks.hotformerloc import node_rows, token_rows
from pcdet_ext.structures import PointBatch


@runs("octree", "octformer_block")
def octformer_block(case: Case, grads: bool) -> Values:
    """One block on rows of one depth."""
    block, rename = _loaded(case, octformer)
    x = case.tensor("in.data").requires_grad_(grads)
    values = {"out.data": block(x, _octree(case), case.config["depth"])}
    return _with_gradients(values, case, block, rename, {"in.data": x}, grads)


@runs("octree", "octformer_seg")
@runs("octree", "octformer_cls")
def octformer_network(case: Case, grads: bool) -> Values:
    """Clouds to logits of query points or of clouds, and the features of all stages."""
    network, rename = _loaded(case, octformer)
    signals = {name: found for name in ("normals", "features") if (found := listed(case, name))}
    octree = network.source.octree(listed(case, "points"), **signals)
    nempty = network.stages.options.nempty
    stages = network.stages(network.source.rows(octree, nempty), octree)
    query = case.tensor("in.query_pts") if "in.query_pts" in case.arrays else None
    at = () if query is None else (query[:, :3], query[:, 3].long())
    values = {f"out.backbone.{depth}": x for depth, x in stages.items()}
    values["out.logit"] = network.head(stages, octree, *at)
    return _with_gradients(values, case, network, rename, {}, grads)


@runs("octree", "hotformer_stage")
def hotformer_stage(case: Case, grads: bool) -> Values:
    """A hierarchical stage: nodes and relay tokens of all depths."""
    stage, rename = _loaded(case, hotformerloc)
    x = case.tensor("in.data").requires_grad_(grads)
    found = stage(x, _octree(case), case.config["depth"])
    values = {f"out.local.{depth}": rows for depth, rows in found.nodes.items()}
    values |= {f"out.relay.{depth}": rows for depth, rows in found.tokens.items()}
    return _with_gradients(values, case, stage, rename, {"in.data": x}, grads)


@runs("octree", "hotformerloc")
def hotformerloc_network(case: Case, grads: bool) -> Values:
    """Raw points to nodes and relay tokens of all depths, and to descriptors."""
    network, rename = _loaded(case, hotformerloc)
    octree = network.octree(PointBatch.from_points(listed(case, "raw_points")))
    features = network.features(octree)
    values = {f"out.local.{depth}": rows for depth, rows in features.nodes.items()}
    values |= {f"out.relay.{depth}": rows for depth, rows in features.tokens.items()}
    values["out.global"] = network.pool(features, octree)
    return _with_gradients(values, case, network, rename, {}, grads)


@runs("octree", "hotformerloc_pooling")
def hotformerloc_pooling(case: Case, grads: bool) -> Values:
    """A pooling on rows of nodes, or on one relay token per window."""
    pooling, rename = _loaded(case, hotformerloc)
    octree, settings = _octree(case), case.config["octree_t"]
    options = OctreeOptions(settings["patch_size"], settings["dilation"], norm="layer", straddle=True)
    inputs, nodes, tokens, windows = {}, {}, {}, {}
    for depth in range(case.config["depth"], case.config["depth"] - settings["num_pyramid_levels"], -1):
        inputs[f"in.feat_{depth}"] = x = case.tensor(f"in.feat_{depth}").requires_grad_(grads)
        nodes[depth] = tokens[depth] = x
        windows[depth] = RelayWindows.of(octree, depth, options)
    features = HierarchicalFeatures(nodes, tokens, windows)
    of_tokens = case.config["features"] == "relay tokens"
    values = {"out.global": pooling(token_rows(features) if of_tokens else node_rows(features, octree))}
    return _with_gradients(values, case, pooling, rename, inputs, grads)


def _octree(case: Case) -> Octree:
    return build_octree(listed(case, "points"), **case.config["octree"], wrap=True)


def _loaded(case: Case, system: Any) -> tuple[Any, Callable[[str], str]]:
    """The module of the case with its parameters, in evaluation mode, and our names for the published ones."""
    with every_setting_counts(case.config) as config:
        module, rename = system.build(config)
    system.load_official(module, case.tensors("param"), rename)
    return module.eval(), rename


def _with_gradients(
    values: dict[str, Tensor],
    case: Case,
    module: nn.Module,
    rename: Callable[[str], str],
    inputs: Mapping[str, Tensor],
    grads: bool,
) -> Values:
    if not grads:
        return values
    return values | probe_gradients(case, values, module, inputs, rename)
