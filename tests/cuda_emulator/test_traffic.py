"""Bytes that kernels move are counted right, on kernels of which they are known."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_emulator import emulator, traffic

pytestmark = pytest.mark.skipif(emulator.compiler() is None, reason="no C++ compiler")


def test_sectors_count_once_for_each_block() -> None:
    library = traffic.library((emulator.HERE / "probes.cu",))
    values, out, counts = torch.arange(64.0), torch.zeros(1), torch.zeros(3, dtype=torch.int32)
    arrays = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (values, out, counts)]
    for array, size in zip(arrays, (256, 4, 12), strict=True):
        assert library.traffic_watch(array, ctypes.c_uint64(size)) == 0
    assert library.probe_sum(arrays[0], 1, arrays[1]) == 0
    assert library.probe_atomics(5, arrays[2]) == 0
    library.traffic_forget_arrays()
    assert library.probe_sum(arrays[0], 1, arrays[1]) == 0  # nothing is watched any more
    found = traffic.traffic(library)["probes.cu"]
    assert found["sum"] == [256 + 32, 256 + 32]
    assert found["counted"] == [5 * 64, 64]  # a sector is read and written by five blocks


def test_kernels_of_keys_move_what_they_read_and_write() -> None:
    rows = 2000  # of 16 bytes, with a key of 8 bytes
    found = traffic.count(["serialize"])["serialize"]
    assert found["window_keys"] == [rows * 24, rows * 24]
    assert found["curve_encode"] == found["curve_decode"] == [2 * rows * 24, 2 * rows * 24]
