"""What each verb of the command line does; each returns its exit code."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import storage

BENCHES = ("capture", "store", "codecs", "probes", "tune", "interventions", "cluster")


def version() -> str:
    """The installed version."""
    return importlib.metadata.version("scenesweep")


def _preset(parsed: argparse.Namespace) -> str:
    """The preset; with --all its full-size form. ValueError where it has none."""
    from sweeps.config.load import presets

    if not getattr(parsed, "all", False):
        return parsed.preset
    full = f"{parsed.preset}-full"
    if full not in presets():
        raise ValueError(f"--all: there is no preset {full!r}; leave --all out and set experiments.* instead")
    return full


def _stages(parsed: argparse.Namespace, stages: Sequence[str]) -> int:
    from sweeps import pipeline
    from sweeps.config.load import load

    result = pipeline.execute(load(_preset(parsed), parsed.overrides), stages)
    for line in result.lines:
        print(line)
    if not result.lines and not result.failed:
        print("nothing to do: everything is complete")
    return _failures(result.failed)


def _failures(failed: dict[str, str]) -> int:
    """Prints a table of what failed and why; 1 if anything did."""
    if not failed:
        return 0
    width = max(len(key) for key in failed)
    print(f"{'what failed':{width}}  why", file=sys.stderr)
    for key, reason in sorted(failed.items()):
        print(f"{key:{width}}  {reason}", file=sys.stderr)
    return 1


def run(parsed: argparse.Namespace) -> int:
    """Everything, resuming."""
    from sweeps import pipeline

    return _stages(parsed, pipeline.VERBS)


def sample(parsed: argparse.Namespace) -> int:
    """The sampling stage alone."""
    return _stages(parsed, ("sample",))


def label(parsed: argparse.Namespace) -> int:
    """The labelling stage alone."""
    return _stages(parsed, ("label",))


def curate(parsed: argparse.Namespace) -> int:
    """The curation stage alone, decisions by hand, and the page for making them."""
    from sweeps.config.load import load
    from sweeps.curation import decisions

    result = decisions.execute(load(parsed.preset, parsed.overrides), parsed.decisions)
    for line in result.lines:
        print(line)
    return _failures(result.failed)


def probe(parsed: argparse.Namespace) -> int:
    """The probe stage alone."""
    return _stages(parsed, ("probe",))


def experiments(parsed: argparse.Namespace) -> int:
    """The experiments beside the grid that are no probes of their own."""
    return _stages(parsed, ("experiments",))


def intervene(parsed: argparse.Namespace) -> int:
    """The intervention stage alone; or, given a prompt or a recipe, one edit for play."""
    if parsed.prompt is not None or parsed.recipe:
        return _play(parsed)
    return _stages(parsed, ("intervene",))


def _play(parsed: argparse.Namespace) -> int:
    from sweeps.cli import play
    from sweeps.config.load import load

    made = load(parsed.preset, parsed.overrides)
    wanted: play.Request | Path = Path(parsed.recipe)
    if not parsed.recipe:
        goals = play.goals_from(parsed.move, parsed.second, parsed.label)
        task = parsed.task or ("depth" if parsed.second else "saliency")
        wanted = play.Request(parsed.prompt, parsed.seed, task, goals, parsed.animate, parsed.way)
    for line in play.play(made, wanted, Path(parsed.to)):
        print(line)
    return 0


def plan(parsed: argparse.Namespace) -> int:
    """Prints the price of a run; refuses what does not fit."""
    from sweeps.config.load import load
    from sweeps.planning import table
    from sweeps.planning.cluster_costs import Rates

    made = load(parsed.preset, parsed.overrides)
    if parsed.gpus:
        given = dict(pair.partition("=")[::2] for pair in parsed.rates)
        print(table.on_gpus(made, parsed.gpus, Rates.read({"sampling": parsed.rate, **given})))
    else:
        print(table.describe(made, parsed.rate))
    return 0


def report(parsed: argparse.Namespace) -> int:
    """Builds the report again."""
    from sweeps import pipeline
    from sweeps.runtime.run import stored_config

    result = pipeline.execute(stored_config(parsed.output), ("report",))
    for line in result.lines:
        print(line)
    return 0


def dashboards(parsed: argparse.Namespace) -> int:
    """Makes the W&B workspace of a sweep whose runs were sent."""
    import storage
    from sweeps.analysis import tables
    from sweeps.config.load import to_dict
    from sweeps.runtime.run import stored_config
    from sweeps.tracking import workspace

    store = storage.open(parsed.output)
    figures = {Path(path).stem for path in store.list("report/figures/")}
    print(workspace.save(tables.load(store, to_dict(stored_config(parsed.output))), sorted(figures)))
    return 0


def status(parsed: argparse.Namespace) -> int:
    """Prints what is done, failed and left; 1 where something failed. Of a cluster's job with --address."""
    if parsed.address:
        from sweeps.cli import jobs

        return jobs.status(parsed)
    from sweeps.cli import status as status_view

    text, failed = status_view.describe(parsed.output)
    print(text)
    return _failures(status_view.grouped(failed))


def verify(parsed: argparse.Namespace) -> int:
    """Rereads every byte and computes random shards again; 1 where something disagrees."""
    from sweeps.cli import recompute
    from sweeps.config.schema import PREVIEW
    from sweeps.runtime import side_store
    from sweeps.stages import decode, replay

    store = storage.open(parsed.output)
    found = storage.audit.verify(store, deep=True)
    if parsed.recompute:
        found += recompute.live(parsed.output, parsed.recompute, print)
    total = _told(store, found, parsed.repair)
    if store.list(f"{PREVIEW}/{storage.keys.LAYOUT}"):
        preview = storage.open(f"{parsed.output}/{PREVIEW}")
        total += _told(preview, storage.audit.verify(preview, deep=True), parsed.repair)
    for further in filter(None, (side_store.open_if_present(stage.url(parsed.output)) for stage in (replay, decode))):
        total += _told(further, storage.audit.verify(further, deep=True), parsed.repair)
    print(f"{total} disagreements")
    return 1 if total else 0


def _told(store: storage.Store, found: list[storage.audit.Disagreement], repair: bool) -> int:
    """Prints what disagrees and marks it where asked; how many disagreements there are."""
    for item in found:
        print(f"{item.kind}: {item.path}: {item.detail}")
    if repair and found:
        marked = storage.audit.repair(store, found)
        print(f"{len(marked)} bad shards are marked; `scenesweep run` redoes them")
    return len(found)


def clean(parsed: argparse.Namespace) -> int:
    """Drops the activations."""
    from sweeps.runtime import side_store
    from sweeps.stages import decode, replay

    store = storage.open(parsed.output)
    with store.lease("scenesweep clean"):
        freed = store.drop_activations()
        freed += sum(side_store.drop_activations(stage.url(parsed.output)) for stage in (replay, decode))
    print(f"{freed / 1e9:.2f} GB freed; results, images and labels are kept")
    return 0


def compare(parsed: argparse.Namespace) -> int:
    """Prints the headline numbers of two runs."""
    from sweeps.cli import compare as compare_view
    from sweeps.runtime.run import stored_config

    print(compare_view.describe(stored_config(parsed.output), stored_config(parsed.other)))
    return 0


def sites(parsed: argparse.Namespace) -> int:
    """Lists the sites of a model from its configuration, without weights."""
    from probing.diffusion.model import ModelConfig
    from sweeps.config.schema import Config
    from sweeps.planning import table
    from sweeps.runtime.run import model_info

    model = ModelConfig(name=parsed.model, revision=parsed.revision)
    print(table.site_table(model_info(Config(model=model)), parsed.family))
    return 0


def bench(parsed: argparse.Namespace) -> int:
    """Measures one thing against its baseline in the same run."""
    from sweeps.bench import suite

    found = suite.report(parsed.bench)
    if parsed.json:
        print(json.dumps(found))
    else:
        for row in found["rows"]:
            print(suite.line(row))
    return 0


def train_scenes(parsed: argparse.Namespace) -> int:
    """Trains the embedded model; the same folder resumes."""
    from dataclasses import replace

    from probing.scenes import training

    schema = training.on_gpu() if parsed.device == "cuda" else training.TrainingConfig()
    if parsed.steps:
        schema = replace(schema, denoiser=replace(schema.denoiser, steps=parsed.steps))
    if parsed.start:
        training.start_from(Path(parsed.work), Path(parsed.start), parsed.focus)
    training.run(Path(parsed.work), Path(parsed.target), schema, lambda line: print(line, flush=True))
    return 0
