"""What `mkdocs` does besides pages of docs/: the API reference, tables of models, and files of the project.

Pages link to files beside docs/ (configurations, READMEs) as they do on a code host; here these become pages too.
Links that lead nowhere stay as they are, and mkdocs ends with an error on them.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

import links
import model_tables
import reference

ROOT = Path(__file__).resolve().parents[2]
SEARCH_FROM_FILES = "assets/search_from_files.js"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and those of linked files, and make the navigation of what is there."""
    for uri, text in reference.pages(ROOT / "pcdet_ext").items():
        files.append(File.generated(config, uri, content=text))
    _add_linked(files, config)
    config.nav = _navigation(config.nav or [], files)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables of models, and turn links to files beside docs/ into links to their pages."""
    source = links.source_of(ROOT, page.file.src_uri)
    if not source.is_file():
        return markdown
    filled = model_tables.fill(markdown, os.path.relpath(ROOT, source.parent))

    def on_site(target: str) -> str:
        path, separator, anchor = target.partition("#")
        there = links.site_uri(ROOT, source.parent / path)
        return os.path.relpath(there, Path(page.file.src_uri).parent) + separator + anchor if there else target

    return links.replace_targets(filled, on_site)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Take scripts from the site itself, and refuse a page that would fetch anything from elsewhere.

    Raises:
        PluginError: naming the page and what it would fetch.
    """
    local = os.path.relpath(SEARCH_FROM_FILES, Path(page.file.dest_uri).parent)
    output = re.sub(r"https?://[^\s\"'<>]+/iframe-worker/shim\b", local, output)
    fetched = re.findall(
        r'<(?:script|img|iframe|link rel="(?:stylesheet|preconnect|icon)")[^>]*"(https?:[^"]+)"', output
    )
    if fetched:
        raise PluginError(f"{page.file.src_uri}: the site must work without a network, it would fetch {fetched[0]}")
    return output


def _add_linked(files: Files, config: MkDocsConfig) -> None:
    """Add every file of the project that a page links to, and what these link to in turn."""
    waiting = [ROOT / "docs" / file.src_uri for file in files.documentation_pages()]
    waiting += [(ROOT / "docs" / entry).resolve() for entry in _entries(config.nav or []) if entry.startswith("../")]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        uri = links.site_uri(ROOT, path)
        if uri and files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, content=links.page_of(ROOT, path)))
        if path.suffix == ".md":
            text = path.read_text(encoding="utf-8")
            text = model_tables.fill(text, os.path.relpath(ROOT, path.parent))
            waiting += [(path.parent / target.partition("#")[0]).resolve() for target in links.targets(text)]


def _entries(nav: list[Any]) -> list[str]:
    """All file names of a navigation."""
    found: list[str] = []
    for entry in nav:
        if isinstance(entry, str):
            found.append(entry)
        for value in entry.values() if isinstance(entry, dict) else ():
            found += [value] if isinstance(value, str) else _entries(value)
    return found


def _navigation(nav: list[Any], files: Files) -> list[Any]:
    """The navigation of mkdocs.yml with its placeholders filled, and with the pages that it does not list."""
    pages = {file.src_uri for file in files.documentation_pages()}
    models = sorted(
        (uri for uri in pages if uri.startswith("models/")), key=lambda uri: (uri != "models/index.md", uri)
    )
    filled = [_fill(entry, pages, {"models": models, "reference": reference.navigation(pages)}) for entry in nav]
    known = {*_entries(filled), *(uri for uri in pages if uri.startswith(f"{links.FOLDER}/"))}
    rest = sorted(pages - known)
    linked = sorted(uri for uri in known & pages if uri.startswith(f"{links.FOLDER}/"))
    more = [*rest, *(uri for uri in linked if uri not in _entries(filled))]
    return [entry for entry in filled if entry] + ([{"More": more}] if more else [])


def _fill(entry: Any, pages: set[str], placeholders: dict[str, list[Any]]) -> Any:
    if isinstance(entry, dict):
        ((title, value),) = entry.items()
        if isinstance(value, list):
            inner = [_fill(e, pages, placeholders) for e in value]
            return {title: [e for e in inner if e]}
        return {title: placeholders[value]} if value in placeholders else entry
    if entry.startswith("../"):
        entry = links.site_uri(ROOT, ROOT / "docs" / entry)
    return entry if entry in pages else None
