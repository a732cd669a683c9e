"""What a training step reads on the host, without waiting for the device.

To read a number of a tensor, or to make a tensor whose size depends on it, the host waits until the device has finished
everything before. On the CPU that costs nothing; elsewhere a step avoids it.

Shapes: S latents, d of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def reads_are_free(values: Tensor) -> bool:
    """Return whether the host may read values without waiting for a device."""
    return values.device.type == "cpu"


def move(values: Tensor, device: torch.device) -> Tensor:
    """Return values of the host on a device, without waiting for it."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


class Counted:
    """Number of entries of a mask that one step computes and the next reads, while the device goes on in between."""

    def __init__(self) -> None:
        self._number: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self._made_of: tuple[Tensor, int] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
        return Counted()

    def count(self, mask_S: Tensor, made_of: Tensor) -> None:
        """Start to count the entries of a mask, which depends on `made_of` alone."""
        self._number = mask_S.sum().to("cpu", non_blocking=mask_S.device.type == "cuda")
        if mask_S.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._made_of = made_of, made_of._version

    def number(self, mask_S: Tensor, made_of: Tensor) -> int:
        """Return the number of entries of a mask, counted anew if `made_of` is another or has changed."""
        is_known = self._made_of is not None and self._made_of[0] is made_of and self._made_of[1] == made_of._version
        if not is_known or self._number is None:
            return int(mask_S.sum())
        if self._copied is not None:
            self._copied.synchronize()
        number: Any = self._number.tolist()
        return int(number)

    def indices(self, mask_S: Tensor, made_of: Tensor) -> Tensor:
        """Return the indices [d] of the entries of a mask."""
        return torch.nonzero_static(mask_S, size=self.number(mask_S, made_of)).squeeze(1)
