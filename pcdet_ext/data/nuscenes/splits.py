"""Which scenes each split of nuScenes has (Caesar et al., CVPR 2020), by the numbers in their names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pcdet_ext.config import suggest
from pcdet_ext.files import DataError, MissingFileError

LISTS = "splits"  # folder of the data, with a file <split>.txt of scene names for each split of its own
_NUMBERS = {
    "train": """1-2 4-11 19-34 41-76 120-135 138-139 149-152 154-155 157-168 170-185 187-188 190-196 199-200 202-204
        206-214 218-220 222 224-264 283-306 315-318 321 323-324 328 347-386 388-403 405-408 410-459 461-465 467-469
        471-472 474-480 499-502 504-515 517-518 525-539 541-546 566 568 570-578 580 582-600 639-679 681 683-689 695-698
        700-701 703-719 726-728 730-731 733-741 744 746-747 749-752 757-765 767-769 786-787 789-792 803-806 808-813
        815-817 819-822 847-856 858 860-866 868-873 875-878 880 882-903 945 947 949 952-953 955-961 975-984 988-992
        994-1025 1044-1058 1074-1102 1104-1110""",
    "val": """3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775
        777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073""",
    "test": """77-91 111-119 140 142-148 265-266 279-282 307-314 333-343 481-498 547-551 601-604 606-624 827-831 833-842
        844-846 932-933 935-943 1026-1043""",
    "mini_train": "61 553 655 757 796 1077 1094 1100",
    "mini_val": "103 916",
}
SPLITS = tuple(_NUMBERS)
MINI = "v1.0-mini"


def official_scenes(split: str) -> frozenset[str]:
    """Names of the scenes of an official split. Raises KeyError for another one."""
    return frozenset(f"scene-{number:04d}" for number in _numbers(_NUMBERS[split]))


def scenes_of(data: Path, version: str, split: str, known: Iterable[str]) -> list[str]:
    """Scenes of a split that a release has, in its order.

    Args:
        data: the data folder; where it has `splits/<split>.txt`, with a scene name per line, that list counts.
        version: of the release; "train" and "val" of v1.0-mini mean its own mini_train and mini_val.
        split: an official one, or one that has a file.
        known: the scenes of the release.

    Raises:
        DataError: the split is not known, its list names a scene that is not there, or no scene of it is there.
    """
    known = list(known)
    path = data / LISTS / f"{split}.txt"
    if path.is_file():
        listed = _read_list(path)
        missing = [name for name in listed if name not in set(known)]
        if missing:
            raise DataError(f"{path}: the release has no scene {missing[0]!r}{suggest(missing[0], known)}")
        wanted: frozenset[str] = frozenset(listed)
    else:
        official = f"mini_{split}" if version == MINI and split in ("train", "val") else split
        if official not in SPLITS:
            raise MissingFileError(f"{path}: no such file, and {split!r} is no official split{suggest(split, SPLITS)}")
        wanted = official_scenes(official)
    found = [name for name in known if name in wanted]
    if not found:
        raise DataError(
            f"{data}: {version} has no scene of split {split!r}, but {len(known)} others; "
            f"where these are not the official ones, {path} says which scenes belong to it, a name per line"
        )
    return found


def _read_list(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    return [name for name in names if name]


def _numbers(ranges: str) -> Iterable[int]:
    for part in ranges.split():
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
