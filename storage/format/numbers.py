"""Numbers in the place of paths: a check of millions of chunks holds arrays of numbers, not strings."""

from bisect import bisect_right

import numpy as np

from storage.format.arrays import ArraySpec
from storage.format.layout import Layout
from storage.keys import ChunkKey


class ChunkNumbers:
    """The chunks of a layout, numbered from 0: array by array, in each shard by shard, in each step by step."""

    def __init__(self, layout: Layout) -> None:
        self.specs = list(layout.arrays.values())
        self.shards = layout.shards
        self._steps = np.array([len(spec.steps) or 1 for spec in self.specs])
        self._first = np.concatenate([[0], np.cumsum(self._steps * layout.shards)])
        self._first_slot = np.concatenate([[0], np.cumsum(self._steps)])
        self._starts: list[int] = self._first.tolist()
        self._arrays = {spec.path: number for number, spec in enumerate(self.specs)}

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def slots(self) -> int:
        """Number of chunks in a shard: one for each array, or for each step of an array."""
        return int(self._first_slot[-1])

    def number(self, path: str) -> int | None:
        """Number of the chunk in a file; None if the layout has no such file."""
        folder, _, index = path.rpartition("/c/")
        array = self._arrays.get(folder)
        if array is None:
            return None
        spec = self.specs[array]
        try:
            shard, step = map(int, index.split("/")[:2])
            key = spec.key(shard, spec.steps[step] if spec.stepped else None)
        except (ValueError, IndexError):
            return None
        # the numbers may have been written in another way, or more may follow
        return self._starts[array] + shard * (len(spec.steps) or 1) + (key.index or 0) if key.path == path else None

    def array(self, numbers: np.ndarray) -> np.ndarray:
        """Positions in `specs` of the arrays of chunks."""
        return np.searchsorted(self._first, numbers, side="right") - 1

    def shard(self, numbers: np.ndarray) -> np.ndarray:
        """Shards of chunks."""
        array = self.array(numbers)
        return (numbers - self._first[array]) // self._steps[array]

    def slot(self, numbers: np.ndarray) -> np.ndarray:
        """Places of chunks within their shard, from 0: equal for the same array and step."""
        array = self.array(numbers)
        return self._first_slot[array] + (numbers - self._first[array]) % self._steps[array]

    def at(self, shard: int, slots: np.ndarray) -> np.ndarray:
        """Numbers of the chunks of a shard in some slots: the inverse of `shard` and `slot`."""
        array = np.searchsorted(self._first_slot, slots, side="right") - 1
        return self._first[array] + shard * self._steps[array] + slots - self._first_slot[array]

    def spec(self, number: int) -> ArraySpec:
        """Array of a chunk."""
        return self.specs[bisect_right(self._starts, number) - 1]

    def key(self, number: int) -> ChunkKey:
        """Key of a chunk."""
        spec = self.spec(number)
        shard, step = divmod(number - self._starts[self._arrays[spec.path]], len(spec.steps) or 1)
        return spec.key(shard, spec.steps[step] if spec.stepped else None)
