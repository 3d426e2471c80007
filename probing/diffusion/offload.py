"""Brings tensors to the host while the device computes on: a stream of its own, pinned buffers used again."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Arrival:
    """A tensor on its way; `with arrival as values:` waits for it and lends its numpy array to the block."""

    def __init__(self, offload: Offload, buffer: Tensor, event: Any) -> None:
        self.offload, self.buffer, self.event = offload, buffer, event

    def __enter__(self) -> np.ndarray:
        if self.event is not None:
            self.event.synchronize()
        return self.buffer.numpy()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.offload.give_back(self.buffer)


class Offload:
    """Copies from one device. On CUDA no call waits for the device; on the CPU the tensor itself is lent.

    It holds as many pinned buffers as were on their way at once, so the caller's bound is its bound.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        self.lock = threading.Lock()

    def start(self, values: Tensor) -> Arrival:
        """Begin to copy; what is computed on the device afterwards does not wait."""
        if self.stream is None:
            return Arrival(self, values.cpu().contiguous(), None)
        values = values.contiguous()
        buffer = self._buffer(values)
        self.stream.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(self.stream):
            buffer.copy_(values, non_blocking=True)
            event = self.stream.record_event()
        values.record_stream(self.stream)  # its memory is not handed out again before the copy is done
        return Arrival(self, buffer, event)

    def _buffer(self, values: Tensor) -> Tensor:
        with self.lock:
            free = self.free.get((values.shape, values.dtype))
            if free:
                return free.pop()
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True)

    def give_back(self, buffer: Tensor) -> None:
        """Take a buffer back for the next copy of its shape."""
        if self.stream is not None:
            with self.lock:
                self.free.setdefault((buffer.shape, buffer.dtype), []).append(buffer)
