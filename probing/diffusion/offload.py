"""Copies of tensors to the host while the device computes: a separate CUDA stream and reused pinned buffers."""

from __future__ import annotations

import threading
from types import TracebackType

import numpy as np
import torch
from torch import Tensor


class Arrival:
    """A tensor that is being copied; `with arrival as values:` waits for it and lends its numpy array to the block."""

    def __init__(self, offload: Offload, buffer: Tensor, event: torch.cuda.Event | None) -> None:
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

    It keeps as many pinned buffers as were in use at once, so the caller's bound on pending copies bounds its memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        self.lock = threading.Lock()

    def start(self, values: Tensor) -> Arrival:
        """Begin to copy; later work on the device does not wait for the copy."""
        values = values.contiguous()
        if self.stream is None:
            return Arrival(self, values.cpu(), None)
        with self.lock:
            free = self.free.get((values.shape, values.dtype))
            buffer = free.pop() if free else None
        if buffer is None:
            buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(self.stream):
            buffer.copy_(values, non_blocking=True)
            event = self.stream.record_event()
        values.record_stream(self.stream)  # keeps the allocator from reusing its memory before the copy is done
        return Arrival(self, buffer, event)

    def give_back(self, buffer: Tensor) -> None:
        """Keep a buffer for the next copy of its shape."""
        if self.stream is not None:
            with self.lock:
                self.free.setdefault((buffer.shape, buffer.dtype), []).append(buffer)
