"""Published configurations that know which of their settings were read, so that none is ignored in silence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

from pcdet_ext.config import suggest
from pcdet_ext.interop.without_effect import ONLY, WITHOUT_EFFECT

SHOWN = 8  # settings that an error names at most


class Settings(Mapping[str, Any]):
    """A view of a configuration that remembers which keys were read; sections in it are views too.

    Looking whether a key is there does not count as reading it, and going over the keys does not either.

    Args:
        values: the configuration, or a section of it.
        path: where the section stands, for example "MODEL.DENSE_HEAD".
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values, self._path = values, path
        self._read: dict[str, Any] = {}
        self._asked: set[str] = set()
        self._skipped: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._asked.add(key)
        if key not in self._read:
            self._read[key] = _view(self._values[key], f"{self._path}.{key}" if self._path else str(key))
        return self._read[key]

    def __contains__(self, key: object) -> bool:
        self._asked.add(str(key))
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self._values))

    def given(self, defaults: Mapping[str, Any]) -> Settings:
        """The same view, with values for keys that the configuration does not have."""
        view = Settings({**defaults, **self._values}, self._path)
        view._read, view._asked, view._skipped = self._read, self._asked, self._skipped
        return view

    def skip(self, keys: Iterable[str]) -> None:
        """Count these settings as read, where they are there; for parts that another setting switches off."""
        self._asked.update(keys := set(keys))
        self._skipped.update(keys)

    def skip_rest(self) -> None:
        """Count every setting of this section that has not been read yet as read; for parts that are not built."""
        self._skipped.update(self._values)

    def unread(self) -> Iterator[tuple[str, Any, str]]:
        """Path and value of every setting that nobody has read, and what may have been meant (see `config.suggest`)."""
        for key, value in self._values.items():
            if key in self._read:
                for section in _sections(self._read[key]):
                    yield from section.unread()
            elif key not in self._skipped:
                hint = suggest(str(key), sorted(self._asked - set(self._values)))
                path = f"{self._path}.{key}" if self._path else str(key)
                yield from ((leaf, found, hint) for leaf, found in _leaves(value, path))


def _view(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return Settings(value, path)
    if isinstance(value, list):
        return [_view(item, f"{path}.{i}") for i, item in enumerate(value)]
    return value


def _sections(value: Any) -> Iterator[Settings]:
    if isinstance(value, Settings):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _sections(item)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path and value: of the section itself where it is empty or no section, else of all settings in it."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        yield path, value


@contextmanager
def every_setting_counts(config: Mapping[str, Any]) -> Iterator[Settings]:
    """Give a view of a published configuration, and check in the end that each of its settings was read.

    Settings that change nothing here (`WITHOUT_EFFECT`, or `ONLY` with the values they have) may stay unread.
    Raises ValueError that names every other setting that was not read.
    """
    settings = Settings(config)
    yield settings
    wrong = [message for found in settings.unread() if (message := _complaint(*found))]
    if wrong:
        more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise ValueError("; ".join(wrong[:SHOWN] + more))


def _complaint(path: str, value: Any, hint: str) -> str:
    """What is wrong with a setting that was not read; empty where nothing is."""
    if any(_is_of(path, pattern) for pattern in WITHOUT_EFFECT):
        return ""
    for pattern, allowed in ONLY.items():
        if _is_of(path, pattern):
            return (
                ""
                if value in allowed
                else f"{path}: {value!r} is not known here; known: {', '.join(map(repr, allowed))}"
            )
    return f"{path}: the setting is not known here{hint if 'did you mean' in hint else ''}"


def _is_of(path: str, pattern: str) -> bool:
    """Whether a path ends as a pattern says, at a border between keys."""
    return fnmatch(f".{path}", f"*.{pattern}")


def only_known(section: str, config: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse a setting with another than the only value that is known here.

    Args:
        section: of the configuration, for the message.
        config: its settings.
        known: the values, by name of the setting.

    Raises:
        ValueError: naming section and setting.
    """
    for key, value in known.items():
        if config.get(key, value) != value:
            raise ValueError(f"{section}.{key}: {config[key]!r} is not known here; known: {value!r}")


def given(config: Mapping[str, Any], **defaults: Any) -> Mapping[str, Any]:
    """A configuration with values for keys that it does not have; a view stays one."""
    return config.given(defaults) if isinstance(config, Settings) else {**defaults, **config}


def skip(section: Mapping[str, Any], *keys: str) -> None:
    """Count these settings as read, where the section is a view; for parts that another setting switches off."""
    if isinstance(section, Settings):
        section.skip(keys)


def skip_rest(*sections: Mapping[str, Any]) -> None:
    """Count the unread settings of these sections as read, where they are views."""
    for section in sections:
        if isinstance(section, Settings):
            section.skip_rest()
