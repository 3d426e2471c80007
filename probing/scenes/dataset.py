"""The training and held-out sets of renders of the scenes world: made in parts, resumable and in parallel."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from probing.scenes.render import SIZE, draw_scene, render
from probing.scenes.world import RENDER_SEEDS

PART = 250
"""renders in one file"""


@dataclass(frozen=True)
class Renders:
    """A set of renders in memory, N of them."""

    images: np.ndarray
    """uint8 (N, H, W, 3)"""
    depths: np.ndarray
    """float32, or float16 if loaded from files, (N, H, W): relative inverse depth"""
    masks: np.ndarray
    """uint8 (N, H, W), share of the pixel covered by objects in 255ths"""
    captions: tuple[str, ...]
    colours: tuple[str, ...]
    """the objects' colours of each scene, joined by spaces"""

    def __len__(self) -> int:
        return len(self.images)


def draw(seeds: Sequence[int], size: int = SIZE) -> Renders:
    """Render the scenes of the given seeds at `size` pixels a side."""
    made = [render(draw_scene(seed), size) for seed in seeds]
    return Renders(
        np.stack([r.image for r in made]),
        np.stack([r.depth for r in made]),
        np.stack([(r.mask * 255).round() for r in made]).astype(np.uint8),
        tuple(r.caption for r in made),
        tuple(" ".join(r.colours) for r in made),
    )


@dataclass(frozen=True)
class Part:
    """One file of a set of renders."""

    path: Path
    first_seed: int
    count: int


def parts(folder: Path, split: str, count: int) -> Iterator[Part]:
    """The files of the first `count` scenes of a set, whether they exist or not."""
    for start in range(0, count, PART):
        size = min(PART, count - start)
        path = folder / f"{split}-{start // PART:04d}-{size}.npz"
        yield Part(path, RENDER_SEEDS[split] + start, size)


def make(
    folder: Path,
    split: str,
    count: int,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    until: float = math.inf,
) -> int:
    """Render the missing parts of a set of `count` scenes with `workers` processes; returns how many there are then.

    until: a time of `time.monotonic` after which no further part is waited for, but for the first one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [part for part in parts(folder, split, count) if not part.path.exists()]
    if missing:
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers) as pool:
            # in order, so that what there is at any time are the first scenes
            for done, _ in enumerate(pool.imap(_render_part, missing), start=1):
                if progress:
                    progress(done, len(missing))
                if time.monotonic() > until:
                    break
    there = itertools.takewhile(lambda part: part.path.exists(), parts(folder, split, count))
    return sum(part.count for part in there)


def _render_part(part: Part) -> None:
    torch.set_num_threads(1)
    renders = draw(range(part.first_seed, part.first_seed + part.count))
    temporary = f"{part.path}.{os.getpid()}.partial.npz"
    np.savez(
        temporary,
        images=renders.images,
        depths=renders.depths.astype(np.float16),
        masks=renders.masks,
        captions=np.array(renders.captions),
        colours=np.array(renders.colours),
    )
    os.replace(temporary, part.path)


def _existing(folder: Path, split: str, count: int) -> Iterator[Path]:
    for part in parts(folder, split, count):
        if not part.path.exists():
            raise ValueError(f"renders: {part.path} is missing; render the set again")
        yield part.path


def load_captions(folder: Path, split: str, count: int) -> tuple[str, ...]:
    """Captions alone of the first `count` scenes. Raises ValueError if a part is missing."""
    return tuple(str(x) for path in _existing(folder, split, count) for x in np.load(path)["captions"])


def load(folder: Path, split: str, count: int) -> Renders:
    """Load the first `count` scenes of a set into memory. Raises ValueError if a part is missing."""
    files = [np.load(path) for path in _existing(folder, split, count)]
    images, depths, masks = (np.concatenate([file[name] for file in files]) for name in ("images", "depths", "masks"))
    captions, colours = (tuple(str(x) for file in files for x in file[name]) for name in ("captions", "colours"))
    return Renders(images, depths, masks, captions, colours)
