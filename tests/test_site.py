"""The API reference of the documentation's site: which modules have a page, and how the pages are arranged."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def reference(root: Path) -> ModuleType:
    """The module that makes the pages."""
    spec = importlib.util.spec_from_file_location("site_reference", root / "tools" / "site" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entries(navigation: list[Any]) -> Iterator[str]:
    """All addresses of a nested navigation."""
    for entry in navigation:
        ((_, value),) = entry.items()
        yield from [value] if isinstance(value, str) else entries(value)


def test_public_modules_have_a_page_and_programs_have_none(root: Path, reference: ModuleType) -> None:
    pages = reference.pages(root / "pcdet_ext")
    for uri, module in {
        "reference/structures/groups.md": "pcdet_ext.structures.groups",
        "reference/ops/segment.md": "pcdet_ext.ops.segment",
        "reference/models/backbones/lion.md": "pcdet_ext.models.backbones.lion",
    }.items():
        assert pages[uri].endswith(f"::: {module}\n")
    assert "members: false" in pages["reference/structures.md"]  # what it offers stands on the pages of its modules
    assert not [uri for uri in pages if re.search(r"/_|reference/(cli|benchmark|conformance)", uri)]
    for uri in set(pages) - {"reference/index.md"}:
        assert f"]({uri.removeprefix('reference/')})" in pages["reference/index.md"]


def test_every_page_of_the_reference_stands_once_in_the_navigation(root: Path, reference: ModuleType) -> None:
    pages = set(reference.pages(root / "pcdet_ext"))
    found = list(entries(reference.navigation(pages | {"index.md"})))
    assert sorted(found) == sorted(pages)
    assert found[0] == "reference/index.md"
