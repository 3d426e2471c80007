"""How a verb of the command line is declared, and the arguments that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from sweeps.cli import completion

Action = Callable[[argparse.Namespace], int]
Arguments = Callable[[argparse.ArgumentParser], object]

DEFAULT = "scenes"
"""preset of a command that names none"""
GROUPS = ("run", "inspect", "results", "cluster", "develop")
"""groups of verbs, in the order of `--help`"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with code 2 and one line."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


@dataclass(frozen=True)
class Verb:
    """One verb of the command line: its action returns the exit code."""

    name: str
    group: str
    help: str
    """what it does: a first sentence that fits a line of `--help`, perhaps more of them"""
    example: str
    action: Action
    arguments: tuple[Arguments, ...]

    @property
    def title(self) -> str:
        """The first sentence of the help."""
        return self.help.partition(". ")[0].rstrip(".")

    def add_to(self, verbs: argparse._SubParsersAction[Parser]) -> None:
        """Adds the verb's own parser."""
        text = f"example: {self.example}"
        parser = verbs.add_parser(self.name, help=self.title, description=self.help, epilog=text)
        parser.set_defaults(action=self.action)
        for add in self.arguments:
            add(parser)
        loudness(parser)


def verb(group: str, example: str, *arguments: Arguments) -> Callable[[Action], Verb]:
    """Decorator that makes a function a verb: its name is the verb's, its docstring the help text."""

    def declare(action: Action) -> Verb:
        help_text = " ".join((action.__doc__ or "").split())
        return Verb(action.__name__.strip("_").replace("_", "-"), group, help_text, example, action, arguments)

    return declare


def loudness(parser: argparse.ArgumentParser) -> None:
    """How much is printed while a verb works; accepted before and after the verb."""
    add = partial(parser.add_argument, action="store_true", default=argparse.SUPPRESS)
    add("-q", "--quiet", help="no progress, only the end and what failed")
    add("-v", "--verbose", help="one line for each finished piece, and the trace of an error")


def argument(*names: str, **options: Any) -> Arguments:
    """One argument, as `add_argument` takes it."""
    return lambda parser: parser.add_argument(*names, **options)


def settings(parser: argparse.ArgumentParser) -> None:
    """A preset and key=value pairs."""
    preset: Any = parser.add_argument(
        "preset", nargs="?", default=DEFAULT, help=f"preset or YAML file (default: {DEFAULT})"
    )
    pairs: Any = parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that override the preset's"
    )
    preset.completer, pairs.completer = completion.preset, completion.pair


def is_pair(word: str) -> bool:
    """Whether a word is a key=value pair; a path such as runs/guidance=3 or ./a=b.yaml is none."""
    key, equals, _ = word.partition("=")
    return bool(equals) and "/" not in key and not word.startswith("-")


def url(text: str) -> str:
    """The output as a run names it: OUT/ is OUT."""
    from storage.backends import without_slash

    return without_slash(text)


dry_run = argument("--dry-run", action="store_true", help="print the plan and write nothing, as `plan` does")
as_json = argument("--json", action="store_true", help="print one JSON object")
output = argument("output", type=url, help="output folder or URL of a run")
job = argument("output", type=url, help="output folder or URL of a run, or a job's id")
address = argument("--address", required=True, help="the cluster's dashboard, http://HEAD:8265")
follow = argument("--follow", action="store_true", help="show the job's log until it ends")


def single_edit(parser: argparse.ArgumentParser) -> None:
    """Arguments of one edit outside the measurement."""
    group = parser.add_argument_group("one edit, with the probes of a finished run (key=value come first)")
    add = group.add_argument
    add("--prompt", help="what to draw")
    add("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    add("--task", help="what the probes predict: saliency or depth (default: saliency; depth with --second)")
    add("--move", nargs=2, type=int, action="append", default=[], metavar=("DX", "DY"), help="pixels right and down")
    add(
        "--second",
        nargs=4,
        type=float,
        action="append",
        default=[],
        metavar=("DX", "DY", "SCALE", "BACK"),
        help="a copy of the object beside it, SCALE times its size and BACK standardised depths farther away",
    )
    add("--label", action="append", default=[], metavar="FILE", help="your own mask or depth: a picture or .npy")
    add("--animate", type=int, default=0, metavar="FRAMES", help="move the object across the image, as a GIF")
    add("--way", default="edit", help="edit (along the last of interventions.directions), rank_one or natural")
    add("--recipe", default="", metavar="FILE", help="make the pictures of a recipe.yaml again")
    add("--to", default="play", metavar="FOLDER", help="folder that the pictures are written to (default: play)")
