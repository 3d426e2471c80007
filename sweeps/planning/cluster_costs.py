"""How long a run takes, and what it costs, on 1, 8 and more GPUs: simulation from rates, pure arithmetic.

A stage is many equal tasks. As many as there are workers run at once; all share one storage, so a
round of w tasks takes the longer of one task's computing and w tasks' bytes through the storage.
Rates that nobody measured are assumptions, and the text says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from storage.budget import Budget
from sweeps.config.schema import Config
from sweeps.planning import costs

ASSUMED = "assumed"
GIVEN = "given"


@dataclass(frozen=True)
class Rates:
    """What one worker does, and what the storage of all takes. 0 stands for the assumption."""

    sampling: float = 0.0
    """samples a second of a sampling worker"""
    labelling: float = 0.0
    """samples a second of a labelling worker"""
    probing: float = 0.0
    """probes a second of a probe trial's worker, reading left out"""
    editing: float = 0.0
    """edits of an image, with their controls, an hour of an intervention worker"""
    storage: float = 0.0
    """GB a second that the storage takes, or gives, in all"""
    start: float = 0.0
    """seconds until a worker has its model"""
    price: float = 0.0
    """price of a GPU hour"""

    @classmethod
    def read(cls, given: Mapping[str, str | float]) -> Rates:
        """From names and numbers; ValueError for an unknown name, or what is no number."""
        known = [f.name for f in fields(cls)]
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"--rates {name}: unknown; known are {', '.join(known)}")
            try:
                float(value)
            except ValueError:
                raise ValueError(f"--rates {name}={value}: needs a number, in {UNITS[name]}") from None
        return cls(**{name: float(value) for name, value in given.items()})

    def filled(self) -> Rates:
        """The same with assumptions where nothing was given."""
        return Rates(**{f.name: getattr(self, f.name) or getattr(ASSUMPTIONS, f.name) for f in fields(self)})

    def told(self) -> str:
        """Each rate and where it is from."""
        whole = self.filled()
        return "; ".join(
            f"{f.name} {getattr(whole, f.name):g} {UNITS[f.name]} ({GIVEN if getattr(self, f.name) else ASSUMED})"
            for f in fields(self)
        )


ASSUMPTIONS = Rates(sampling=0.25, labelling=2, probing=0.5, editing=20, storage=2, start=60, price=3)
"""for Stable Diffusion v1.4 on one large GPU, none of them measured"""
UNITS = {
    "sampling": "samples/s", "labelling": "samples/s", "probing": "probes/s", "editing": "edits/h",
    "storage": "GB/s in all", "start": "s", "price": "per GPU hour",
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """Equal tasks of one stage."""

    name: str
    tasks: int
    seconds: float
    """computing of one task"""
    bytes: float
    """of one task, written or read"""
    gpu: float
    """GPUs, or a fraction of one, of a worker"""

    def workers(self, gpus: int) -> int:
        return max(1, math.floor(gpus / self.gpu + 1e-9))

    def wall(self, gpus: int, storage: float, start: float) -> float:
        """Seconds of the stage."""
        if not self.tasks:
            return 0.0
        workers = self.workers(gpus)
        full, rest = divmod(self.tasks, workers)
        return start + full * self._round(workers, storage) + (self._round(rest, storage) if rest else 0.0)

    def _round(self, workers: int, storage: float) -> float:
        return max(self.seconds, workers * self.bytes / storage)

    def limit(self, storage: float) -> float:
        """GPUs from which on the storage, not they, sets the pace."""
        return self.seconds * storage / self.bytes * self.gpu if self.bytes else math.inf


def stages(
    config: Config, price: Budget, samples: int, test: int, trials: int, cells: int, rates: Rates
) -> list[Stage]:
    """The stages of a run that use GPUs; `samples` of one variant, `test` of them test images, `rates` filled."""
    shard, variants = config.sampling.shard, len(config.sampling.variants)
    shards = math.ceil(samples / shard)
    families = price.families()
    activations = families.get("activations.zarr", 0)
    written = sum(size for name, size in families.items() if not name.startswith("labels"))
    tasks = shards * variants
    edits = math.ceil(costs.edited(config, test))
    ray = config.ray
    return [
        Stage("sampling", tasks, shard / rates.sampling, written / tasks, ray.sampling_gpus or 1),
        Stage("labelling", shards, shard / rates.labelling, families.get("labels.zarr", 0) / shards,
              ray.label_gpus or 1),
        Stage("probing", trials, cells / max(trials, 1) / rates.probing, activations / max(trials, 1),
              ray.probe_gpus or 1),
        Stage("editing", edits, 3600 / rates.editing, 0, ray.sampling_gpus or 1),
    ]  # fmt: skip


def table(work: Sequence[Stage], gpus: Sequence[int], rates: Rates) -> list[str]:
    """One line per number of GPUs: hours of each stage, GPU hours, price; and where storage is the limit."""
    storage = rates.storage * 1e9
    lines = [f"{'GPUs':>5} " + "".join(f"{stage.name + ' h':>13}" for stage in work) + "      all h   GPU h   price"]
    for count in gpus:
        hours = [stage.wall(count, storage, rates.start) / 3600 for stage in work]
        marks = ["*" if count > stage.limit(storage) else " " for stage in work]
        spent = sum(hours) * count
        cells = "".join(f"{hour:>12.2f}{mark}" for hour, mark in zip(hours, marks, strict=True))
        lines.append(f"{count:>5} {cells}{sum(hours):>11.2f}{spent:>8.1f}{spent * rates.price:>8.0f}")
    limits = [f"{s.name} from {s.limit(storage):.1f} GPUs" for s in work if math.isfinite(s.limit(storage))]
    lines.append(f"* the storage sets the pace: {', '.join(limits)}")
    return lines


def counts(gpus: int) -> list[int]:
    """The numbers of GPUs that are shown beside the wanted one."""
    return sorted({count for count in (1, 8) if count < gpus} | {gpus})
