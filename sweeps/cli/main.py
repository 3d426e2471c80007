"""The command line: parses the arguments, runs the verb, returns 0 (done), 1 (something failed) or 2 (wrong input)."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Sequence

from sweeps.cli import commands, jobs, settings
from sweeps.cli.style import paint
from sweeps.cli.verbs import DEFAULT, GROUPS, Parser, Verb, is_pair, loudness

ABOUT = "Finds out what scene geometry a latent diffusion model represents, where,\nwhen, and whether it uses it."
VERBS = [value for module in (commands, settings, jobs) for value in vars(module).values() if isinstance(value, Verb)]
RESUMABLE = ("run", "sample", "label", "curate", "probe", "experiments", "intervene", "train-scenes")
"""verbs that finish what they began when they are called again; the others say themselves what comes next"""

FIXES = {
    errno.EACCES: "use a path of your own, or ask its owner for access",
    errno.EPERM: "use a path of your own, or ask its owner for access",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOTDIR: "a part of the path is a file; give another path",
}
LONGEST_WORD = 200
"""characters of a word in an error message; longer ones are cut"""


class MainParser(Parser):
    """The parser of the whole command line, whose help lists the verbs in groups."""

    def format_help(self) -> str:
        """Usage, the verbs by group, options and how to go on, at most 80 columns wide."""
        width = max(len(verb.name) for verb in VERBS) + 2
        lines = [f"usage: {self.prog} VERB [PRESET, FILE or OUTPUT] [key=value ...]", "", f"{self.description}"]
        for group in GROUPS:
            verbs = [f"  {verb.name:{width}}{verb.title}" for verb in VERBS if verb.group == group]
            lines += ["", paint(group, "bold"), *verbs]
        options = {
            "-h, --help": "show this help; after a verb, that of the verb",
            "--version": "print the version",
            "-q, --quiet": "no progress, only the end and what failed",
            "-v, --verbose": "one line for each finished piece, and the trace of an error",
        }
        lines += ["", paint("options", "bold"), *(f"  {name:{width}}{text}" for name, text in options.items())]
        return "\n".join([*lines, "", "first steps: scenesweep plan, scenesweep run, scenesweep open runs/scenes", ""])


def parser() -> MainParser:
    """The parser of the whole command line, one subparser per verb."""
    result = MainParser(prog="scenesweep", description=ABOUT)
    result.add_argument("--version", action="store_true")
    loudness(result)
    choices = result.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for verb in VERBS:
        verb.add_to(choices)
    return result


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The parsed command line. Preset and pairs may also follow options, where argparse accepts no more of them."""
    whole = parser()
    _refuse_unknown_verb(whole, words)
    parsed, rest = whole.parse_known_args(words, argparse.Namespace(quiet=False, verbose=False))
    if hasattr(parsed, "overrides"):
        if is_pair(parsed.preset):  # a pair right after the verb means the default preset
            parsed.preset, parsed.overrides = DEFAULT, [parsed.preset, *parsed.overrides]
        if rest and parsed.preset == DEFAULT and not (is_pair(rest[0]) or rest[0].startswith("-")):
            parsed.preset = rest.pop(0)
        while rest and is_pair(rest[0]):
            parsed.overrides = [*parsed.overrides, rest.pop(0)]
    if rest:
        whole.prog = f"{whole.prog} {parsed.verb or ''}".rstrip()
        whole.error(f"not understood: {' '.join(rest)}")
    return parsed


def _refuse_unknown_verb(whole: Parser, words: Sequence[str]) -> None:
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None or name in (names := [verb.name for verb in VERBS]):
        return
    from sweeps.config.schema import hint  # imports numpy, which `--help` does without

    near = hint(name, names)
    whole.error(f"{name}: no such verb; {near}" if near.startswith("did") else f"{name}: no such verb")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may follow
        import argcomplete

        argcomplete.autocomplete(parser())
    parsed = parse(words)
    if parsed.version:
        print(commands.version())
        return 0
    if parsed.verb is None:
        parser().print_help()
        return 0
    quiet_environment()
    resume = f"resume with: {shlex.join(['scenesweep', *words])}"
    started = time.monotonic()
    try:
        code = parsed.action(parsed)
        sys.stdout.flush()
    except ValueError as error:
        _tell(parsed, one_line(error))
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        fix = f"; {FIXES[error.errno]}" if error.errno in FIXES else ""
        _tell(parsed, f"{one_line(error)}{fix}")
        code = 1
    except KeyboardInterrupt:
        print(f"\nstopped; {resume}" if parsed.verb in RESUMABLE else "\nstopped", file=sys.stderr)
        return 1
    if code == 1 and parsed.verb in RESUMABLE:
        print(resume, file=sys.stderr)
    elif parsed.verb == "run":
        print(f"done in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return code


def _tell(parsed: argparse.Namespace, line: str) -> None:
    """Prints the line of the error that is being handled, after its trace if that is wanted."""
    if parsed.verbose:
        traceback.print_exc()
    print(f"{paint(f'scenesweep {parsed.verb}:', 'red', sys.stderr)} {line}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """The message of an error on one line of plain text, whatever names and values it quotes."""
    from storage.backends.paths import CONTROL  # imports numpy, which `--help` does without

    text = " ".join(str(error).split()) or type(error).__name__
    text = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return re.sub(rf"\S{{{LONGEST_WORD},}}", lambda found: f"{found[0][:60]}...{found[0][-20:]}", text)


def quiet_environment() -> None:
    """Keeps the notices of libraries off the terminal; variables that the user has set take precedence."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_SILENT": "true",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)
