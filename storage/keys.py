"""Names of files and keys of chunks. Paths are only built from keys, never parsed back."""

import re
from dataclasses import dataclass

ACTIVATIONS = "activations.zarr/"
LAYOUT = "layout.json"
MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"
CURATION = "curation.parquet"
CURATED = "curation.json"
CONFIG = "config.yaml"
PROMPTS = "prompts.json"
EXPERIMENTS = "experiments.json"
BUILT = "report/built.json"
INPUTS = "inputs.json"
DOCUMENTS = (MANIFEST, CURATED, EXPERIMENTS, BUILT, INPUTS, "costs.json", "cluster.json", "tracking.json")
"""Sealed documents with fixed names."""
DOCUMENT_FOLDERS = ("failed/", "curation/safety/")
"""Folders of sealed documents."""
DECISIONS = "curation/decisions.csv"
LEASE = "lease.json"
CLEANED = "cleaned.json"
PARTIAL = ".partial"
SET_ASIDE = "set_aside/"
RESULTS = "results/"
FAILED = ".failed.json"

FOREIGN = ("Thumbs.db", "desktop.ini", "@eaDir", "lost+found")
"""Names of what operating systems put into folders, beside those that begin with a dot."""


def is_foreign(name: str) -> bool:
    """Whether a file or folder of this name is not the store's: no name of a store begins with a dot."""
    return name.startswith(".") or name in FOREIGN


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\-]*")


def checked_name(kind: str, name: str) -> str:
    """Return `name`. Raises ValueError if it can't be one part of a path."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{kind} {name!r}: use letters, digits and '_', after the first also '-', '.' and '@'")
    return name


@dataclass(frozen=True, order=True)
class ChunkKey:
    """One chunk of one array: index `shard` along the samples and, in stepped arrays, one step."""

    array: str
    """Path of the array, such as `labels.zarr/depth`."""
    shard: int
    step: int | None
    """1, 2, ... as in the paper; None for arrays without a step axis."""
    index: int | None
    """Place of the step along the array's step axis, from 0."""
    inner: int
    """Number of further axes, each of which lies whole in the chunk."""

    @property
    def path(self) -> str:
        """Path of the chunk's file, with Zarr v3's default chunk key: `ARRAY/c/SHARD[/INDEX]/0/0`."""
        index = [self.shard] if self.index is None else [self.shard, self.index]
        return "/".join([self.array, "c", *map(str, index + [0] * self.inner)])


def record_prefix(stage: str, variant: str) -> str:
    """Folder of the completion records of one stage and variant, with a final slash."""
    return f"shards/{checked_name('stage', stage)}/{checked_name('variant', variant)}/"


def record_path(stage: str, variant: str, shard: int) -> str:
    """Path of a completion record."""
    return f"{record_prefix(stage, variant)}{shard:05d}.json"


def failure_path(stage: str, variant: str, shard: int) -> str:
    """Path of the note on why a shard failed."""
    return f"{record_prefix(stage, variant)}{shard:05d}{FAILED}"


def probe_path(variant: str, site: str, step: int, task: str, control: str, seed: int) -> str:
    """Path of one probe's weights."""
    return f"probes/{variant}/{site}/{step:02d}.{task}.{control}.{seed}.safetensors"


def part_prefix(table: str) -> str:
    """Folder of the Parquet parts of one results table, with a final slash."""
    return f"{RESULTS}{checked_name('table', table)}/"
