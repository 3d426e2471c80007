"""A finished store in a notebook: activations for xarray, scores as a frame, examples for a training loop."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.backends.files import Files, LocalFiles
from storage.format import ArraySpec, Layout

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import xarray

SCORES = {
    "experiment": "`grid` for the main probes, else the experiment that the probe belongs to",
    "variant": "network: `trained`, or one with weights `random` (permuted) or `reinit` (freshly initialised)",
    "site": "recorded place in the network, in order of execution",
    "block": "block of the network that the site is in",
    "step": "denoising step, counted from 1",
    "task": "what the probe predicts: `saliency` (foreground) or `depth`",
    "control": "`none`, or what the probe was fitted on or to instead of the real thing",
    "seed": "seed of the start, of the order of samples and of a control's permutation",
    "tokens": "patches of the site's grid",
    "channels": "values per patch that the probe reads",
    "n_train": "images that the probe was fitted on",
    "n_val": "images for selection",
    "n_test": "images that the scores below are means over",
    "train_loss": "loss over the training images at the epoch that was kept",
    "val_loss": "the same over the validation images",
    "test_loss": "the same over the test images",
    "dice": "overlap of predicted and labelled foreground at probability 1/2, 0 to 1; saliency",
    "dice_background": "the same of the background",
    "dice_threshold": "Dice at the threshold that is best on the training images",
    "ap": "average precision of the foreground probability over pixels, 0 to 1",
    "val_dice": "Dice over the validation images",
    "ap_val": "average precision over the validation images",
    "oracle_dice": "best Dice that a mask of whole patches can have",
    "floor_dice": "Dice of the best answer without activations",
    "crossentropy": "cross-entropy per pixel, in nats",
    "rmse": "root mean square error in standard deviations of the training depths; depth",
    "rmse_aligned": "the same after the best shift and scale of each image",
    "val_rmse": "RMSE over the validation images",
    "oracle_rmse": "lowest RMSE that any map constant on the site's patches can have",
    "floor_rmse": "RMSE of the training images' mean depth map",
    "rmse_object": "RMSE over the pixels of the object",
    "rmse_background": "RMSE over the other pixels",
    "skill": "share of the floor's squared error that the probe removes",
    "spearman": "rank correlation of predicted and labelled depth over the pixels of an image",
    "spearman_residual": "the same of what remains after the training images' mean depth map",
    "pearson": "correlation of predicted and labelled depth over the pixels of an image",
}
"""Columns of `Store.scores` and their meaning. A score that the task does not have is missing (NaN)."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Activations of one site and step with label maps: a dataset for `torch.utils.data.DataLoader`.

    Indexing gives (activations float32 (T, C), label map (H, W) of the label's type). Everything is in memory.
    """

    samples: np.ndarray
    """(n,) sample numbers"""
    activations: np.ndarray
    """float16 (n, T, C), as stored"""
    labels: np.ndarray
    """(n, H, W)"""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.activations[index].astype(np.float32), self.labels[index]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self[index] for index in range(len(self)))


def as_xarray(files: Files, layout: Layout, spec: ArraySpec, name: str) -> "xarray.DataArray":
    """One array with its coordinates, read from the store when values are needed. Raises ValueError without xarray."""
    try:
        import xarray
    except ImportError:
        raise ValueError("to_xarray needs a package that is not installed: pip install 'scenesweep[xarray]'") from None
    import zarr.storage

    folder, _, own = spec.path.rpartition("/")
    opened: Any
    if isinstance(files, LocalFiles):
        opened = zarr.storage.LocalStore(files.root, read_only=True)
    else:
        opened = zarr.storage.ObjectStore(files.store, read_only=True)  # type: ignore[attr-defined]
    # A group of format 1 holds other sites too, whose axes of the same names have other lengths.
    others = [path.rpartition("/")[2] for path in layout.arrays if path.startswith(f"{folder}/") and path != spec.path]
    group = zarr.open_group(opened, path=folder, mode="r")
    array = xarray.open_dataset(xarray.backends.ZarrStore(group), drop_variables=others)[own].rename(name)
    if layout.format == 1:
        array = array.assign_coords(sample=np.arange(layout.samples), step=list(spec.steps))
    elif spec.steps and layout.sigmas and not layout.alphas:  # on disk, sigma stands alone where it tells everything
        array = array.assign_coords(log_snr=("step", [layout.log_snrs[step - 1] for step in spec.steps]))
    return array


def scores(table: "pa.Table", hashes: Collection[str], sites: Collection[str]) -> "pd.DataFrame":
    """The finished probes among the rows of results/probes, with the columns of SCORES.

    hashes: stage hashes of the run's present settings; empty for all rows. sites: names in order of execution.
    """
    import pandas as pd

    rows = table.to_pandas()
    rows = rows[rows["status"] == "done"]
    if hashes:
        rows = rows[rows["stage_hash"].isin(hashes)]
    frame = rows[list(SCORES)].copy()
    order = [*sites, *sorted(set(frame["site"]) - set(sites))]
    frame["site"] = pd.Categorical(frame["site"], order, ordered=True)
    keys = ["experiment", "variant", "task", "control", "site", "step", "seed"]
    return frame.sort_values(keys, ignore_index=True)
