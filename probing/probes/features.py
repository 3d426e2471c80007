"""Inputs of probes: batches of recorded activations as linear maps, in slabs small enough to stay in cache.

Shapes: S steps, N samples, T patches, C channels, R probe rows, n = samples of a batch x T.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SLAB = 1 << 21
"""activation values converted at once on a CPU; more would leave its cache between writing and reading"""
KEPT = 1 << 24
"""activation values of a batch that stay converted until its backward pass on a CPU; of a larger batch, each pass
converts its slabs anew, to save memory"""


class Activations:
    """Recorded activations (S, N, T, C), returned in batches of samples; C is 0 for probes of the position alone.

    Slabs are views of buffers that the next batch overwrites: fresh memory for every batch would cost more than the
    arithmetic."""

    def __init__(self, acts: Tensor, dtype: torch.dtype) -> None:
        self.acts, self.dtype = acts, dtype
        self.steps, _, self.patches, self.channels = acts.shape
        self.buffers: dict[tuple[int, int, int], Tensor] = {}

    def batch(self, samples: Tensor) -> ActivationBatch:
        """The activations of `samples`, valid until the next batch."""
        return ActivationBatch(self, samples)

    def slab(self, samples: Tensor, first: int, last: int, place: int = 0) -> Tensor:
        """(S, samples x (last - first), C) in the probes' type: patches first to last of each sample.

        place: number of the buffer; slabs of one size overwrite each other if they share it."""
        key = (place, len(samples), last - first)
        if key not in self.buffers:
            self.buffers[key] = self.acts.new_empty(self.steps, *key[1:], self.channels, dtype=self.dtype)
        buffer = self.buffers[key]
        if self.acts.is_cuda:
            buffer.copy_(self.acts.index_select(1, samples)[:, :, first:last])
        else:
            for place, sample in enumerate(samples.tolist()):
                buffer[:, place].copy_(self.acts[:, sample, first:last])
        return buffer.flatten(1, 2)


class ActivationBatch:
    """Activations X (S, n, C) of some samples, never held as one array if that would be slow."""

    def __init__(self, source: Activations, samples: Tensor) -> None:
        self.source, self.samples, self.count = source, samples, len(samples)
        values = source.steps * source.patches * source.channels * self.count
        self.keeps = values <= max(KEPT, SLAB) or source.acts.is_cuda
        self.kept: list[tuple[slice, Tensor]] = []

    def slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """(columns of n, their activations (S, columns, C)) in order; those of a small batch are converted once."""
        if self.kept:
            yield from self.kept
            return
        converted = []
        for number, (columns, samples, first, last) in enumerate(self._parts()):
            slab = (columns, self.source.slab(samples, first, last, number if self.keeps else 0))
            if self.keeps:
                converted.append(slab)
            yield slab
        self.kept = converted

    def _parts(self) -> Iterator[tuple[slice, Tensor, int, int]]:
        """(columns of n, samples, first and last patch) of each slab; of a batch on a card a single one."""
        source = self.source
        size = source.steps * source.patches * source.channels
        if size * self.count <= SLAB or source.acts.is_cuda:
            yield slice(None), self.samples, 0, source.patches
            return
        together = max(1, SLAB // size)
        length = min(source.patches, max(1, SLAB // (source.steps * source.channels)))
        for place in range(0, self.count, together):
            some = self.samples[place : place + together]
            for first in range(0, source.patches, length):
                last = min(first + length, source.patches)
                start = place * source.patches + first
                yield slice(start, start + len(some) * (last - first)), some, first, last

    def apply(self, weight: Tensor) -> Tensor:
        """Apply rows (S, R, C) to every patch: (S, R, n)."""
        parts = [torch.bmm(weight, x.transpose(1, 2)) for _, x in self.slabs()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def weight_grad(self, gradient: Tensor) -> Tensor:
        """Gradient (S, R, C) of the rows from the gradient (S, R, n) of their outputs: the transposed map."""
        total: Tensor | None = None
        for columns, x in self.slabs():
            part = gradient[:, :, columns]
            total = torch.bmm(part, x) if total is None else total.baddbmm_(part, x)
        assert total is not None
        return total
