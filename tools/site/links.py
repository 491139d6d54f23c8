"""Links of pages: where they lead on disk, and which page of the site stands for a file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = "project"  # of the site, for files that are not in docs/
PICTURES = {".png", ".jpg", ".gif", ".svg"}
LANGUAGES = {".yaml": "yaml", ".yml": "yaml", ".py": "python", ".toml": "toml", ".sh": "sh", ".h": "cpp", ".cpp": "cpp"}
_FENCE = re.compile(r"(^```.*?^```[^\n]*$|^(?: {4}|\t)[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\[\]]*\])*\]\()([^()\s]+)((?:\s+\"[^\"]*\")?\))")


def prose(text: str) -> Iterator[tuple[bool, str]]:
    """The parts of a Markdown text, each with whether it is prose (and not code)."""
    for number, part in enumerate(_FENCE.split(text)):
        yield number % 2 == 0, part


def targets(text: str) -> list[str]:
    """Relative targets of all links and pictures in a Markdown text."""
    found = []
    for is_prose, part in prose(_without_inner_code(text)):
        found += [match[1] for match in _LINK.findall(part)] if is_prose else []
    return [target for target in found if not is_absolute(target)]


def is_absolute(target: str) -> bool:
    """Whether a target is an address in the net."""
    return re.match(r"[a-z][a-z0-9+.-]*:", target) is not None


def replace_targets(text: str, change: Callable[[str], str]) -> str:
    """The text with every relative target that names a file changed."""

    def changed(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        kept = is_absolute(target) or target.startswith("#")
        return before + (target if kept else change(target)) + after

    lines = re.split(r"(^```.*?^```[^\n]*$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if i % 2 else _LINK.sub(changed, part) for i, part in enumerate(lines))


def anchors(text: str) -> set[str]:
    """Names of the headings of a Markdown text, as the site's generator and code hosts make them."""
    found: dict[str, int] = {}
    names = set()
    fenced = re.sub(r"^```.*?^```[^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    for title in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", fenced, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title.replace("`", ""))
        name = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain.lower()).strip())
        names.add(f"{name}_{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


def site_uri(root: Path, path: Path) -> str | None:
    """The page or picture of the site for a file on disk; None for what is not there or outside of the project."""
    path = Path(os.path.normpath(path))
    if not path.is_file() or root not in path.parents:
        return None
    inside = path.relative_to(root)
    if inside.parts[0] == "docs":
        return inside.relative_to("docs").as_posix()
    if inside.name == "README.md" and inside != Path(inside.name):  # else the site takes it for its folder's index
        return f"{FOLDER}/{inside.parent.as_posix()}.md"
    return f"{FOLDER}/{inside.as_posix()}" + ("" if path.suffix in {".md", *PICTURES} else ".md")


def source_of(root: Path, uri: str) -> Path:
    """The file on disk that a page of the site stands for."""
    if not uri.startswith(f"{FOLDER}/"):
        return root / "docs" / uri
    inside = root / uri.removeprefix(f"{FOLDER}/")
    if inside.is_file():
        return inside
    inside = inside.with_suffix("")
    return inside / "README.md" if inside.is_dir() else inside


def page_of(root: Path, path: Path) -> str | bytes:
    """The page of a file: a Markdown file and a picture as they are, any other text in a code block."""
    if path.suffix in PICTURES:
        return path.read_bytes()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    language = LANGUAGES.get(path.suffix, "text")
    return f"# {path.relative_to(root).as_posix()}\n\n````{language}\n{text}\n````\n"


def _without_inner_code(text: str) -> str:
    """Code inside the text of a link is no reason to overlook the link."""
    return re.sub(r"\[(`[^`\n]+`)\]\(", lambda m: "[" + m[1].strip("`") + "](", text)
