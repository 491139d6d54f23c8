"""Every operation takes tensors on CUDA, by a kernel or its reference, and leaves its results there."""

from __future__ import annotations

from collections.abc import Callable

import every_op
import pytest
import torch
from cuda_emulator.emulator import Accelerator
from torch import Tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_operation_takes_tensors_on_cuda(
    accelerator: Accelerator, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = every_op.results(every_op.calls(dtype=dtype))

    def there(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *values, **options: make(*values, **options).to(accelerator.device)

    for name in ("rand", "whole", "table"):
        monkeypatch.setattr(every_op, name, there(getattr(every_op, name)))
    with accelerator:
        found = every_op.results(every_op.calls(dtype=dtype))
    for name, tensors in found.items():
        for ours, theirs in zip(tensors, expected[name], strict=True):
            if name != "grid_size":
                assert ours.device.type == accelerator.device, name
            exact = not ours.is_floating_point()
            rtol, atol = (0, 0) if exact else (2e-4, 2e-5)
            torch.testing.assert_close(
                ours.cpu(), theirs, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )
