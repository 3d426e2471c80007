"""Sampling and recording on a card: against diffusers, against sampling alone, and where the limit lies."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.diffusion import sampling as denoising
from probing.diffusion.capture import capture
from probing.diffusion.offload import Offload
from probing.diffusion.sampling import sample
from probing.planted import unweighted
from storage import Store
from sweeps.bench.gpu.bench import Bench, layout, mean_difference
from sweeps.bench.gpu.scale import GUIDANCE

THREADS = 2
"""that write, as many as a sampling worker has"""
TOLERANCE = 0.02
"""of a variant's output against the plain one, as a share of its root mean square: a few float16 roundings"""


def against_diffusers(bench: Bench) -> None:
    """Sampling without recording, beside diffusers' own pipeline around the same networks."""
    model, (prompts, seeds) = bench.model, bench.batch()
    pipeline, images = unweighted.diffusers_pipeline(model), {}

    def ours() -> None:
        images["ours"] = sample(model, prompts, seeds, **bench.sampling).images

    def theirs() -> None:
        images["theirs"] = unweighted.sample_with_diffusers(pipeline, model, prompts, seeds, **bench.sampling)

    seconds, _ = bench.compare("sampling_over_diffusers", "scenesweep", "diffusers' pipeline", ours, theirs)
    bench.number("sampling", len(seeds) / seconds, "samples/s")
    bench.number("difference", mean_difference(images["ours"].numpy(), images["theirs"].numpy()), "levels of 255")
    latents = torch.zeros(len(seeds), *model.latent_shape, device=bench.device)
    bench.per_second("decoding", len(seeds), lambda: model.decode(latents), "images/s")


def recording(bench: Bench) -> None:
    """Sampling with all sites recorded into a store on the disk, beside sampling alone, and what either waits for."""
    model, (prompts, seeds), count = bench.model, bench.batch(), bench.scale.batch
    shape = layout(model, count, count, bench.scale.steps)
    sizes = [count * site.tokens * site.channels * 2 for site in shape.sites]
    written = sum(sizes) * bench.scale.steps
    bench.number("recorded", written / count, "bytes per sample")

    def plain() -> None:
        sample(model, prompts, seeds, **bench.sampling)

    def record_into(store: Store | None) -> None:
        def write(site: str, step: int, values: NDArray) -> None:
            if store:
                store.write_activation("trained", site, step, 0, values)

        latents = partial(store.write_latents, "trained", 0) if store else None
        found = capture(model, prompts, seeds, model.sites(), write, latents, **bench.sampling)
        if store:
            store.write_images("trained", 0, found.images.numpy())
            store.complete("sample", "trained", 0, stage_hash="bench")

    on_disk = bench.store(shape, bench.disk)
    seconds, _ = bench.compare(
        "capture_over_sampling", "recording to the disk", "sampling", lambda: record_into(on_disk), plain
    )
    bench.number("capture", count / seconds, "samples/s")
    bench.number("written", written / seconds / 1e9, "GB/s while recording")
    copied, alone = bench.compare(
        "copies_over_sampling", "recording, nothing written", "sampling", lambda: record_into(None), plain, pairs=3
    )
    bench.number("recording", count / copied, "samples/s")
    limits = {"sampling": alone}
    limits["copies"] = written / 1e9 / bench.per_second("copies", written / 1e9, partial(copy_all, bench), "GB/s")
    limits["disk"] = written / 1e9 / bench.per_second("disk", written / 1e9, partial(write_all, on_disk), "GB/s")
    bench.number("limit", max(limits, key=lambda name: limits[name]), "slowest of sampling, copies and disk alone")
    bench.drop(on_disk)
    if bench.memory and bench.room(2 * written) == bench.memory:
        in_memory = bench.store(shape, bench.memory)
        bench.compare(
            "capture_in_memory_over_sampling", "recording to memory", "sampling", lambda: record_into(in_memory), plain,
            pairs=3,
        )  # fmt: skip
        bench.drop(in_memory)


def copy_all(bench: Bench) -> None:
    """Copy what a shard's recording copies to the host, alone."""
    offload = Offload(bench.device)
    outputs = [
        torch.zeros(bench.scale.batch, site.tokens, site.channels, dtype=torch.float16, device=bench.device)
        for site in bench.model.sites()
    ]
    for _ in range(bench.scale.steps):
        arrivals = [offload.start(output) for output in outputs]
        for arrival in arrivals:
            with arrival:
                pass


def write_all(store: Store) -> None:
    """Write what a shard's recording writes, alone, and wait until the disk has it."""
    shape, noise = store.layout, np.random.default_rng(0)
    largest = max(shape.shard * site.tokens * site.channels for site in shape.sites)
    values = noise.integers(0, 0x7BFF, largest, dtype=np.uint16).view(np.float16)

    def write(site: Any, step: int) -> None:
        chunk = values[: shape.shard * site.tokens * site.channels].reshape(shape.shard, site.tokens, site.channels)
        store.write_activation("trained", site.name, step, 0, chunk)

    with ThreadPoolExecutor(THREADS) as pool:
        steps = range(1, shape.steps + 1)
        list(pool.map(lambda place: write(*place), [(site, step) for step in steps for site in shape.sites]))
    store.complete("sample", "trained", 0, stage_hash="bench")


def variants(bench: Bench) -> None:
    """Other ways to run the same network calls, each with how far its output is from the plain one's."""
    model, count = bench.model, bench.scale.batch
    conditions = model.conditions(*bench.batch()[:1], GUIDANCE)
    latents = torch.randn(2 * count, *model.latent_shape, device=bench.device)
    time = torch.tensor(500.0, device=bench.device)

    def call(network: Any) -> Tensor:
        with torch.inference_mode(), denoising.autocast(model):
            return network(latents, time, **conditions).sample

    def calls(network: Any) -> None:
        for _ in range(bench.scale.calls):
            call(network)

    plain = call(model.network).float()

    def compare(name: str, network: Any) -> None:
        output = call(network).float()
        off = float((output - plain).square().mean().sqrt() / plain.square().mean().sqrt())
        bench.compare(
            f"{name}_over_plain", name, "channels_last, fused attention, autocast", partial(calls, network),
            partial(calls, model.network), pairs=3, difference=off, within=off <= TOLERANCE,
        )  # fmt: skip

    with unweighted.plain_attention(model.network):
        unfused = call(model.network).float()
        off = float((unfused - plain).square().mean().sqrt() / plain.square().mean().sqrt())
        slow = bench.per_second("attention_without_sdpa", bench.scale.calls, partial(calls, model.network), "calls/s")
    fast = bench.per_second("plain", bench.scale.calls, partial(calls, model.network), "calls/s")
    bench.number("sdpa_gain", fast / slow, f"times faster; difference {off:.2g}")
    for name, variant in (("contiguous", contiguous), ("half_weights", half_weights), ("compiled", compiled)):
        try:
            with variant(bench) as network:
                compare(name, network)
        except Exception as error:  # one way that does not work here must not end the others
            bench.number(f"{name}_error", f"{type(error).__name__}: {str(error)[:200]}", "error")
        bench.free()


@contextmanager
def contiguous(bench: Bench) -> Iterator[Any]:
    """A copy of the network whose weights are not channels_last."""
    yield copy.deepcopy(bench.model.network).to(memory_format=torch.contiguous_format)


@contextmanager
def half_weights(bench: Bench) -> Iterator[Any]:
    """A copy of the network with the float16 weights that autocast makes in every call; a CPU has no autocast here."""
    yield copy.deepcopy(bench.model.network).to(bench.model.autocast or torch.float32)


@contextmanager
def compiled(bench: Bench) -> Iterator[Any]:
    """The network fused by torch's compiler, which takes a minute or two; hooks that record sites are not in it.

    A rehearsal on a CPU leaves it as it is: tracing alone would take longer than everything else.
    """
    network = bench.model.network
    yield torch.compile(network) if bench.device.type == "cuda" else network
    torch._dynamo.reset()
