"""The science of reading: what probes find in a diffusion model's activations.

`dataset` chooses prompts and samples, `diffusion` samples and records, `labelling` makes the targets, `probes` fits
and `scoring` scores; `scenes` is the embedded model and its world, `planted` has models of which it is known what they
use. Imports `storage` alone of the other packages.

    probe = probing.fit(storage.open("OUT"), "up.2.1", step=5, task="depth")  # the same probe that a run fits
"""

from typing import Any

__all__ = ["fit"]


def __getattr__(name: str) -> Any:
    """Imports `fit`, and with it torch, only if it is used."""
    if name == "fit":
        from probing.probes.single import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
