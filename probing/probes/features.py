"""What probes read: batches of recorded activations as linear maps, in slabs small enough to stay in cache.

Shapes: S steps, N samples, T cells, C channels, R probe rows, n = samples of a batch x T.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

SLAB = 1 << 21
"""activation values converted at once on a CPU; more would leave its cache between writing and reading"""


class Batch(Protocol):
    """Activations X (S, n, C) of some samples, never held as a whole where that would be slow."""

    count: int
    """samples"""

    def read(self, weight: Tensor) -> Tensor:
        """Applies rows (S, R, C) to every cell: (S, R, n)."""
        ...

    def pull(self, gradient: Tensor) -> Tensor:
        """The transposed map, (S, R, n) to (S, R, C): the gradient of the rows from that of their outputs."""
        ...


class Activations:
    """Recorded activations (S, N, T, C), handed out in batches of samples.

    Slabs lie in buffers that the next batch overwrites: fresh memory for every batch would cost more than the
    arithmetic."""

    def __init__(self, acts: Tensor, dtype: torch.dtype) -> None:
        self.acts, self.dtype = acts, dtype
        self.steps, _, self.cells, self.channels = acts.shape
        self.buffers: dict[tuple[int, int], Tensor] = {}

    def batch(self, samples: Tensor) -> ActivationBatch:
        """The activations of `samples`, until the next batch."""
        return ActivationBatch(self, samples)

    def slab(self, samples: Tensor, first: int, last: int) -> Tensor:
        """(S, samples x (last - first), C) in the probes' type: cells first to last of each sample."""
        key = (len(samples), last - first)
        if key not in self.buffers:
            self.buffers[key] = self.acts.new_empty(self.steps, *key, self.channels, dtype=self.dtype)
        buffer = self.buffers[key]
        if self.acts.is_cuda:
            buffer.copy_(self.acts.index_select(1, samples)[:, :, first:last])
        else:
            for place, sample in enumerate(samples.tolist()):
                buffer[:, place].copy_(self.acts[:, sample, first:last])
        return buffer.flatten(1, 2)


class ActivationBatch:
    """Some samples' activations."""

    def __init__(self, source: Activations, samples: Tensor) -> None:
        self.source, self.samples, self.count = source, samples, len(samples)
        self.whole: Tensor | None = None

    def slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """(columns of n, their activations (S, columns, C)) in order; a lone slab is converted once."""
        source = self.source
        size = source.steps * source.cells * source.channels
        if size * self.count <= SLAB or source.acts.is_cuda:
            if self.whole is None:
                self.whole = source.slab(self.samples, 0, source.cells)
            yield slice(None), self.whole
            return
        together = max(1, SLAB // size)
        length = min(source.cells, max(1, SLAB // (source.steps * source.channels)))
        for place in range(0, self.count, together):
            some = self.samples[place : place + together]
            for first in range(0, source.cells, length):
                last = min(first + length, source.cells)
                start = place * source.cells + first
                columns = slice(start, start + len(some) * (last - first))
                yield columns, source.slab(some, first, last)

    def read(self, weight: Tensor) -> Tensor:
        parts = [torch.bmm(weight, x.transpose(1, 2)) for _, x in self.slabs()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def pull(self, gradient: Tensor) -> Tensor:
        total: Tensor | None = None
        for columns, x in self.slabs():
            part = gradient[:, :, columns]
            total = torch.bmm(part, x) if total is None else total.baddbmm_(part, x)
        assert total is not None
        return total


class NoActivations:
    """Stands in for activations where probes only know the position."""

    def __init__(self, steps: int, cells: int) -> None:
        self.steps, self.cells = steps, cells

    def batch(self, samples: Tensor) -> EmptyBatch:
        """A batch that only knows its size."""
        return EmptyBatch(len(samples))


class EmptyBatch:
    """A batch without channels."""

    def __init__(self, count: int) -> None:
        self.count = count

    def read(self, weight: Tensor) -> Tensor:
        raise AssertionError("position probes read no activations")

    def pull(self, gradient: Tensor) -> Tensor:
        raise AssertionError("position probes read no activations")


Features = Activations | NoActivations
