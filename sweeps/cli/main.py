"""The command line: verbs, help with examples, exit codes 0 done, 1 something failed, 2 wrong input."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sweeps.cli import commands, jobs

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""errors that are no fault of ours: full, read-only or broken; the same command carries on when it is mended"""
Action = Callable[[argparse.Namespace], int]


@dataclass(frozen=True)
class Verb:
    """One verb of the command line."""

    name: str
    help: str
    example: str
    action: Action
    kind: str = "run"
    """`run`: takes a preset and key=value pairs; `output`: an output; `own`: sets its own"""


VERBS = (
    Verb("run", "do everything that is not done yet", "scenesweep run scenes", commands.run),
    Verb("plan", "print and price the plan, write nothing", "scenesweep plan paper", commands.plan),
    Verb("sample", "sample images and record activations", "scenesweep sample scenes", commands.sample),
    Verb("label", "label the sampled images", "scenesweep label scenes", commands.label),
    Verb("curate", "choose samples and split them, by rules and by hand",
         "scenesweep curate scenes --decisions decisions.csv", commands.curate),
    Verb("probe", "fit the probe grid", "scenesweep probe scenes probe.lr=0.003", commands.probe),
    Verb("experiments", "emergence, transfer, references", "scenesweep experiments scenes", commands.experiments),
    Verb("intervene", "edit activations and score the images; with --prompt one edit for play",
         "scenesweep intervene scenes --prompt 'a large red sphere on a green floor under a sky' --move -24 0",
         commands.intervene),
    Verb("report", "build the report again from the tables", "scenesweep report runs/scenes", commands.report,
         "output"),
    Verb("dashboards", "make the W&B workspace", "scenesweep dashboards runs/scenes", commands.dashboards, "output"),
    Verb("status", "what is done, failed and left", "scenesweep status runs/scenes", commands.status, "output"),
    Verb("verify", "reread and check every byte", "scenesweep verify runs/scenes --repair", commands.verify, "output"),
    Verb("clean", "drop the activations, keep the results", "scenesweep clean runs/scenes", commands.clean, "output"),
    Verb("compare", "two runs side by side", "scenesweep compare runs/scenes runs/guided", commands.compare, "output"),
    Verb("submit", "run on a Ray cluster, from outside",
         "scenesweep submit --address http://HEAD:8265 paper output=s3://bucket/run", jobs.submit),
    Verb("logs", "what a job has written", "scenesweep logs --address http://HEAD:8265 s3://bucket/run",
         jobs.logs, "output"),
    Verb("stop", "end a job, keep what is finished", "scenesweep stop --address http://HEAD:8265 s3://bucket/run",
         jobs.stop, "output"),
    Verb("resume", "submit the run of an ended job again",
         "scenesweep resume --address http://HEAD:8265 s3://bucket/run", jobs.resume, "output"),
    Verb("sites", "list the sites of a model", "scenesweep sites scenes", commands.sites, "own"),
    Verb("bench", "measure speed against a baseline", "scenesweep bench probes --json", commands.bench, "own"),
    Verb("train-scenes", "train the embedded model from nothing",
         "scenesweep train-scenes work/ out/", commands.train_scenes, "own"),
)  # fmt: skip

DEFAULT = "scenes"
"""preset of a command that names none"""

JOB_VERBS = ("submit", "status", "logs", "stop", "resume")
"""verbs that speak to a cluster from outside"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scenesweep",
        description="Finds out what scene geometry a latent diffusion model represents, where and when.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    choices = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb in VERBS:
        own = choices.add_parser(verb.name, help=verb.help, description=verb.help, epilog=f"example: {verb.example}")
        own.set_defaults(action=verb.action)
        _arguments(own, verb)
    return parser


def _arguments(parser: argparse.ArgumentParser, verb: Verb) -> None:
    if verb.kind == "run":
        parser.add_argument("preset", nargs="?", default=DEFAULT, help=f"preset or YAML file (default: {DEFAULT})")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the preset")
    elif verb.kind == "output":
        job = ", or a job's id" if verb.name in JOB_VERBS else ""
        parser.add_argument("output", help=f"output folder or URL of a run{job}")
    if verb.name == "run":
        parser.add_argument("--all", action="store_true", help="every experiment at full size: the preset NAME-full")
    if verb.name == "curate":
        parser.add_argument("--decisions", default="", metavar="CSV", help="decisions by hand, saved from the page")
    if verb.name == "compare":
        parser.add_argument("other", help="output of the second run")
    if verb.name in JOB_VERBS:
        own = verb.name == "status"
        dashboard = "the cluster's dashboard, http://HEAD:8265" + ("; the output may be a job's id" if own else "")
        parser.add_argument("--address", required=not own, default="", help=dashboard)
    if verb.name in ("submit", "logs", "resume"):
        parser.add_argument("--follow", action="store_true", help="show the job's log until it ends")
    if verb.name == "intervene":
        _play_arguments(parser)
    if verb.name == "logs":
        parser.add_argument("--json", action="store_true", help="the structured records alone")
    if verb.name == "verify":
        parser.add_argument("--recompute", type=int, default=1, metavar="N",
                            help="shards at random that the model samples again (default 1, 0: none)")  # fmt: skip
        parser.add_argument("--repair", action="store_true", help="mark bad shards, so that `run` redoes them")
    if verb.name == "plan":
        parser.add_argument("--rate", type=float, default=0.0, help="measured samples per second and worker")
        parser.add_argument("--gpus", type=int, default=0, help="hours and price on 1, 8 and so many GPUs, simulated")
        rates = "further measured rates: labelling, probing, editing, storage, start, price"
        parser.add_argument("--rates", nargs="+", default=[], metavar="NAME=NUMBER", help=rates)
    if verb.name == "sites":
        parser.add_argument("model", nargs="?", default="scenes", help="scenes, a pipeline's directory or a hub id")
        parser.add_argument("--revision", default="", help="commit of a hub id")
        parser.add_argument("--family", choices=("attention", "conv", "vae"), default="attention")
    if verb.name == "bench":
        parser.add_argument("bench", choices=commands.BENCHES, help="what to measure")
        parser.add_argument("--json", action="store_true", help="print one JSON object")
    if verb.name == "train-scenes":
        parser.add_argument("work", help="folder for renders and checkpoints; the same folder resumes")
        parser.add_argument("target", help="folder that the weights are written to")
        parser.add_argument("--steps", type=int, default=0, help="steps of the denoiser (default: as shipped)")
        parser.add_argument(
            "--device",
            default="cpu",
            choices=("cpu", "cuda"),
            help="where to train; cuda trains longer, in larger batches (default: cpu)",
        )
        parser.add_argument("--start", default="", help="folder of finished weights to carry on from")
        parser.add_argument(
            "--focus", action="store_true", help="with --start: begin with new queries and keys in self-attention"
        )


def _play_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("one edit for play, with the probes of a finished run (key=value come first)")
    add = group.add_argument
    add("--prompt", help="what to draw")
    add("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    add("--task", help="what the probes read: saliency or depth (default: saliency; depth with --second)")
    add("--move", nargs=2, type=int, action="append", default=[], metavar=("DX", "DY"), help="pixels right and down")
    add(
        "--second",
        nargs=4,
        type=float,
        action="append",
        default=[],
        metavar=("DX", "DY", "SCALE", "BACK"),
        help="a copy of the object beside it, SCALE times its size and BACK standardised depths farther",
    )
    add("--label", action="append", default=[], metavar="FILE", help="your own mask or depth: a picture or .npy")
    add("--animate", type=int, default=0, metavar="FRAMES", help="the object on its way across the image, as a GIF")
    add("--way", default="edit", help="edit (the inner optimisation), rank_one or natural")
    add("--recipe", default="", metavar="FILE", help="make the pictures of a recipe.yaml again")
    add("--to", default="play", metavar="FOLDER", help="folder that the pictures go to (default: play)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A pair right after the verb means the default preset: `scenesweep run key=value`.
    if len(words) > 1 and "=" in words[1] and not words[1].startswith("-"):
        words.insert(1, DEFAULT)
    parsed = parse(words)
    if parsed.version:
        print(commands.version())
        return 0
    if parsed.verb is None:
        _parser().print_help()
        return 0
    _quiet_environment()
    started = time.monotonic()
    try:
        code = parsed.action(parsed)
    except ValueError as error:
        line = " ".join(str(error).split())
        print(f"scenesweep {parsed.verb}: {line}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        print(f"scenesweep {parsed.verb}: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        again = " ".join(["scenesweep", *map(shlex.quote, words)])
        print(f"\nstopped; `{again}` carries on", file=sys.stderr)
        return 1
    if code == 1 and parsed.verb == "status":
        print("the command that made the run resumes it", file=sys.stderr)
    elif code == 1:
        again = " ".join(["scenesweep", *map(shlex.quote, words)])
        print(f"resume with: {again}", file=sys.stderr)
    elif parsed.verb == "run":
        print(f"done in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return code


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The parsed command line; preset and pairs may also stand behind options, where argparse takes no more of them."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(words)
    if rest and hasattr(parsed, "overrides"):
        if "=" not in rest[0] and not rest[0].startswith("-") and parsed.preset == DEFAULT:
            parsed.preset = rest.pop(0)
        while rest and "=" in rest[0] and not rest[0].startswith("-"):
            parsed.overrides = [*parsed.overrides, rest.pop(0)]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed


def _quiet_environment() -> None:
    """Keeps notices of libraries off the terminal; the user's own settings win."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_SILENT": "true",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)
