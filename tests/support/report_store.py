"""A synthetic finished run for the tests of the report and of the W&B mirror."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import save

import storage
from interventions.counterfactual import Move
from interventions.pictures import Pictures, pack, picture_path
from interventions.plan import Row
from storage import tables

SITES = {  # name: (columns of the grid, channels) of the scenes model
    "down.0.0": (16, 64), "down.0.1": (16, 64), "down.1.0": (8, 128), "down.1.1": (8, 128),
    "down.2.0": (4, 192), "down.2.1": (4, 192), "mid.0": (2, 192),
    "up.1.0": (4, 192), "up.1.1": (4, 192), "up.1.2": (4, 192),
    "up.2.0": (8, 128), "up.2.1": (8, 128), "up.2.2": (8, 128),
    "up.3.0": (16, 64), "up.3.1": (16, 64), "up.3.2": (16, 64),
}  # fmt: skip
OTHER = {"vae.mid": (16, 32), "conv.up.3.0": (16, 64), "conv.mid.0": (2, 192)}
"""sites of additional site families"""
LABELLERS = {"labeller.x0": (16, 1), "labeller.xt": (16, 1)}
"""values of column `site` for labellers of the decoded partial image"""
SHAPES = SITES | OTHER | LABELLERS
STEPS = tuple(range(1, 16))
VARIANTS = ("trained", "random")
ORACLES = {16: (0.93, 0.15), 8: (0.84, 0.22), 4: (0.66, 0.38), 2: (0.48, 0.60)}
COLOURS = {
    "red": (196, 62, 58), "blue": (58, 96, 190), "green": (70, 150, 84), "yellow": (221, 186, 70),
    "purple": (134, 84, 160), "orange": (222, 130, 60),
}  # fmt: skip


def quality(site: str, step: int, variant: str) -> float:
    """Quality of the predictions from a site at a step, 0 to 1."""
    if variant != "trained":
        return 0.12 + 0.02 * site.startswith("down")
    depth = list(SITES).index(site) / len(SITES) if site in SITES else 0.1
    best = 0.45 + 0.5 * np.exp(-(((depth - 0.72) / 0.3) ** 2))
    return float(best * (1 - np.exp(-step / (1.4 + 1.6 * (1 - depth)))))


def scene(sample: int, size: int, stretch: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Image uint8 (size * stretch, size, 3), mask uint8, depth float32, caption of one synthetic scene."""
    rng = np.random.default_rng(sample)
    y, x = np.mgrid[: round(size * stretch), :size] / size
    y /= stretch
    horizon = rng.uniform(0.25, 0.6)
    floor = np.clip((y - horizon) / (1 - horizon), 0, 1)
    depth = (0.2 + 2.2 * floor + rng.uniform(-0.6, 0.6) * (x - 0.5)).astype(np.float32)
    image = np.where(floor[..., None] > 0, (190, 186, 176), (172, 196, 214)) * (0.8 + 0.2 * floor[..., None])
    mask = np.zeros(y.shape, np.uint8)
    words = []
    for _ in range(rng.integers(1, 3)):
        colour = str(rng.choice(list(COLOURS)))
        radius, cx = rng.uniform(0.1, 0.22), rng.uniform(0.2, 0.8)
        cy = rng.uniform(horizon, 0.8)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        light = 0.65 + 0.5 * np.clip(((cx - x) + (cy - y)) / radius + 0.5, 0, 1)
        image[inside] = (np.array(COLOURS[colour]) * light[..., None])[inside]
        depth[inside] = 1.6 + 2 * radius * 3
        mask[inside] = 1
        words.append(f"a {'large' if radius > 0.16 else 'small'} {colour} sphere")
    caption = " beside ".join(words) + " on a plain gray floor"
    return np.clip(image, 0, 255).astype(np.uint8), mask, depth, caption


@dataclass(frozen=True)
class Made:
    """Sizes of a synthetic run."""

    train: int = 6
    test: int = 10
    size: int = 32
    """columns of an image"""
    stretch: float = 1.0
    """rows of images and grids over their columns"""
    steps: tuple[int, ...] = STEPS
    variants: tuple[str, ...] = VARIANTS
    sites: tuple[str, ...] = tuple(SITES)
    extras: bool = True
    """whether controls and interventions have rows"""
    pictures: bool = True
    """whether images, labels, activations and probes are there"""
    images: bool = True
    """whether there are scores per image"""
    val: bool = True
    """whether probes have validation scores"""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.train + self.test

    @property
    def image(self) -> tuple[int, int]:
        """Rows and columns of an image."""
        return round(self.size * self.stretch), self.size

    def tokens(self, site: str) -> int:
        """Patches of a site's grid."""
        columns, _ = SHAPES[site]
        return round(columns * self.stretch) * columns


def make_store(root: Path, made: Made = Made()) -> storage.Store:
    """A finished run in `root`: tables, pictures and probes of every site and step."""
    sites = tuple(storage.SiteShape(n, made.tokens(n), 3) for n in made.sites)
    layout = storage.Layout(
        samples=made.samples,
        shard=made.samples,
        variants=made.variants,
        sites=sites,
        image=made.image,
        latent=(4, 4, 4),
    )
    store = storage.Store.create(str(root), layout, durable=False)
    store.put("manifest.json", json.dumps(MANIFEST).encode())
    write_samples(store, made)
    write_results(store, made)
    if made.pictures:
        write_pictures(store, made)
        write_probes(store, made)
        write_edits(store, made)
        if made.extras:
            write_emergence(store, made)
    return store


def write_samples(store: storage.Store, made: Made) -> None:
    """samples.parquet and curation.parquet."""
    every = range(made.samples)
    store.write_samples({"sample": i, "prompt": scene(i, 8)[3], "seed": 100 + i, "shard": 0} for i in every)
    split = ["train"] * made.train + ["test"] * made.test
    store.put("costs.json", json.dumps({"sample": 71.4, "label": 9.2, "probe": 48.0}).encode())
    store.write_curation({"sample": i, "keep": True, "reason": "", "split": split[i]} for i in every)


def write_results(store: storage.Store, made: Made) -> None:
    """results/probes, images, epochs and interventions."""
    parts = [image_rows(made, "none", made.variants)]
    if made.extras:
        parts += [image_rows(made, c, ("trained",)) for c in ("position", "shuffled")]
        vae, *conv = OTHER
        parts.append(image_rows(made, "none", ("trained",), "vae", (vae,)))
        parts.append(image_rows(made, "none", ("trained",), "conv", tuple(conv)))
        parts.append(image_rows(made, "none", ("trained",), "smoothness", ("up.1.0", "mid.0")))
        parts.append(better(image_rows(made, "none", ("trained",), "converged", ("up.2.1",)), made))
        parts.append(image_rows(made, "none", ("trained",), "truth", ("up.2.0",)))
        put_table(store, "interventions", interventions(made.test, made.train))
    images = pa.concat_tables(parts)
    if made.images:
        emergence = [image_rows(made, "none", ("trained",), "emergence", tuple(LABELLERS))] if made.extras else []
        put_table(store, "images", pa.concat_tables([images, *emergence]))
    probes = probe_rows(images, made.val, made)
    put_table(store, "probes", probes)
    if made.extras:
        put_table(store, "probes", transfer_rows(made))
    put_table(store, "epochs", epoch_rows(probes))


def better(rows: pa.Table, made: Made, by: float = 0.25) -> pa.Table:
    """The last step's rows with every depth error smaller."""
    rows = rows.filter(pc.equal(rows["step"], made.steps[-1]))
    return rows.set_column(rows.column_names.index("rmse"), "rmse", pc.subtract(rows["rmse"], by))


def put_table(store: storage.Store, name: str, table: pa.Table) -> None:
    """Write one Parquet part as `store.append` does, without converting to Python rows."""
    store.put(f"results/{name}/{time.time_ns():020d}-made.parquet", tables.to_parquet(table))


def write_pictures(store: storage.Store, made: Made) -> None:
    """Images and labels."""
    scenes = [scene(i, made.size, made.stretch) for i in range(made.samples)]
    images = np.stack([s[0] for s in scenes])
    store.write_labels("saliency", 0, np.stack([s[1] * 255 for s in scenes]))
    store.write_labels("depth", 0, np.stack([s[2] for s in scenes]))
    coarse = np.random.default_rng(7).integers(
        60, 200, (made.samples, made.image[0] // 4, made.image[1] // 4, 3), dtype=np.uint8
    )
    coarse = coarse.repeat(4, 1).repeat(4, 2)
    for variant in made.variants:
        store.write_images(variant, 0, images if variant == "trained" else coarse)


def write_probes(store: storage.Store, made: Made) -> None:
    """Activations and probes at the steps that reports show, with those of the smoothness loss at one site."""
    saliency = {"weight": np.array([[0, 0, 2], [6, 0, -1]], np.float32)}
    depth = {"weight": np.array([[0, 1, -1]], np.float32)}
    scenes = [scene(i, 32, made.stretch)[1:3] for i in range(made.samples)]
    for variant in made.variants:
        for site in {"up.1.0", "up.2.1", "up.3.0"} & set(made.sites):
            for step in (1, 2, 3, 5, 10, 15):
                values = activations(scenes, site, quality(site, step, variant), step)
                store.write_activation(variant, site, step, 0, values)
                for task, weights in (("saliency", saliency), ("depth", depth)):
                    path = storage.probe_path(variant, site, step, task, "none", 0)
                    store.put(path, save(weights))
    if made.extras and "up.1.0" in made.sites:
        path = storage.probe_path("trained", "up.1.0", made.steps[-1], "depth", "none", 0)
        store.put(f"experiments/smoothness/{path}", save(depth))


def write_emergence(store: storage.Store, made: Made) -> None:
    """Partial images of the first test image, with their labels."""
    image, mask, depth, _ = scene(made.train, made.size, made.stretch)
    kept = {"steps": np.array(STEPS)}
    for kind in ("xt", "x0"):
        kept[f"{kind}.image"] = np.stack([image] * len(STEPS))
        kept[f"{kind}.saliency"] = np.stack([mask * 255] * len(STEPS))
        kept[f"{kind}.depth"] = np.stack([depth.astype(np.float16)] * len(STEPS))
    store.put(f"experiments/emergence/{made.train:05d}.safetensors", save(kept))


def write_edits(store: storage.Store, made: Made) -> None:
    """Pictures of one edit of each task."""
    for task in ("saliency", "depth"):
        image, mask, depth, _ = scene(made.train, made.size, made.stretch)
        label = mask.astype(bool) if task == "saliency" else depth
        moved = np.roll(label, 4, axis=1)
        pictures = Pictures(
            task=task,
            rows=(Row(0, "none"), Row(0, "edit")),
            images=np.stack([image, np.roll(image, 4, axis=1)]),
            labels=np.stack([label, moved]),
            before=image,
            label_before=label,
            targets=moved[None],
            goals=(Move(4, 0),),
            stage_hash="e55b7a10",
        )
        key = f"interventions.{made.train:05d}.{task}.0badcafe"
        store.put(picture_path(key), pack(pictures))


def activations(scenes: list[tuple[np.ndarray, ...]], site: str, q: float, seed: int) -> np.ndarray:
    """float16 (n, T, 3): a mask, a depth and a constant per patch, noisier if q is smaller."""
    columns = SITES[site][0]
    side = 32 // columns
    rng = np.random.default_rng(seed)
    planes = [[v.reshape(-1, side, columns, side).mean((1, 3)).ravel() for v in pair] for pair in scenes]
    clean = np.stack(planes).transpose(0, 2, 1)
    noisy = q * clean + (1 - q) * rng.normal(0.6, 0.7, clean.shape)
    return np.concatenate([noisy, np.ones((*noisy.shape[:2], 1))], -1).astype(np.float16)


def image_rows(
    made: Made, control: str, variants: tuple[str, ...], experiment: str = "grid", sites: tuple[str, ...] = ()
) -> pa.Table:
    """results/images of both tasks and all steps, for the main sites or others."""
    sites = sites or made.sites
    axes = (variants, sites, made.steps, ("saliency", "depth"), range(made.test))
    v, s, t, k, n = (a.ravel() for a in np.indices([len(a) for a in axes]))
    rng = np.random.default_rng(0)
    q = np.array([[[quality(i, j, w) for j in made.steps] for i in sites] for w in variants])
    q = q[v, s, t] * {"none": 1.0, "position": 0.35}.get(control, 0.05)
    wobble = rng.normal(0, 0.16, made.test)[n] + rng.normal(0, 0.05, n.size)
    cells = np.array([SHAPES[i][0] for i in sites])[s]
    top, bottom = (np.array([ORACLES[c][i] for c in cells]) for i in (0, 1))
    dice = np.clip(top * q * 1.04 + wobble, 0, top)
    rmse = np.clip(1.02 - (1.02 - bottom) * q + wobble, bottom, None)
    mask = k == 0
    return pa.table(
        {
            "experiment": [experiment] * n.size,
            "variant": np.array(variants)[v],
            "site": np.array(sites)[s],
            "step": np.array(axes[2])[t],
            "task": np.array(axes[3])[k],
            "control": [control] * n.size,
            "seed": np.zeros(n.size, int),
            "sample": n + made.train,
            "dice": pa.array(dice, mask=~mask),
            "oracle_dice": pa.array(top, mask=~mask),
            "ap": pa.array(np.clip(dice + 0.04, 0, 1), mask=~mask),
            "spearman": pa.array(np.clip(0.9 - rmse / 2, -1, 1), mask=mask),
            "attempt": np.ones(n.size, int),
            "stage_hash": ["c7d9e0f2"] * n.size,
            "rmse": pa.array(rmse, mask=mask),
            "oracle_rmse": pa.array(bottom, mask=mask),
        }
    )


def probe_rows(images: pa.Table, validated: bool = True, made: Made = Made()) -> pa.Table:
    """results/probes: means of the per-image rows, with floors, training losses and, optionally, validation scores."""
    keys = ["experiment", "variant", "site", "step", "task", "control", "seed", "stage_hash"]
    scores = ["dice", "oracle_dice", "rmse", "oracle_rmse", "ap", "spearman"]
    means = images.group_by(keys).aggregate([(s, "mean") for s in scores])
    means = means.rename_columns([n.removesuffix("_mean") for n in means.column_names])
    n, site = means.num_rows, means["site"].to_pylist()
    task = np.array(means["task"].to_pylist())
    dice, rmse = (means[c].to_numpy() for c in ("dice", "rmse"))
    columns = {
        "block": [s.rpartition(".")[0] for s in site],
        "tokens": [made.tokens(s) for s in site],
        "channels": [SHAPES[s][1] for s in site],
        "n_train": [64] * n,
        "n_val": [32 if validated else 0] * n,
        "n_test": [96] * n,
        "train_loss": np.where(task == "saliency", 1 - np.nan_to_num(dice), np.nan_to_num(rmse)),
        "val_dice": pa.array(dice - 0.005, mask=(task != "saliency") | (not validated)),
        "val_rmse": pa.array(rmse + 0.005, mask=(task != "depth") | (not validated)),
        "dice_threshold": pa.array(dice + 0.01, mask=task != "saliency"),
        "crossentropy": pa.array(0.7 - dice / 2, mask=task != "saliency"),
        "floor_dice": pa.array(np.full(n, 0.34), mask=task != "saliency"),
        "floor_rmse": pa.array(np.full(n, 0.78), mask=task != "depth"),
        "seconds": np.full(n, 0.04),
        "status": ["done"] * n,
        "attempt": [1] * n,
    }
    for name, values in columns.items():
        means = means.append_column(name, pa.array(values))
    return means


def transfer_rows(made: Made) -> pa.Table:
    """results/probes of the transfer experiment at one site: scores fall with the distance between the steps."""
    rows = [
        {
            "experiment": "transfer", "variant": "trained", "site": "up.3.0", "step": step, "task": task,
            "control": f"from_{origin:02d}", "seed": 0, "stage_hash": "7a45fe12", "status": "done", "attempt": 1,
            "tokens": made.tokens("up.3.0"), "channels": 3, "n_test": 96,
            "dice": 0.9 - 0.04 * abs(step - origin) if task == "saliency" else None,
            "rmse": 0.3 + 0.03 * abs(step - origin) if task == "depth" else None,
        }
        for task in ("saliency", "depth")
        for origin in made.steps
        for step in made.steps
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def epoch_rows(probes: pa.Table) -> pa.Table:
    """results/epochs: three epochs of each probe."""
    keys = ["experiment", "variant", "site", "step", "task", "control", "seed", "stage_hash"]
    parts = [
        probes.select(keys)
        .append_column("epoch", pa.array([epoch] * probes.num_rows))
        .append_column("train_loss", pa.array([1.0 / epoch] * probes.num_rows))
        .append_column("val_loss", pa.array([1.1 / epoch] * probes.num_rows))
        .append_column("attempt", pa.array([1] * probes.num_rows))
        for epoch in (1, 2, 3)
    ]
    return pa.concat_tables(parts)


def interventions(images: int, first: int) -> pa.Table:
    """Rows of results/interventions for both tasks and three controls, five moves per image."""
    rng = np.random.default_rng(3)
    gains = {"edit": 0.24, "none": 0.0, "random_direction": 0.02, "random_probe": 0.03}
    rows = []
    for task in ("saliency", "depth"):
        for control, gain in gains.items():
            for sample in range(images):
                for trial in range(5):
                    before = float(np.clip(rng.normal(0.46, 0.12), 0, 1))
                    after = float(np.clip(before + rng.normal(gain, 0.1), 0, 1))
                    worse = 0.3
                    if task == "depth":
                        before, after, worse = 1.5 - before, 1.5 - after * 1.1, 1.2
                    rows.append(
                        {
                            "experiment": "interventions", "sample": first + sample,
                            "trial": trial, "task": task, "control": control, "dx": 20, "dy": -20,
                            "sites": "up.3.0", "steps": "1,2", "iterations": 8, "lr": 0.1,
                            "guidance": 2.0, "score_before": before, "score_after": after,
                            "mirror_after": worse, "original_after": 0.5, "constant_after": worse,
                            "area_before": 0.2, "area_target": 0.15, "area_after": 0.17,
                            "readout_before": 0.4, "readout_after": 0.95, "outside_change": 0.05,
                            "seconds": 0.3, "status": "done", "error": None, "attempt": 1,
                            "stage_hash": "e55b7a10",
                        }
                    )  # fmt: skip
    return pa.Table.from_pylist(rows)


MANIFEST = {
    "format_version": 1,
    "model": {"name": "scenes", "revision": "embedded"},
    "stages": {"sample": "5f1c02aa", "label": "9be04c11", "probe": "c7d9e0f2"},
    "versions": {"torch": "2.13.0", "zarr": "3.1.6"},
}
CONFIG: dict[str, Any] = {
    "name": "scenes",
    "model": {"name": "scenes"},
    "sampling": {"samples": 192, "steps": 15, "guidance": 2.0, "shard": 32},
    "probe": {"lr": 0.01, "epochs": 30, "normalise": "rms", "selection": "val"},
    "labels": {"threshold": 127, "depth_mean": 0.0, "depth_deviation": 0.0},
    "tracking": {"mode": "offline", "project": "scenesweep"},
}
