"""Samples one shard and writes every site's activations while the next step is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from probing.diffusion.config import PAPER_STEPS
from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.hooks import record
from probing.diffusion.offload import Arrival, Offload
from probing.diffusion.sampling import Samples, StepEvent, sample
from probing.diffusion.sites import SiteSpec

WriteActivation = Callable[[str, int, np.ndarray], None]
"""(site, step 1.., float16 (n, tokens, channels)) -> None; called from writer threads"""
WriteLatents = Callable[[int, np.ndarray, np.ndarray], None]
"""(step, latents after the step, clean estimate), each float32 (n, C, h, w)"""
STEPS_IN_FLIGHT = 2
"""maximal number of steps that wait to be written, which bounds memory"""


class NonFiniteActivation(ValueError):
    """An activation contains NaN or infinity. Values are never clipped."""


class Writers:
    """Runs writes on threads, for a bounded number of steps at once, and raises what a write raised."""

    def __init__(self, threads: int = 2) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="writer")
        self.steps: list[list[Future[None]]] = []

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            self._wait(0)

    def begin_step(self) -> None:
        """Wait until fewer than the allowed number of steps are still being written."""
        self._wait(STEPS_IN_FLIGHT - 1)
        self.steps.append([])

    def submit(self, write: Callable[..., None], *arguments: object) -> None:
        """Run one write of the current step on a thread."""
        self.steps[-1].append(self.pool.submit(write, *arguments))

    def _wait(self, allowed: int) -> None:
        while len(self.steps) > allowed:
            for future in self.steps.pop(0):
                future.result()


def checked(site: str, step: int, values: np.ndarray) -> np.ndarray:
    """The values unchanged. Raises NonFiniteActivation naming site and step if one is NaN or infinite."""
    if not np.isfinite(values).all():
        raise NonFiniteActivation(f"site {site} step {step}: activation is not finite in float16")
    return values


def capture(
    model: LatentDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sites: Sequence[SiteSpec],
    write_activation: WriteActivation,
    write_latents: WriteLatents | None = None,
    *,
    steps: int = PAPER_STEPS,
    recorded_steps: Sequence[int] = (),
    guidance: float = 7.5,
    forced: Sequence[Tensor] | None = None,
) -> Samples:
    """Record all sites in one sampling pass (section 3.2); other arguments as in `sampling.sample`.

    recorded_steps: those whose activations are recorded; empty: all. Latents are written at every step. Only the
    conditional half is recorded. Every write is done on return. Raises NonFiniteActivation, and whatever a write
    raises.
    """
    offload, doubled = Offload(model.device), model.doubles(guidance)

    def write(site: str, step: int, arrival: Arrival) -> None:
        with arrival as values:
            write_activation(site, step, checked(site, step, values))

    with Writers() as writers:

        @contextmanager
        def around(step: int) -> Iterator[None]:
            def sink(site: SiteSpec, output: Tensor) -> None:
                conditional = output[len(output) // 2 :] if doubled else output
                arrival = offload.start(conditional.to(torch.float16, copy=True))
                writers.submit(write, site.name, step, arrival)

            writers.begin_step()
            recorded = sites if not recorded_steps or step in recorded_steps else ()
            with record(model.network, recorded, sink):
                yield

        def on_step(event: StepEvent) -> None:
            if write_latents:
                after, clean = (x.float().cpu().numpy() for x in (event.latents, event.clean))
                writers.submit(write_latents, event.step, after, clean)

        return sample(
            model, prompts, seeds, steps=steps, guidance=guidance, on_step=on_step, around=around, forced=forced
        )
