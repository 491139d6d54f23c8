"""The pages of the models: their tables say what the configurations say."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

import pcdet_ext
from pcdet_ext import config


@pytest.fixture(scope="module")
def tables(root: Path) -> ModuleType:
    """The module that fills in the tables."""
    sys.path.insert(0, str(root / "tools" / "site"))
    try:
        import model_tables
    finally:
        sys.path.pop(0)
    return model_tables


def test_every_marker_names_configurations_and_every_configuration_has_details(root: Path, tables: ModuleType) -> None:
    detailed: set[str] = set()
    for page in sorted((root / "docs" / "models").glob("*.md")):
        for kind, patterns, note in tables.MARKER.findall(page.read_text(encoding="utf-8")):
            assert note == tables.note(kind, patterns.split()), page.name
            names = tables.named(patterns.split())  # raises for a pattern that fits none
            detailed |= set(names) if kind == "details" else set()
    published = {n for n in pcdet_ext.list_models() if "Published on" in config.find(n).read_text(encoding="utf-8")}
    assert published <= detailed
    with pytest.raises(ValueError, match="no/such"):
        tables.named(["no/such*"])


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("waymo/dsvt_pillar", "73.2 / 71.0 mAP / mAPH L2"),
        ("lion/kitti_ttt", "car 78.0, pedestrian 58.6, cyclist 69.6 (moderate)"),
        ("waymo/pillarnet", ""),
    ],
)
def test_what_was_published_is_read_from_the_file(name: str, published: str, tables: ModuleType) -> None:
    found = tables.Model(name, "", tables.about(config.find(name).read_text()), "", "", "", "", "", {}, 0)
    assert found.published == published


def test_a_row_and_its_details(tables: ModuleType) -> None:
    text = "before\n\n<!-- configurations: kitti/dsvt -->\n*A table.*\n\n<!-- details: kitti/dsvt -->\n"
    filled = tables.fill(text, "../..")
    detector = pcdet_ext.build("kitti/dsvt", device="cpu")
    millions = sum(p.numel() for p in detector.model.parameters()) / 1e6
    row = next(line for line in filled.splitlines() if line.startswith("| [kitti/dsvt](../../configs/kitti/dsvt.yaml)"))
    assert [cell.strip() for cell in row.split("|")][2:9] == [
        "–", f"{millions:.2f} M", "Kitti", "`PillarVFE`", "`DSVT`", "`BaseBEVBackbone`", "`AnchorHead`",
    ]  # fmt: skip
    assert "### kitti/dsvt" in filled
    assert "| classes | Car, Pedestrian, Cyclist |" in filled or "| classes | Car |" in filled
    assert filled.startswith("before\n")
    assert "A table" not in filled
