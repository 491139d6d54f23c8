"""Pickles of other code bases: what is plain is read, nothing is run."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.data.waymo import read_pickle
from pcdet_ext.data.waymo.pickles import ALLOWED
from pcdet_ext.files import DataError, MissingFileError

PLAIN = {
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "names": np.array(["Vehicle", "Sign"]),
    "objects": np.array(["Vehicle", 3], dtype=object),
    "scalar": np.float64(2.5),
    "text": np.str_("a"),
    "empty": np.zeros((0, 9)),
    "bytes": b"ab\xff",
    "list": [1, 2.5, None, True, (1, "x"), {3}],
    "ordered": OrderedDict(a=1),
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_content_is_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps([PLAIN], protocol))
    (found,) = read_pickle(path)
    assert list(found) == list(PLAIN)
    for name, value in PLAIN.items():
        if isinstance(value, np.ndarray):
            assert type(found[name]) is np.ndarray
            assert found[name].dtype == value.dtype
            assert found[name].flags.f_contiguous == value.flags.f_contiguous
            np.testing.assert_array_equal(found[name], value)
        else:
            assert found[name] == value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickles")


class Calls:
    """Something that runs a function when it is unpickled as usual."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def hostile(marker: Path) -> list[tuple[str, Any]]:
    command = f"touch {marker}"
    return [
        ("posix.system", Calls(os.system, command)),
        ("builtins.eval", Calls(eval, f"open({str(marker)!r}, 'w')")),
        ("builtins.getattr", Calls(getattr, "text", "upper")),
        ("numpy.load", Calls(np.load, str(marker))),
        ("datetime.date", date(2020, 1, 1)),
        ("posix.system", {"deep": [np.array([Calls(os.system, command)], dtype=object)]}),
        ("unusual way", Calls(np.ndarray, (10**15,))),
        ("unusual way", Calls(np.zeros(0).__reduce__()[0], np.ndarray, (10**12,), b"b")),
    ]


@pytest.mark.parametrize("case", range(8))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_what_would_run_something_is_refused_by_name(tmp_path: Path, case: int, protocol: int) -> None:
    marker, path = tmp_path / "marker", tmp_path / "infos.pkl"
    name, content = hostile(marker)[case]
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(DataError, match=name) as error:
        read_pickle(path)
    assert str(path) in str(error.value)
    assert not marker.exists()


def test_references_to_the_outside_and_registered_extensions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(b"Psomething\n.")
    with pytest.raises(DataError, match="outside"):
        read_pickle(path)
    path.write_bytes(b"\x80\x02\x82\x01.")
    with pytest.raises(DataError):
        read_pickle(path)


@pytest.mark.parametrize(
    "name", ["os system", "numpy.core.multiarray ndarray", "builtins exec", "numpy ndarray.tofile"]
)
def test_only_the_listed_names_can_be_had(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    assert (module, attribute) not in ALLOWED
    path = tmp_path / "infos.pkl"
    path.write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(DataError, match=attribute):
        read_pickle(path)


def test_what_is_named_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    for name in (b"numpy\ndtype", b"_codecs\nencode", b"numpy\nndarray"):
        path.write_bytes(b"c" + name + b"\n(N(S'__setstate__'\nI1\ndtb.")
        with pytest.raises(DataError, match="changes what it names"):
            read_pickle(path)


def test_a_type_cannot_have_bytes_taken_for_objects(tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    state = (3, "|", None, None, None, -1, -1, 0)  # as of type O, without the flag that says that it holds objects
    kind = Calls(np.dtype, "O8", False, True, state=state)
    array = Calls(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, (1,), kind, False, b"A" * 8))
    path.write_bytes(pickle.dumps(array))
    with pytest.raises(DataError, match="unusual way"):
        read_pickle(path)


@pytest.mark.parametrize(
    ("order", "value"), [("<", np.array(["Sign", "Car"])), ("<", np.str_("Sign")), (">", np.array(["Sign"], ">U4"))]
)
def test_text_must_be_of_characters(tmp_path: Path, order: str, value: object) -> None:
    path = tmp_path / "infos.pkl"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        good = pickle.dumps(value, protocol)
        path.write_bytes(good)
        np.testing.assert_array_equal(read_pickle(path), value)
        path.write_bytes(good.replace(b"S\0\0\0", b"S\0\x11\0") if order == "<" else good.replace(b"i\0", b"i\x11"))
        with pytest.raises(DataError, match="text of no characters"):
            read_pickle(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 10**6), st.binary(min_size=1, max_size=3))
def test_damage_is_an_error_of_the_file(folder: Path, junk: bytes, at: int, new: bytes) -> None:
    path = folder / "damaged.pkl"
    good = pickle.dumps([PLAIN])
    at %= len(good)
    for data in (junk, good[:at], good[:at] + new + good[at + len(new) :]):
        path.write_bytes(data)
        error = None
        try:
            read_pickle(path)
        except DataError as caught:
            error = str(caught)
        assert error is None or str(path) in error


DEEP = b")" + b"\x85" * 200_000  # a tuple in a tuple in a tuple …
ENDING = {
    "key of a dict": (b"\x80\x04}" + DEEP + b"Ns.", "others inside"),
    "in a set": (b"\x80\x04]\x8f(" + DEEP + b"\x90a.", "others inside"),
    "in a list": (b"\x80\x02]" + DEEP + b"a.", "others inside"),
    "kept by a step that changes nothing": (b"\x80\x04}" + b")" + b"\x85Nb" * 2000 + b"Ns.", "others inside"),
    "twice in each": (b"\x80\x04})" + b"2\x86" * 60 + b"Ns.", "others inside"),
    "by number": (b"\x80\x04})q\x00" + b"\x85r\x01\0\0\0j\x01\0\0\0" * 2000 + b"Ns.", "others inside"),
    "memo": (b"\x80\x04Nr\xff\xff\xff\x3f.", "numbers an object 1073741823"),
    "memo in text": (b"Np1073741823\n.", "numbers an object 1073741823"),
    "negative": (b"Np-3\n.", "numbers an object -3"),
    "lists": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "RecursionError"),
    "type": (b"cnumpy\ndtype\n(" + b"]" * 100_000 + b"a" * 99_999 + b"tR.", "RecursionError"),
    "nothing there": (b"\x80\x04\x85.", "more than there is"),
    "no mark": (b"\x80\x04Nt.", "a mark that it never set"),
    "long number": (b"\x80\x02I" + b"9" * 5000 + b"\n.", "damaged pickle"),
}


@pytest.mark.parametrize("what", ENDING)
def test_what_would_end_the_process_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "infos.pkl"
    data, message = ENDING[what]
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        read_pickle(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("protocol", range(6))
def test_tuples_may_be_keys_and_content_is_pickled_back(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "infos.pkl"
    array = np.arange(3.0)
    inside = np.empty(2, object)
    inside[:] = [array, "a"]
    shared = [array]
    content = {(1, (2, "x")): [array, (array, [array])], "inside": inside, "a": shared, "b": shared}
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_pickle(path)
    assert found["a"] is found["b"]
    again = pickle.loads(pickle.dumps(found))
    own = again[1, (2, "x")]
    for value in (own[0], own[1][0], own[1][1][0], again["inside"][0], again["a"][0]):
        assert type(value) is np.ndarray
        np.testing.assert_array_equal(value, array)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.pkl"):
        read_pickle(tmp_path / "none.pkl")
