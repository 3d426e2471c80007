"""Renders the training and held-out sets of the scenes world, in parts, resumable and in parallel."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from probing.scenes.render import draw_scene, render
from probing.scenes.world import RENDER_SEEDS

PART = 250
"""renders in one file"""


@dataclass(frozen=True)
class Renders:
    """A set of renders in memory, N of them."""

    images: np.ndarray
    """uint8 (N, H, W, 3)"""
    depths: np.ndarray
    """float16 (N, H, W), relative inverse depth"""
    masks: np.ndarray
    """uint8 (N, H, W), share of the pixel covered by objects in 255ths"""
    captions: tuple[str, ...]
    colours: tuple[str, ...]
    """the objects' colours of each scene, joined by spaces"""

    def __len__(self) -> int:
        return len(self.images)


def _render_part(job: tuple[str, int, int]) -> str:
    path, first, count = job
    torch.set_num_threads(1)
    made = [render(draw_scene(first + offset)) for offset in range(count)]
    temporary = f"{path}.{os.getpid()}.partial.npz"
    np.savez(
        temporary,
        images=np.stack([r.image for r in made]),
        depths=np.stack([r.depth for r in made]).astype(np.float16),
        masks=np.stack([(r.mask * 255).round() for r in made]).astype(np.uint8),
        captions=np.array([r.caption for r in made]),
        colours=np.array([" ".join(r.colours) for r in made]),
    )
    os.replace(temporary, path)
    return path


def _jobs(folder: Path, split: str, count: int) -> Iterator[tuple[str, int, int]]:
    for part in range((count + PART - 1) // PART):
        size = min(PART, count - part * PART)
        path = folder / f"{split}-{part:04d}-{size}.npz"
        if not path.exists():
            yield str(path), RENDER_SEEDS[split] + part * PART, size


def make(
    folder: Path, split: str, count: int, workers: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Renders the missing parts of a set of `count` scenes with `workers` processes."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = list(_jobs(folder, split, count))
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(_render_part, jobs), start=1):
            if progress:
                progress(done, len(jobs))


def _parts(folder: Path, split: str, count: int) -> Iterator[Path]:
    for part in range((count + PART - 1) // PART):
        path = folder / f"{split}-{part:04d}-{min(PART, count - part * PART)}.npz"
        if not path.exists():
            raise ValueError(f"renders: {path} is missing; render the set again")
        yield path


def load_captions(folder: Path, split: str, count: int) -> tuple[str, ...]:
    """Captions alone of the first `count` scenes."""
    return tuple(str(x) for path in _parts(folder, split, count) for x in np.load(path)["captions"])


def load(folder: Path, split: str, count: int) -> Renders:
    """Reads the first `count` scenes of a set into memory."""
    parts = [np.load(path) for path in _parts(folder, split, count)]
    images, depths, masks = (np.concatenate([part[name] for part in parts]) for name in ("images", "depths", "masks"))
    captions, colours = (tuple(str(x) for part in parts for x in part[name]) for name in ("captions", "colours"))
    return Renders(images, depths, masks, captions, colours)
