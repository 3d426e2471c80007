"""Carries on from the shipped weights for a number of minutes, and leaves weights and card whatever happens."""

from __future__ import annotations

import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPTextModel

from probing.scenes import dataset, dit, training, vae, weights
from probing.scenes.denoisers import diffusion, transformer
from probing.scenes.denoisers.speed import EAGER, Training
from probing.scenes.limited import trial
from probing.scenes.limited.trial import DIT, Candidate
from probing.scenes.optimise import Loop
from probing.scenes.training import TrainingConfig

Progress = Callable[[str], None]
RENDERING = 0.15
"""share of the time for renders, if the folder has none yet"""
TRIAL_S, TRIAL = 20.0, 0.04
"""seconds of the trial, or this share of the time if that is more"""
RESERVE_S, RESERVE = 40.0, 0.25
"""seconds that are kept for weights and card, but at most this share of the time"""
SLOWER = 1 / 3
"""peak of the learning rate as a share of that of a training from random weights, which would undo what was learnt"""


def run(
    folder: Path,
    target: Path,
    network: str,
    config: TrainingConfig,
    minutes: float,
    progress: Progress,
    started: float | None = None,
) -> bool:
    """Train the shipped denoiser of `network` on, and write weights and card to `target`.

    All of it ends within `minutes`: renders, trial, training, weights and card; they begin at `started`, a time of
    `time.monotonic`, if that was before this call. SIGTERM ends the training at once; what it has learnt is written.
    The same folder resumes. Returns whether the training came to its end.
    """
    started = time.monotonic() if started is None else started
    end = started + 60 * minutes
    reserve = min(RESERVE_S, RESERVE * 60 * minutes)
    with stopping() as stopped:
        made, facts = _begin(folder, network, config, minutes, started, progress)
        loop, first = made.loop, made.loop.step
        left = end - reserve - time.monotonic()
        loop.schedule = replace(loop.schedule, minutes=(loop.seconds + max(left, 1.0)) / 60)
        problem: Exception | None = None
        try:
            loop.run(made.loss, training.named(progress, network), stopped)
        except Exception as error:  # what was learnt so far is written, and then this is raised
            problem = error
        made.network.load_state_dict(loop.averaged)
        saved = save(target, network, made.network.eval())
        facts |= _learnt(loop, facts["batch"])
        write_card(saved, facts, "Not measured: the time was over.")
        progress(f"weights in {saved}, after {loop.step - first} steps and {time.monotonic() - started:.0f} s")
        if problem:
            raise problem
        if stopped():
            return False
        _measure(saved, network, config.device, facts, end - time.monotonic(), progress)
    progress(f"done after {(time.monotonic() - started) / 60:.1f} min")
    return True


def _begin(
    folder: Path, network: str, config: TrainingConfig, minutes: float, started: float, progress: Progress
) -> tuple[Training[Any], dict[str, Any]]:
    """Renders, latents and the trial; returns the training that is ready, and what the card says of them."""
    work = folder / network
    work.mkdir(parents=True, exist_ok=True)
    until = started + RENDERING * 60 * minutes
    renders = dataset.make(
        folder / "renders", "train", config.renders, config.workers,
        lambda done, total: progress(f"renders: part {done} of at most {total}"), until,
    )  # fmt: skip
    config = replace(config, renders=renders)
    latents = _latents(folder, config, progress)
    seconds = max(TRIAL_S, TRIAL * 60 * minutes) if config.device == "cuda" else 0.1 * 60 * minutes
    size = config.transformer_batch if network == DIT else config.batch
    chosen, tried = trial.choose(network, config.device, seconds, Candidate(size, EAGER), progress)
    try:
        made = _prepared(work, network, config, latents, chosen)
    except (RuntimeError, ValueError) as error:  # a way that worked in the trial and does not here
        progress(f"{chosen.way}: {error}; going on without it")
        chosen = replace(chosen, way=EAGER)
        made = _prepared(work, network, config, latents, chosen)
    return made, _facts(network, config, minutes, made, chosen, tried)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Note SIGTERM instead of ending; yields whether it came. Outside the main thread, which alone can, never."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def note(number: int, frame: FrameType | None) -> None:
        came.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _latents(folder: Path, config: TrainingConfig, progress: Progress) -> torch.Tensor:
    """Scaled latents (N, 4, h, w) of the renders by the shipped autoencoder."""
    progress(f"latents: encoding {config.renders} renders")
    # diffusers wraps `to`, which hides its `self`
    autoencoder = _autoencoder().to(config.device)  # type: ignore[arg-type]
    images = dataset.load(folder / "renders", "train", config.renders).images
    return vae.encode(autoencoder, images) * autoencoder.config["scaling_factor"]


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(weights.folder() / "pipeline" / "vae", dtype=torch.float32).eval()


def _prepared(
    work: Path, network: str, config: TrainingConfig, latents: torch.Tensor, chosen: Candidate
) -> Training[Any]:
    """The training from the shipped weights, or from its checkpoint."""
    captions = dataset.load_captions(work.parent / "renders", "train", config.renders)
    options: dict[str, Any] = {"device": config.device, "way": chosen.way}
    pipeline = weights.folder() / "pipeline"
    if network == DIT:
        encoder = CLIPTextModel.from_pretrained(pipeline / "text_encoder", dtype=torch.float32)
        start = training.load_single(weights.folder() / "dit" / "transformer")
        schedule = replace(config.transformer, rate=config.transformer.rate * SLOWER)
        return transformer.prepare(
            latents, captions, encoder, work, schedule, chosen.batch, config.seed + 1, start, **options
        )
    schedule = replace(config.denoiser, rate=config.denoiser.rate * SLOWER)
    start = {
        f"{part}.{name}": tensor
        for part in ("text_encoder", "unet")
        for name, tensor in training.load_single(pipeline / part).items()
    }
    options["attention"] = config.attention
    return diffusion.prepare(latents, captions, work, schedule, chosen.batch, config.seed + 1, start, **options)


def save(target: Path, network: str, trained: Any) -> Path:
    """Write a pipeline's folder, and the labelling network beside that of `scenes`; returns the card's folder."""
    target.mkdir(parents=True, exist_ok=True)
    if network == DIT:
        dit.save_pipeline(target / "dit", trained)
        return target / "dit"
    training.save_pipeline(target / "pipeline", _autoencoder(), trained)
    shutil.copyfile(weights.folder() / "labeller.safetensors", target / "labeller.safetensors")
    return target


def _facts(
    network: str, config: TrainingConfig, minutes: float, made: Training[Any], chosen: Candidate,
    tried: list[Candidate],
) -> dict[str, object]:  # fmt: skip
    """Values of the card's paragraph on how the weights were made, without those of `_learnt`."""
    card = torch.cuda.get_device_name() if config.device == "cuda" else f"CPU ({platform.machine()})"
    return {
        "name": "scenes-dit" if network == DIT else "scenes", "network": network, "limit": minutes,
        "kept": "Autoencoder, text encoder" if network == DIT else "The text encoder was trained with it; autoencoder",
        "renders": config.renders, "batch": chosen.batch, "device": card, "way": chosen.way,
        "rate": made.loop.schedule.rate,
        "attention": training.attention_words(1 if network == DIT else config.attention),
        "trial": "\n".join(f"    {one.line()}" for one in tried) or "    no candidate answered in time",
    }  # fmt: skip


def _learnt(loop: Loop, batch: int) -> dict[str, object]:
    """Values of the same paragraph that are known after the training."""
    loss = loop.history[-1][1] if loop.history else float("nan")
    return {"steps": loop.step, "images": loop.step * batch, "minutes": loop.seconds / 60, "loss": loss}


def write_card(folder: Path, facts: dict[str, object], quality: str) -> None:
    """Write the card: how the weights were made, and how good they are."""
    made = (files("probing.scenes") / "card-continued.md").read_text().format(**facts)
    (folder / "CARD.md").write_text(f"{made}## How good it is\n\n{quality}\n")


class TimeIsOver(BaseException):
    """The alarm rang. It is no Exception, which loaders of models catch and turn into errors of their own."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TimeIsOver in the block after some seconds. Outside the main thread it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeIsOver

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _measure(
    folder: Path, network: str, device: str, facts: dict[str, object], seconds: float, progress: Progress
) -> None:
    """Measure the weights as they ship and replace the card, if the time is enough."""
    from probing.diffusion import model
    from probing.diffusion.config import ModelConfig
    from probing.diffusion.schedules import LMS, OWN
    from probing.scenes import evaluate

    guidance = dit.GUIDANCE if network == DIT else training.GUIDANCE
    try:
        with alarm(seconds):
            path = folder if network == DIT else folder / "pipeline"
            sampler = OWN if network == DIT else LMS
            pipeline = model.load(ModelConfig(name=str(path), device=device), sampler=sampler)
            labeller, _ = weights.load_labeller()
            measured, images = evaluate.measure_denoiser(pipeline, labeller, guidance)
            found = evaluate.values(measured)
            evaluate.contact_sheet(images).save(folder / "contact.jpg", quality=85)
    except TimeIsOver:
        progress("card: the time is over before the weights were measured")
        return
    right, entropy = found["captions_right"], found["entropy"]
    write_card(folder, facts, (
        f"Of 100 fixed prompts, guidance {guidance:g}, {right} images have the colours and number of objects that "
        "their caption names. "
        f"Entropy of self-attention at the last step, 1 is uniform: least, median, most of all sites: {entropy}. "
        "`contact.jpg` shows the images of the 100 prompts, in order."
    ))  # fmt: skip
    progress(f"card: {right} of 100 captions right")
