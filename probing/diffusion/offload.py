"""Copies of tensors to the host while the device computes: a separate CUDA stream and reused pinned buffers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

Arrival = AbstractContextManager[np.ndarray]
"""a tensor that is being copied: waits for it, and lends its numpy array to the `with` block"""


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
            return nullcontext(values.cpu().numpy())
        with self.lock:
            free = self.free.setdefault((values.shape, values.dtype), [])
            buffer = free.pop() if free else None
        if buffer is None:
            buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(self.stream):
            buffer.copy_(values, non_blocking=True)
            event = self.stream.record_event()
        values.record_stream(self.stream)  # keeps the allocator from reusing its memory before the copy is done
        return self._lend(buffer, event, free)

    @contextmanager
    def _lend(self, buffer: Tensor, event: torch.cuda.Event, free: list[Tensor]) -> Iterator[np.ndarray]:
        event.synchronize()
        try:
            yield buffer.numpy()
        finally:
            with self.lock:
                free.append(buffer)
