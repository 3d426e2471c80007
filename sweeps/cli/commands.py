"""The verbs that work on this machine. Each imports what it needs, so that `--help` and light verbs start fast."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.cli.verbs import Verb, argument, as_json, dry_run, is_pair, job, output, settings, single_edit, url, verb

if TYPE_CHECKING:
    from sweeps.config.schema import Config
    from sweeps.pipeline import Result
    from sweeps.runtime.progress import Display

BENCHES = ("capture", "store", "codecs", "probes", "tune", "interventions", "cluster", "causal", "scale")
GPU = "gpu"
"""the bench of a card, which has a time limit and writes a file"""


def version() -> str:
    """The installed version."""
    import importlib.metadata

    return importlib.metadata.version("scenesweep")


def display(parsed: argparse.Namespace) -> Display:
    """What shows the progress, as loud as is wanted."""
    from sweeps.runtime.progress import Display

    return Display(quiet=parsed.quiet, verbose=parsed.verbose)


def _run_stages(parsed: argparse.Namespace, preset: str, stages: Sequence[str] = ()) -> int:
    """Runs the given stages, all if there are none."""
    from sweeps.config.load import load

    config = load(preset, parsed.overrides)
    if parsed.dry_run:
        return _show_plan(config, stages)
    from sweeps import pipeline

    result = pipeline.execute(config, stages or pipeline.VERBS, display(parsed))
    if not (result.lines or result.counts or result.failed):
        print("nothing to do: everything is complete")
    lines = [*(result.counts if parsed.verb != "run" else ()), *result.lines]
    return _finish([*lines, *_ending(result, config.output)], result.failed)


def _ending(result: Result, output: str) -> list[str]:
    """What a run that has a report ends with."""
    if result.ending is None:
        return []
    from sweeps.cli import ending

    return ending.lines(result.ending, output)


def _show_plan(config: Config, stages: Sequence[str] = ()) -> int:
    from sweeps.planning import table

    print(table.describe(config, verbs=stages or table.VERBS))
    return 0


def _run_stage(parsed: argparse.Namespace) -> int:
    """Runs the stage that the verb is named after."""
    return _run_stages(parsed, parsed.preset, (parsed.verb,))


def _finish(lines: Iterable[str], failed: dict[str, str]) -> int:
    """Prints the lines and a table of what failed and why; returns 1 if anything failed."""
    for line in lines:
        print(line)
    if not failed:
        return 0
    width = max(len(key) for key in failed)
    print(f"{'what failed':{width}}  why", file=sys.stderr)
    for key, reason in sorted(failed.items()):
        print(f"{key:{width}}  {reason}", file=sys.stderr)
    return 1


@verb(
    "run",
    "scenesweep run scenes",
    settings,
    argument("--all", action="store_true", help="every experiment at full size: the preset NAME-full"),
    dry_run,
)
def run(parsed: argparse.Namespace) -> int:
    """Do everything that is not done yet. The same command resumes a run that was stopped."""
    from sweeps.config.load import presets

    preset = f"{parsed.preset}-full" if parsed.all else parsed.preset
    if parsed.all and preset not in presets():
        raise ValueError(f"--all: there is no preset {preset!r}; leave --all out and set experiments.* instead")
    return _run_stages(parsed, preset)


@verb(
    "run",
    "scenesweep plan paper",
    settings,
    argument("--rate", type=float, default=0.0, help="measured samples per second and worker"),
    argument("--gpus", type=int, default=0, help="simulated hours and price on 1, 8 and this many GPUs"),
    argument(
        "--rates",
        nargs="+",
        default=[],
        metavar="FILE or NAME=NUMBER",
        help="measured rates: a file of `bench gpu`, or labelling, probing, overhead, editing, storage, start, price",
    ),
    as_json,
)
def plan(parsed: argparse.Namespace) -> int:
    """Show time, disk and work of a run, and write nothing."""
    from sweeps.config.load import load
    from sweeps.planning import measured, table
    from sweeps.planning.rates import Rates

    config = load(parsed.preset, parsed.overrides)
    pairs = dict(pair.partition("=")[::2] for pair in parsed.rates if is_pair(pair))
    files = [word for word in parsed.rates if not is_pair(word)]
    if len(files) > 1:
        raise ValueError(f"--rates {' '.join(files)}: give one file")
    given, card = Rates.read({"sampling": parsed.rate, **pairs}), measured.find(files[0]) if files else None
    if min(given.values.values()) < 0:
        raise ValueError("--rate, --rates: give numbers above 0")
    if parsed.gpus:
        print(table.on_gpus(config, parsed.gpus, given, card))
    elif parsed.json:
        print(json.dumps(table.as_json(config, given, card)))
    else:
        print(table.describe(config, given, card))
    return 0


_STAGE = (settings, dry_run)
sample = Verb("sample", "run", "Sample images and record activations", "scenesweep sample scenes", _run_stage, _STAGE)
label = Verb("label", "run", "Label the sampled images", "scenesweep label scenes", _run_stage, _STAGE)


@verb(
    "run",
    "scenesweep curate scenes --decisions decisions.csv",
    settings,
    argument("--decisions", default="", metavar="CSV", help="manual decisions, saved from the curation page"),
    dry_run,
)
def curate(parsed: argparse.Namespace) -> int:
    """Choose samples by rules and manual decisions, and split them."""
    from sweeps.config.load import load
    from sweeps.curation import decisions

    config = load(parsed.preset, parsed.overrides)
    if parsed.dry_run:
        return _show_plan(config, (parsed.verb,))
    result = decisions.execute(config, parsed.decisions, display(parsed))
    return _finish(result.lines, result.failed)


probe = Verb("probe", "run", "Fit the probe grid", "scenesweep probe scenes probe.lr=0.003", _run_stage, _STAGE)
experiments = Verb(
    "experiments",
    "run",
    "Run the experiments after the grid. These are emergence, transfer between steps and converged references.",
    "scenesweep experiments scenes",
    _run_stage,
    _STAGE,
)


@verb(
    "run",
    "scenesweep intervene scenes --prompt 'a large red sphere on a green floor under a sky' --move -24 0",
    settings,
    dry_run,
    single_edit,
)
def intervene(parsed: argparse.Namespace) -> int:
    """Edit activations and score the images. With --prompt or --recipe, make a single edit."""
    if parsed.prompt is None and not parsed.recipe:
        return _run_stage(parsed)

    from storage.backends import local_path
    from sweeps.cli import play
    from sweeps.config.load import load

    config = load(parsed.preset, parsed.overrides)
    request: play.Request | Path
    if parsed.recipe:
        request = local_path(parsed.recipe, "--recipe")
    else:
        goals = play.goals_from(parsed.move, parsed.second, parsed.label)
        task = parsed.task or ("depth" if parsed.second else "saliency")
        request = play.Request(parsed.prompt, parsed.seed, task, goals, parsed.animate, parsed.way)
    return _finish(play.play(config, request, local_path(parsed.to, "--to")), {})


@verb("results", "scenesweep report runs/scenes", output)
def report(parsed: argparse.Namespace) -> int:
    """Build the report again from the tables."""
    from sweeps import pipeline
    from sweeps.runtime.run import stored_config

    result = pipeline.rebuild_report(stored_config(parsed.output), display(parsed))
    return _finish([*result.lines, *_ending(result, parsed.output)], {})


@verb("results", "scenesweep dashboards runs/scenes", output)
def dashboards(parsed: argparse.Namespace) -> int:
    """Make a W&B workspace for a sweep whose runs were sent."""
    import storage
    from sweeps.analysis import tables
    from sweeps.config.load import to_dict
    from sweeps.runtime.run import stored_config
    from sweeps.tracking import workspace

    store = storage.open(parsed.output)
    figures = {Path(path).stem for path in store.list("report/figures/")}
    print(workspace.save(tables.load(store, to_dict(stored_config(parsed.output))), sorted(figures)))
    return 0


@verb(
    "inspect",
    "scenesweep status runs/scenes",
    job,
    argument("--address", default="", help="the cluster's dashboard, http://HEAD:8265; shows the job of the output"),
    as_json,
)
def status(parsed: argparse.Namespace) -> int:
    """Show what is done, what failed and what is left."""
    if parsed.address:
        from sweeps.cli import jobs

        return jobs.show_status(parsed.address, parsed.output)
    from sweeps.cli import status as view

    found = view.read(parsed.output)
    if parsed.json:
        print(json.dumps(view.as_json(found)))
        return 1 if found.failed else 0
    code = _finish(view.lines(found), view.grouped(found.failed))
    if code:
        print("the command that made the run resumes it", file=sys.stderr)
    return code


@verb(
    "inspect",
    "scenesweep verify runs/scenes --repair",
    output,
    argument(
        "--recompute",
        type=int,
        default=1,
        metavar="N",
        help="random shards that are sampled again with the model (default 1, 0: none)",
    ),
    argument("--repair", action="store_true", help="clear away what is damaged, so that `run` redoes it"),
)
def verify(parsed: argparse.Namespace) -> int:
    """Reread and check every byte, and sample a random shard again."""
    from sweeps.cli.verify import execute

    return 1 if execute(parsed.output, parsed.recompute, parsed.repair, print) else 0


@verb("results", "scenesweep clean runs/scenes", output)
def clean(parsed: argparse.Namespace) -> int:
    """Delete the activations and keep the results."""
    import storage
    from sweeps.runtime import side_store
    from sweeps.stages import decode, replay

    store = storage.open(parsed.output)
    with store.lease("scenesweep clean"):
        freed = store.drop_activations()
        freed += sum(side_store.drop_activations(stage.url(parsed.output)) for stage in (replay, decode))
    print(f"{freed / 1e9:.2f} GB freed; results, images and labels are kept")
    return 0


@verb(
    "results",
    "scenesweep compare runs/scenes runs/guided",
    output,
    argument("other", type=url, help="output folder or URL of the second run"),
    as_json,
)
def compare(parsed: argparse.Namespace) -> int:
    """Show the main results of two runs side by side."""
    from sweeps.cli import compare as view
    from sweeps.runtime.run import stored_config

    found = view.compare(stored_config(parsed.output), stored_config(parsed.other))
    print(json.dumps(view.as_json(found)) if parsed.json else "\n".join(view.lines(found)))
    return 0


@verb(
    "inspect",
    "scenesweep sites scenes",
    argument("model", nargs="?", default="scenes", help="scenes, a pipeline's directory or a hub id"),
    argument("--revision", default="", help="commit of a hub id"),
    argument(
        "--family",
        choices=("attention", "cross", "mlp", "residual", "all", "conv", "vae"),
        default="attention",
        help="kind of sites; all: every kind that sampling.sites takes",
    ),
    argument("--size", type=int, default=0, help="side of the images in pixels (default: the model's own)"),
)
def sites(parsed: argparse.Namespace) -> int:
    """List the sites of a model. Its configuration is enough, without weights."""
    from probing.diffusion.config import ModelConfig
    from sweeps.config.schema import Config
    from sweeps.planning import table
    from sweeps.runtime.run import model_info

    model = ModelConfig(name=parsed.model, revision=parsed.revision, size=parsed.size)
    print(table.site_table(model_info(Config(model=model)), parsed.family))
    return 0


@verb(
    "develop",
    "scenesweep bench gpu --minutes 9 --out gpu.json",
    argument("bench", choices=(*BENCHES, GPU), help="what to measure"),
    as_json,
    argument("--out", default="gpu.json", metavar="FILE", help="gpu: file of the numbers (default: gpu.json)"),
    argument("--minutes", type=float, default=9.0, help="gpu: time limit; the most important comes first (default: 9)"),
    argument("--device", default="cuda", choices=("cuda", "cpu"), help="gpu: where to measure (default: cuda)"),
    argument("--narrow", action="store_true", help="gpu: narrow networks and few steps, a rehearsal on a CPU"),
)
def bench(parsed: argparse.Namespace) -> int:
    """Measure speed against a baseline. `causal` gives verdicts on models of which the truth is known; `scale` shows
    how the driver's time and memory grow with a run, in hours; `gpu` measures everything that a card does, with
    random weights, and writes a file that `plan --rates` reads.
    """
    if parsed.bench == GPU:
        from storage.backends import local_path
        from sweeps.bench.gpu import driver

        def say(line: str) -> None:
            if not parsed.quiet:
                print(line, file=sys.stderr, flush=True)

        record = driver.run(local_path(parsed.out, "--out"), parsed.device, parsed.minutes, parsed.narrow, say)
        print(json.dumps(record.document) if parsed.json else "\n".join(driver.lines(record)))
        return 0 if driver.complete(record) else 1

    from sweeps.bench import suite

    result = suite.report(parsed.bench)
    print(json.dumps(result) if parsed.json else "\n".join(suite.line(row) for row in result["rows"]))
    return 1 if suite.failed(result["rows"]) else 0


@verb(
    "develop",
    "scenesweep train-scenes work/ out/",
    argument("work", help="folder for renders and checkpoints; the same folder resumes"),
    argument("target", help="folder that the weights are written to"),
    argument(
        "--network",
        default="unet",
        choices=("unet", "dit"),
        help="unet: every network of `scenes`; dit: the transformer of `scenes-dit`, with the shipped autoencoder",
    ),
    argument("--steps", type=int, default=0, help="training steps of the denoiser (default: as shipped)"),
    argument(
        "--minutes",
        type=float,
        default=0,
        help="train the denoiser for this long, instead of a number of steps; with --start shipped, limit of it all",
    ),
    argument(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="where to train; cuda trains longer, in larger batches (default: cpu)",
    ),
    argument("--compile", action="store_true", help="with --network dit: faster steps; needs a C++ compiler"),
    argument("--start", default="", help="folder of finished weights to continue from, or: shipped"),
    argument("--focus", action="store_true", help="with --start: replace queries and keys of self-attention first"),
    argument(
        "--attention",
        type=float,
        default=None,
        help="with --network unet: share of the learning rate for queries and keys of self-attention (default: 1 with "
        "--start shipped, otherwise 0: they stay as they start)",
    ),
)
def train_scenes(parsed: argparse.Namespace) -> int:
    """Train an embedded model from scratch; the same folder resumes. With --start shipped and --minutes, train the
    denoiser of the weights that ship on: renders, a trial of batches, training, weights and card end within this time.
    """
    import time
    from dataclasses import replace

    started = time.monotonic()  # importing the libraries counts as well
    from probing.scenes import dit, training
    from storage.backends import local_path

    work, target = local_path(parsed.work, "work"), local_path(parsed.target, "target")

    def log(line: str) -> None:
        print(line, flush=True)

    config = training.on_gpu() if parsed.device == "cuda" else training.TrainingConfig()
    for name, value in (("steps", parsed.steps), ("minutes", parsed.minutes)):
        if value < 0 or not math.isfinite(value):
            raise ValueError(f"--{name} {value}: must be more than 0")
        if value:
            config = replace(
                config,
                denoiser=replace(config.denoiser, **{name: value}),
                transformer=replace(config.transformer, **{name: value}),
            )
    if parsed.network == "dit" and (parsed.focus or parsed.attention is not None):
        raise ValueError("--focus, --attention: only with --network unet")
    share = float(parsed.start == "shipped") if parsed.attention is None else parsed.attention
    if not 0 <= share <= 1:
        raise ValueError(f"--attention {share}: must be from 0 to 1")
    config = replace(config, attention=share)
    if parsed.start == "shipped":
        from probing.scenes.limited import run as limited

        if not parsed.minutes or parsed.steps or parsed.focus or parsed.compile:
            raise ValueError("--start shipped: give --minutes, and none of --steps, --focus and --compile")
        return 0 if limited.run(work, target, parsed.network, config, parsed.minutes, log, started) else 1
    if parsed.network == "dit":
        if parsed.start:
            raise ValueError(f"--start {parsed.start}: with --network dit, only shipped")
        dit.run(work, target, replace(config, compiled=parsed.compile), log)
        return 0
    if parsed.compile:
        raise ValueError("--compile: only with --network dit")
    if parsed.start:
        training.start_from(work, local_path(parsed.start, "--start"), parsed.focus)
    training.run(work, target, config, log)
    return 0
