"""Samples one shard and streams every site's activations out while the next step computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from probing.diffusion.hooks import record
from probing.diffusion.model import LatentDiffusion
from probing.diffusion.offload import Arrival, Offload
from probing.diffusion.sampling import Samples, StepEvent, sample
from probing.diffusion.sites import SiteSpec

WriteActivation = Callable[[str, int, np.ndarray], None]
"""(site, step 1.., float16 (n, tokens, channels)) -> None; called from writer threads"""
WriteLatents = Callable[[int, np.ndarray, np.ndarray], None]
"""(step, latents after the step, clean estimate), each float32 (n, C, h, w)"""
STEPS_IN_FLIGHT = 2
"""at most this many steps of a shard wait to be written, which bounds memory"""


class NonFiniteActivation(ValueError):
    """An activation holds NaN or infinity; never clipped."""


class Writers:
    """Runs writes on threads; keeps at most two steps in flight; raises what a write raised."""

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
        """Waits until fewer than the allowed number of steps are still being written."""
        self._wait(STEPS_IN_FLIGHT - 1)
        self.steps.append([])

    def submit(self, write: Callable[..., None], *arguments: object) -> None:
        """Hands one write of the current step to a thread."""
        self.steps[-1].append(self.pool.submit(write, *arguments))

    def _wait(self, allowed: int) -> None:
        while len(self.steps) > allowed:
            for future in self.steps.pop(0):
                future.result()


def _halved(values: Tensor, guided: bool) -> Tensor:
    """The conditional half of a [unconditional, conditional] batch."""
    return values[len(values) // 2 :] if guided else values


def checked(site: str, step: int, values: np.ndarray) -> np.ndarray:
    """The values. Raises NonFiniteActivation naming site and step where one is NaN or infinite."""
    if not np.isfinite(values).all():
        raise NonFiniteActivation(f"site {site} step {step}: activation is not finite in float16")
    return values


class _Recorder:
    """Turns what the hooks see into float16 and hands it to writer threads, which wait for its arrival."""

    def __init__(self, writers: Writers, offload: Offload, write: WriteActivation, guided: bool) -> None:
        self.writers, self.offload, self.write, self.guided = writers, offload, write, guided
        self.step = 0

    def __call__(self, site: SiteSpec, output: Tensor) -> None:
        arrival = self.offload.start(_halved(output, self.guided).to(torch.float16, copy=True))
        self.writers.submit(self._write, site.name, self.step, arrival)

    def _write(self, site: str, step: int, arrival: Arrival) -> None:
        with arrival as values:
            self.write(site, step, checked(site, step, values))


def capture(
    model: LatentDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sites: Sequence[SiteSpec],
    write_activation: WriteActivation,
    write_latents: WriteLatents | None = None,
    *,
    steps: int = 15,
    guidance: float = 7.5,
    forced: Sequence[Tensor] | None = None,
) -> Samples:
    """One pass that records all sites at all steps (section 3.2); returns the finished samples.

    Every write is done when this returns. Raises NonFiniteActivation, and what a write raises.
    """
    with Writers() as writers:
        recorder = _Recorder(writers, Offload(model.device), write_activation, guidance > 1)

        @contextmanager
        def around(step: int):
            recorder.step = step
            writers.begin_step()
            with record(model.unet, sites, recorder):
                yield

        def on_step(event: StepEvent) -> None:
            if write_latents:
                after, clean = (x.float().cpu().numpy() for x in (event.latents, event.clean))
                writers.submit(write_latents, event.step, after, clean)

        enter: Callable[[int], AbstractContextManager[None]] = around
        return sample(
            model, prompts, seeds, steps=steps, guidance=guidance,
            on_step=on_step, around=enter, forced=forced,
        )  # fmt: skip
