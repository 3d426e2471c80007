"""One probe of a finished store, fitted from a notebook as the probe stage fits it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probing.probes.config import ProbeConfig
from probing.probes.controls import CONTROLS, SURFACE_CONTROLS

if TYPE_CHECKING:
    from probing.probes.results import ProbeResult
    from storage import Store

SCORE = {"saliency": ("dice", "Dice", "higher"), "depth": ("rmse", "RMSE", "lower")}
"""task -> column of its main score, how it is called, and which is better"""
SHOWN = 3
"""test images in the display of a notebook"""


@dataclass(frozen=True, eq=False, repr=False)
class FittedProbe:
    """A probe, its scores on the test images, and the store that it reads."""

    store: Store
    variant: str
    site: str
    grid: tuple[int, int]
    """rows and columns of the site's patches"""
    result: ProbeResult
    test: NDArray[np.int64]
    """numbers of the test samples"""
    depth_scale: tuple[float, float]
    """mean and standard deviation in which depth is predicted"""

    @property
    def scores(self) -> dict[str, float]:
        """Mean scores over the test images and losses; `storage.SCORES` explains the names."""
        return {name: value for name, value in self.result.row.items() if isinstance(value, float)}

    def predict(self, samples: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Predictions (n, rows, columns) for samples of the store: foreground probability, or standardised depth."""
        from probing.probes.batched import predict

        spec, chosen = self.result.spec, np.asarray(samples)
        acts = self.store.read_activations(self.variant, self.site, spec.step, chosen)
        assert self.result.weights is not None
        out = predict(self.result.weights, acts, self.result.hidden)
        values = out.softmax(-1)[..., 1] if spec.task == "saliency" else out[..., 0]
        return values.numpy().reshape(len(chosen), *self.grid)

    def labels(self, samples: Sequence[int] | NDArray[np.int64]) -> NDArray:
        """Label maps (n, H, W) in the same terms: 0 to 255, or standardised depth."""
        from probing.scoring.targets import standardised

        labels = self.store.read_labels(self.result.spec.task, samples)
        return labels if self.result.spec.task == "saliency" else standardised(labels, *self.depth_scale)

    def __repr__(self) -> str:
        spec, (column, name, _) = self.result.spec, SCORE[self.result.spec.task]
        return f"FittedProbe({spec.task} at {self.site}, step {spec.step}: test {name} {self.result.row[column]:.3f})"

    def _repr_html_(self) -> str:
        spec, row = self.result.spec, self.result.row
        column, name, better = SCORE[spec.task]
        numbers = {
            f"test {name} ({better} is better)": row[column],
            "best of any map on these patches": row[f"oracle_{column}"],
            "without activations": row[f"floor_{column}"],
        }
        cells = "".join(f"<tr><td>{escape(key)}</td><td>{value:.3f}</td></tr>" for key, value in numbers.items())
        shown = self.test[:SHOWN]
        columns = (shown, self.store.read_images(self.variant, shown), self.labels(shown), self.predict(shown))
        pictures = "".join(
            f'<img alt="{what} of sample {sample}" title="{what} of sample {sample}" width="96" height="96" '
            f'style="image-rendering:pixelated;margin:1px" src="{_png(values)}">'
            for sample, *three in zip(*columns, strict=True)
            for what, values in zip(("image", "label", "prediction"), three, strict=True)
        )
        return (
            f"<b>{escape(spec.task)} probe at {escape(self.site)}, step {spec.step}</b> ({escape(self.variant)} "
            f"network, control {escape(spec.control)}, {row['n_train']} training and {row['n_test']} test images)"
            f"<table>{cells}</table><div>{pictures}</div>"
        )


def _png(values: NDArray) -> str:
    """A picture as a data URL; one channel is scaled to its own range."""
    from PIL import Image

    if values.ndim == 2:
        low, high = float(values.min()), float(values.max())
        values = np.round(255 * (values - low) / max(high - low, 1e-9)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def fit(
    store: Store,
    site: str,
    step: int,
    task: str,
    *,
    variant: str = "trained",
    control: str = "none",
    seed: int = 0,
    config: ProbeConfig | None = None,
) -> FittedProbe:
    """Fit one probe on a store whose samples are labelled and curated, as the probe stage does; writes nothing.

    task: `saliency` or `depth`. control: one that reads the activations, or `position`. config: how to train; by
    default, like the threshold of masks and the scale of depth, as in the store's `config.yaml`.
    Returns the probe with the scores that the stage would store for it. Raises ValueError if an input is missing or
    unknown, or the fit fails.
    """
    from probing.dataset.split import curated
    from probing.probes.fit import fit_site
    from probing.probes.results import FitSpec
    from probing.scoring.targets import pixel_ranks, pool, standardisation, standardised

    if control not in CONTROLS or control in SURFACE_CONTROLS:
        known = ", ".join(name for name in CONTROLS if name not in SURFACE_CONTROLS)
        raise ValueError(f"control={control!r}: choose from {known}")
    if task not in SCORE:
        raise ValueError(f"task={task!r}: choose from {', '.join(SCORE)}")
    shapes = {shape.name: shape for shape in store.layout.sites}
    if site not in shapes:
        raise ValueError(f"site={site!r}: this store has {', '.join(shapes)}")
    settings = _settings(store)
    labels = settings.get("labels", {})
    try:
        samples, split = curated(store.curation().to_pydict())
    except FileNotFoundError:
        raise ValueError(f"{store.url}: the samples are not curated yet, so there is no split") from None
    depth = store.read_labels("depth", samples)
    scale = (labels.get("depth_mean", 0.0), labels.get("depth_deviation", 0.0))
    if not scale[1] > 0:
        scale = standardisation(depth[split.train])
    depth = standardised(depth, *scale)
    grid = shapes[site].grid(store.layout.image)
    targets = pool(
        store.read_labels("saliency", samples), depth, pixel_ranks(depth), grid, labels.get("threshold", 127)
    )
    config = config or ProbeConfig(**_fields(settings.get("probe", {})))
    (result,) = fit_site(
        store.read_activations(variant, site, step, samples)[None],
        [step],
        grid,
        targets,
        split,
        [FitSpec(step, task, control, seed)],
        config,
        images=store.read_images("trained", samples) if config.smoothness else None,
    )
    if not result.ok:
        raise ValueError(f"{site}, step {step}: {result.row['error']}")
    return FittedProbe(store, variant, site, grid, result, samples[split.test], scale)


def _settings(store: Store) -> Mapping[str, Any]:
    """The settings that a run was made with; none for a store that no run wrote."""
    import yaml

    from storage.keys import CONFIG, MANIFEST

    try:
        return yaml.safe_load(store.get(CONFIG, MANIFEST))
    except FileNotFoundError:
        return {}


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that still exist."""
    return {field.name: values[field.name] for field in fields(ProbeConfig) if field.name in values}
