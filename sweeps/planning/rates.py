"""What one worker on a GPU does in a second: rates that were given, measured on a card, or assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any


@dataclass(frozen=True)
class Rates:
    """What one worker does, and what the shared storage transfers; 0 stands for the assumption."""

    sampling: float = 0.0
    """samples per second of a sampling worker, without what the storage takes"""
    labelling: float = 0.0
    """samples per second of a labelling worker"""
    probing: float = 0.0
    """probes per second of a probe trial's worker, without reading"""
    overhead: float = 0.0
    """duration of edits with their labels and scores, as a multiple of plain sampling of as many images"""
    editing: float = 0.0
    """edits of an image, with their controls, per hour of an intervention worker; without it they are priced by their
    network calls"""
    storage: float = 0.0
    """GB per second that the storage reads or writes in total"""
    start: float = 0.0
    """seconds until a worker has loaded its model"""
    price: float = 0.0
    """price of a GPU hour"""
    measured: tuple[str, ...] = ()
    """names of the rates that were measured on a card"""
    assumed: tuple[str, ...] = ()
    """names of the rates that are assumptions; all others were given"""

    @classmethod
    def read(cls, given: Mapping[str, str | float]) -> Rates:
        """Return rates from names and numbers. Raises ValueError for an unknown name or something not a number."""
        for name, value in given.items():
            if name not in UNITS:
                raise ValueError(f"--rates {name}: unknown; known are {', '.join(UNITS)}, or a file of `bench gpu`")
            try:
                float(value)
            except ValueError:
                raise ValueError(f"--rates {name}={value}: needs a number, in {UNITS[name]}") from None
        numbers: dict[str, Any] = {name: float(value) for name, value in given.items()}
        return cls(**numbers)

    @property
    def values(self) -> dict[str, float]:
        """The numbers by name."""
        return {name: getattr(self, name) for name in UNITS}

    def over(self, other: Rates, origin: str) -> Rates:
        """Return these rates, and where there are none those of `other`; `origin`: measured or assumed."""
        taken: dict[str, Any] = {n: value for n, value in other.values.items() if value and not getattr(self, n)}
        taken[origin] = (*getattr(self, origin), *taken)
        return replace(self, **taken)

    def describe(self) -> str:
        """Return each rate and whether it was given, measured or assumed; and how edits are priced."""
        words = []
        for name, value in self.values.items():
            if name in ("overhead", "editing") and (name == "editing") != bool(self.editing):
                continue  # an edit has one of the two prices
            origin = next((o for o in ("measured", "assumed") if name in getattr(self, o)), "given")
            words.append(f"{name} {value:.3g} {UNITS[name]} ({origin})")
        return "; ".join(words if self.editing else [*words, EDITS])


SUSTAINED = 100.0
"""TFLOP/s that a large GPU is assumed to sustain in half precision: a tenth of an H100's peak"""
STABLE_DIFFUSION = "CompVis/stable-diffusion-v1-4"
CALL_TFLOP = {
    STABLE_DIFFUSION: 1.606,
    "stabilityai/stable-diffusion-xl-base-1.0": 12.0,
    "stabilityai/stable-diffusion-3.5-large": 43.0,
    "black-forest-labs/FLUX.1-dev": 36.0,
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": 10.0,
}
"""operations of a network call, both halves of guidance, counted in the architectures; other models are priced as
Stable Diffusion v1.4"""
DECODE_TFLOP = 2.51 / 512**2
"""of a pixel that is decoded"""
ASSUMPTIONS = Rates(labelling=2, probing=0.5, overhead=2, storage=2, start=60, price=3)
"""on one large GPU, beside that of sampling, which follows from SUSTAINED; none of them was measured"""
UNITS = {
    "sampling": "samples/s",
    "labelling": "samples/s",
    "probing": "probes/s",
    "overhead": "x sampling",
    "editing": "edits/h",
    "storage": "GB/s in all",
    "start": "s",
    "price": "per GPU hour",
}
EDITS = "an edit costs the network calls of its images at the rate of sampling, times the overhead"


def hub_id(model: str) -> str:
    """The hub id of a model that is planned with its published configuration; other names stay."""
    name = PurePath(model).name.replace("--", "/")
    return name if name in CALL_TFLOP else model


def sample_tflop(model: str, calls: int, pixels: int) -> float:
    """Operations of one sample of a model: its network calls and the decoded image."""
    return calls * CALL_TFLOP.get(hub_id(model), CALL_TFLOP[STABLE_DIFFUSION]) + pixels * DECODE_TFLOP
