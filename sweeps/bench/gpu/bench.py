"""What the pieces of the bench share: the model, the time that is left, and how a measurement gets into the file."""

from __future__ import annotations

import gc
import resource
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import torch
from numpy.typing import NDArray

from probing.diffusion import devices
from probing.diffusion.families.base import LatentDiffusion
from probing.labelling.images import ImageLabeller
from probing.planted import unweighted
from storage import Layout, SiteShape, Store
from sweeps.bench.gpu import rates
from sweeps.bench.gpu.record import Record
from sweeps.bench.gpu.scale import GUIDANCE, NARROW, PAPER, Scale
from sweeps.bench.paired import Action, Row, row, timed_pairs

BARS = {
    "sampling_over_diffusers": 1.02, "capture_over_sampling": 1.1, "grid_over_reading": 2.0, "edits_over_sampling": 2.0
}  # fmt: skip
"""row -> ratio that it should not exceed on a card"""
PROMPT = "a large red sphere on a green floor under a sky"
SHARE = 0.4
"""of the memory that is free, which a store in memory may take"""


class Sampling(TypedDict):
    """How images are sampled."""

    guidance: float
    steps: int


@dataclass(eq=False)
class Bench:
    """A bench at work on one piece."""

    record: Record
    device: torch.device
    narrow: bool
    disk: Path
    """an empty folder on a disk"""
    memory: Path | None
    """an empty folder in memory, if there is one"""
    piece: str = ""
    until: float = 0.0
    """when the piece must end, a time of `time.monotonic`"""
    stores: int = field(default=0, init=False)

    @property
    def scale(self) -> Scale:
        """The sizes."""
        return NARROW if self.narrow else PAPER

    @cached_property
    def model(self) -> LatentDiffusion:
        """Stable Diffusion v1.4 as the preset `paper` runs it: float32 weights, float16 autocast on a card."""
        return unweighted.build(unweighted.STABLE_DIFFUSION, self.device, autocast="float16", narrow=self.narrow)

    @cached_property
    def labellers(self) -> tuple[ImageLabeller, ImageLabeller]:
        """TRACER TE5 and MiDaS DPT-Large."""
        return unweighted.labellers(self.device, self.narrow)

    @property
    def sampling(self) -> Sampling:
        """Arguments of every sampling."""
        return Sampling(guidance=GUIDANCE, steps=self.scale.steps)

    def batch(self, count: int = 0) -> tuple[list[str], list[int]]:
        """Prompts and seeds of a shard."""
        count = count or self.scale.batch
        return [PROMPT] * count, list(range(count))

    def synchronise(self) -> None:
        """Wait for the card."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def compare(
        self, what: str, of: str, to: str, first: Action, second: Action, *, pairs: int = 0, warm_up: bool = True,
        **more: object,
    ) -> tuple[float, float]:  # fmt: skip
        """Time two ways in turn and add the row; returns the median seconds of both."""
        warm_up = warm_up and not self.narrow  # a rehearsal measures nothing
        count = min(pairs or self.scale.pairs, self.scale.pairs)
        timed = timed_pairs(self._timed(first), self._timed(second), count, warm_up, self.synchronise, self.until)
        return self.add(row(what, of, to, timed, unit="s", **more))

    def add(self, found: Row) -> tuple[float, float]:
        """Add a row to the piece, with its bar if it has one; returns its median seconds."""
        bar = BARS.get(found["what"])
        found |= {"bar": None, "met": None} if bar is None else {"bar": {"most": bar}, "met": found["ratio"] <= bar}
        self.record.pieces[self.piece]["rows"].append(found)
        self.write()
        return found["seconds"][0], found["seconds"][1]

    def _timed(self, action: Action) -> Action:
        def run() -> None:
            action()
            self.synchronise()

        return run

    def number(self, name: str, value: float | str, unit: str) -> None:
        """Add a number, or a word, to the piece."""
        self.record.pieces[self.piece]["numbers"][name] = {"value": value, "unit": unit}
        self.write()

    def per_second(self, name: str, count: float, action: Action, unit: str, repeats: int = 3) -> float:
        """Add how many of something are done in a second, the median of some runs after one that is not timed."""
        timed: list[float] = []
        for _ in range(1 if self.narrow else repeats + 1):
            if len(timed) > 1 and time.monotonic() + timed[-1] > self.until:
                break
            self.synchronise()
            started = time.perf_counter()
            self._timed(action)()
            timed.append(time.perf_counter() - started)
        speed = count / statistics.median(timed[1:] or timed)
        self.number(name, speed, unit)
        return speed

    def write(self) -> None:
        """Write the file, with the rates that follow from it."""
        self.record.document["rates"] = rates.of(self.record)
        self.record.write()

    def left(self) -> float:
        """Seconds that are left for the piece."""
        return self.until - time.monotonic()

    def store(self, layout: Layout, where: Path) -> Store:
        """An empty store in a folder of its own."""
        self.stores += 1
        return Store.create(str(where / f"{self.piece}-{self.stores}"), layout)

    def drop(self, store: Store) -> None:
        """Delete a store."""
        shutil.rmtree(store.url, ignore_errors=True)

    def room(self, size: int) -> Path | None:
        """Where a store of `size` bytes has room that is read as fast as possible: in memory, else on the disk."""
        in_memory = self.memory is not None and shutil.disk_usage(self.memory).free > 1.1 * size
        if in_memory and size < SHARE * devices.free_memory("cpu"):
            return self.memory
        return self.disk if shutil.disk_usage(self.disk).free > 1.2 * size else None

    def free(self) -> None:
        """Give memory back that nothing holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def reset_peak(self) -> None:
        """Begin to measure peak memory anew, where that is possible."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> dict[str, float]:
        """Peak memory of the piece in GiB: of the card, and of the process since its start."""
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        card = torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else 0.0
        return {"peak_card_gib": round(card, 3), "peak_host_gib": round(host, 3)}


def layout(model: LatentDiffusion, samples: int, shard: int, steps: int, sites: Sequence[str] = ()) -> Layout:
    """The layout of a store for a model's sites, all of them if none are named."""
    shapes = tuple(SiteShape(s.name, s.tokens, s.channels) for s in model.sites() if not sites or s.name in sites)
    return Layout(samples, shard, ("trained",), shapes, steps, model.image_size, model.latent_shape)


def mean_difference(first: NDArray, second: NDArray) -> float:
    """Mean absolute difference of two batches of images, in levels of 255."""
    return float(abs(first.astype(float) - second.astype(float)).mean())
