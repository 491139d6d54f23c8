"""The emulator runs right kernels right, and finds the faults of wrong ones."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_emulator import emulator
from torch import Tensor

pytestmark = pytest.mark.skipif(emulator.compiler() is None, reason="no C++ compiler")
CONTEXTS = {"assembly": (), "ucontext": ("-DCUDA_EMULATOR_UCONTEXT",)}
LAUNCH_FAILURE = 719


@pytest.fixture(params=CONTEXTS)
def probes(request: pytest.FixtureRequest) -> ctypes.CDLL:
    """The library of probes.cu, with each way to switch between threads."""
    return emulator.load((emulator.HERE / "probes.cu",), f"probes_{request.param}", CONTEXTS[request.param])


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def error_of(library: ctypes.CDLL) -> str:
    library.cuda_emulator_message.restype = ctypes.c_char_p
    return library.cuda_emulator_message().decode()


def set_order(library: ctypes.CDLL, order: str, seed: int = 0) -> None:
    library.cuda_emulator_set_order(emulator.ORDERS[order], ctypes.c_uint64(seed))


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_barriers_make_the_order_of_threads_meaningless(probes: ctypes.CDLL, order: str) -> None:
    values, out = torch.arange(64.0), torch.zeros(1)
    set_order(probes, order)
    assert probes.probe_sum(pointer(values), 1, pointer(out)) == 0
    assert out.item() == 2016


def test_a_missing_barrier_shows_in_some_order(probes: ctypes.CDLL) -> None:
    values, out = torch.arange(64.0), torch.zeros(1)
    sums = []
    for order in emulator.ORDERS:
        set_order(probes, order)
        assert probes.probe_sum(pointer(values), 0, pointer(out)) == 0
        sums.append(out.item())
    assert [total == 2016 for total in sums] == [False, True, False]


def test_what_nobody_has_written_is_nan(probes: ctypes.CDLL) -> None:
    for _ in range(2):  # nor is it what an earlier launch has left there
        out = torch.zeros(64)
        assert probes.probe_read_unwritten(pointer(out)) == 0
        assert out[:32].tolist() == [2.0] * 32
        assert out[32:].isnan().all()


def test_barriers_in_two_places_are_an_error(probes: ctypes.CDLL) -> None:
    assert probes.probe_barriers_apart() == LAUNCH_FAILURE
    assert "threads wait for each other: thread 0 for its block at" in error_of(probes)
    assert probes.probe_shape(1, 1, 1, 0) == 0  # the error is told once


def test_lanes_that_do_not_come_are_an_error(probes: ctypes.CDLL) -> None:
    out = torch.zeros(64, dtype=torch.int32)
    assert probes.probe_lane_missing(pointer(out)) == LAUNCH_FAILURE
    assert "for its warp at" in error_of(probes)
    assert probes.probe_lane_outside_mask(pointer(out)) == LAUNCH_FAILURE
    assert "outside its mask" in error_of(probes)


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_operations_of_a_warp(probes: ctypes.CDLL, order: str) -> None:
    set_order(probes, order)
    values = torch.randint(-100, 100, (64,), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    out = torch.zeros(8, 64, dtype=torch.int32)
    assert probes.probe_warp_operations(pointer(values), pointer(out)) == 0
    lane, first = torch.arange(64) % 32, torch.arange(64) // 32 * 32
    for row, source in enumerate(
        (3, lane ^ 6, torch.where(lane < 5, lane, lane - 5), torch.where(lane < 25, lane + 7, lane))
    ):
        assert torch.equal(out[row], values[first + source])
    for warp in (slice(0, 32), slice(32, 64)):
        mine = values[warp]
        votes = int(((mine > 0).long() << torch.arange(32)).sum())
        expected = votes - (votes >> 31 << 32), int((mine > 90).any()), int((mine > -90).all()), int(mine.sum())
        for row, value in enumerate(expected, 4):
            assert out[row, warp].tolist() == [value] * 32


def test_atomic_operations_and_blocks(probes: ctypes.CDLL) -> None:
    out = torch.zeros(3, dtype=torch.int32)
    assert probes.probe_atomics(5, pointer(out)) == 0
    assert out.tolist() == [319 * 320 // 2, 2**31 - 1, 319]


@pytest.mark.parametrize(
    ("shape", "status"),
    [
        ((1, 1, 1024, 0), 0),
        ((1, 1, 1025, 0), 9),
        ((0, 1, 32, 0), 9),
        ((1, 0, 32, 0), 9),
        ((1, 65536, 32, 0), 9),
        ((1, 1, 32, 49152), 0),
        ((1, 1, 32, 49153), 1),
    ],
)
def test_launches_that_a_device_refuses(probes: ctypes.CDLL, shape: tuple[int, ...], status: int) -> None:
    assert probes.probe_shape(*shape) == status


def test_memory_that_is_not_freed_or_freed_twice(probes: ctypes.CDLL) -> None:
    assert probes.probe_free_twice() == 1
    before = probes.cuda_emulator_allocations()
    assert probes.probe_leak() == 0
    assert probes.cuda_emulator_allocations() == before + 1


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("bfloat16", torch.bfloat16)])
def test_short_numbers_are_those_of_torch(probes: ctypes.CDLL, name: str, dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    found = torch.empty(len(every))
    probes[f"probe_from_{name}"](pointer(every), pointer(found), ctypes.c_int64(len(every)))
    torch.testing.assert_close(found, every.float(), rtol=0, atol=0, equal_nan=True)
    middles = (found + found.roll(-1)) / 2  # of neighbours: the ties
    near = torch.cat([middles, middles.nextafter(torch.tensor(torch.inf)), middles.nextafter(torch.tensor(-torch.inf))])
    bits = torch.randint(-(1 << 31), 1 << 31, (100_000,), generator=torch.Generator().manual_seed(0)).int()
    numbers = torch.cat([near, found, bits.view(torch.float32)])
    short = torch.empty(len(numbers), dtype=dtype)
    probes[f"probe_to_{name}"](pointer(numbers), pointer(short), ctypes.c_int64(len(numbers)))
    torch.testing.assert_close(short, numbers.to(dtype), rtol=0, atol=0, equal_nan=True)
