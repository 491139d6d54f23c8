"""Damage to files: the kinds that broken disks, cut downloads, other programs and ill will do."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

Damage = Callable[[bytes, Random], bytes]
NUMBERS = (
    b"nan",
    b"inf",
    b"-inf",
    b"1e400",
    b"-1",
    b"0",
    b"1e30",
    b"99999999999999999999",
    b"1e-320",
    b"",
    b"x",
    b"0x10",
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**30, 1.5, -1e300, float("nan"), float("inf")),
    *("", "text", "\x00", "/", "..", [], {}, [[]], [None], {"": None}, [1, 2, 3], ["a"] * 5, -(10**400)),
)
WORDS = tuple(
    struct.pack(kind, value)
    for kind, values in (
        ("<i", (-1, 0, 1, 2**31 - 1, -(2**31), 10**9)),
        ("<q", (-1, 2**62, 10**12)),
        ("<f", (float("nan"), float("inf"), -3e38, 1e-40)),
        ("<d", (float("nan"), float("-inf"), 1e308)),
    )
    for value in values
)


def cut(data: bytes, rng: Random) -> bytes:
    """Only the first part of the file."""
    return data[: rng.randrange(len(data) + 1)]


def flip(data: bytes, rng: Random) -> bytes:
    """Some bits turned over."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, rng: Random) -> bytes:
    """Some numbers replaced by extreme ones, most often in the first bytes, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3))):
        word = rng.choice(WORDS)
        limit = min(len(changed), rng.choice((64, 512, len(changed) + 1)))
        if limit > len(word):
            place = rng.randrange(limit - len(word))
            place -= place % 4 if rng.random() < 0.5 else 0
            changed[place : place + len(word)] = word
    return bytes(changed)


def splice(data: bytes, rng: Random) -> bytes:
    """A part left out, doubled, moved, blanked or filled with noise."""
    first = rng.randrange(len(data) + 1)
    last = min(len(data), first + rng.choice((1, 4, 16, 100, 1000, len(data))))
    part = data[first:last]
    other = rng.choice((b"", part * 2, bytes(len(part)), rng.randbytes(len(part)), rng.randbytes(rng.randrange(40))))
    return data[:first] + other + data[last:]


def append(data: bytes, rng: Random) -> bytes:
    """Something behind the end."""
    return data + rng.choice((b"\n", b"\x00", rng.randbytes(rng.randrange(1, 33)), data))


def change_numbers(data: bytes, rng: Random) -> bytes:
    """Numbers of a text replaced by others, or by none."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?", data))
    for match in sorted(rng.sample(found, min(len(found), rng.choice((1, 1, 2, 5)))), key=lambda m: -m.start()):
        data = data[: match.start()] + rng.choice(NUMBERS) + data[match.end() :]
    return data


def change_lines(data: bytes, rng: Random) -> bytes:
    """Lines of a text left out, doubled, joined, shuffled or replaced."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[place])
        case 2:
            lines[place : place + 2] = [b" ".join(lines[place : place + 2])]
        case 3:
            rng.shuffle(lines)
        case 4:
            words = lines[place].split()
            rng.shuffle(words)
            lines[place] = b" ".join(words[: rng.randrange(len(words) + 1)] + [rng.choice(NUMBERS)])
    return b"\n".join(lines)


def _containers(tree: Any) -> list[Any]:
    """All lists and objects in a tree of plain values."""
    found, left = [], [tree]
    while left:
        item = left.pop()
        if isinstance(item, (dict, list)) and item:
            found.append(item)
            left.extend(item.values() if isinstance(item, dict) else item)
    return found


def _change_tree(tree: Any, rng: Random) -> Any:
    """The tree with one value or key left out, replaced by another kind of value, doubled or renamed."""
    containers = _containers(tree)
    if not containers:
        return rng.choice(VALUES)
    for _ in range(rng.choice((1, 1, 1, 2))):
        item = rng.choice(containers)
        if not item:
            continue
        key = rng.choice(list(item)) if isinstance(item, dict) else rng.randrange(len(item))
        match rng.randrange(4):
            case 0:
                del item[key]
            case 1 | 2:
                item[key] = rng.choice(VALUES)
            case 3 if isinstance(item, dict):
                item[f"{key}s"] = item.pop(key)
            case 3:
                item.append(item[key])
    return tree


def change_json(data: bytes, rng: Random) -> bytes:
    """A value or key of JSON changed for another that JSON can hold."""
    return json.dumps(_change_tree(json.loads(data), rng)).encode()


def change_yaml(data: bytes, rng: Random) -> bytes:
    """A value or key of YAML changed for another that YAML can hold."""
    return yaml.safe_dump(_change_tree(yaml.safe_load(data), rng), sort_keys=False).encode()


BINARY: tuple[Damage, ...] = (cut, flip, overwrite, splice, append)
TEXT: tuple[Damage, ...] = (cut, flip, splice, append, change_numbers, change_numbers, change_lines, change_lines)
JSON: tuple[Damage, ...] = (cut, flip, change_json, change_json, change_json, change_json)
YAML: tuple[Damage, ...] = (cut, flip, change_lines, change_yaml, change_yaml, change_yaml, change_yaml)
HEADED: tuple[Damage, ...] = (*BINARY, change_numbers, change_lines)  # a text before the data, as of PCD and PLY
