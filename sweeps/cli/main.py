"""The command line: parses the arguments, runs the verb, returns 0 (done), 1 (something failed) or 2 (wrong input)."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence

from sweeps.cli import commands, jobs
from sweeps.cli.verbs import DEFAULT, Verb, is_pair

VERBS = [value for module in (commands, jobs) for value in vars(module).values() if isinstance(value, Verb)]
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


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, one subparser per verb."""
    result = argparse.ArgumentParser(
        prog="scenesweep",
        description="Finds out what scene geometry a latent diffusion model represents, where and when.",
    )
    result.add_argument("--version", action="store_true", help="print the version and exit")
    choices = result.add_subparsers(dest="verb", metavar="VERB")
    for verb in VERBS:
        verb.add_to(choices)
    return result


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The parsed command line. Preset and pairs may also follow options, where argparse accepts no more of them."""
    whole = parser()
    parsed, rest = whole.parse_known_args(words)
    if hasattr(parsed, "overrides"):
        if is_pair(parsed.preset):  # a pair right after the verb means the default preset
            parsed.preset, parsed.overrides = DEFAULT, [parsed.preset, *parsed.overrides]
        if rest and parsed.preset == DEFAULT and not (is_pair(rest[0]) or rest[0].startswith("-")):
            parsed.preset = rest.pop(0)
        while rest and is_pair(rest[0]):
            parsed.overrides = [*parsed.overrides, rest.pop(0)]
    if rest:
        whole.error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parse(words)
    if parsed.version:
        print(commands.version())
        return 0
    if parsed.verb is None:
        parser().print_help()
        return 0
    _quiet_environment()
    resume = f"resume with: {shlex.join(['scenesweep', *words])}"
    started = time.monotonic()
    try:
        code = parsed.action(parsed)
        sys.stdout.flush()
    except ValueError as error:
        print(f"scenesweep {parsed.verb}: {one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        fix = f"; {FIXES[error.errno]}" if error.errno in FIXES else ""
        print(f"scenesweep {parsed.verb}: {one_line(error)}{fix}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(f"\nstopped; {resume}" if parsed.verb in RESUMABLE else "\nstopped", file=sys.stderr)
        return 1
    if code == 1 and parsed.verb in RESUMABLE:
        print(resume, file=sys.stderr)
    elif parsed.verb == "run":
        print(f"done in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return code


def one_line(error: BaseException) -> str:
    """The message of an error on one line of plain text, whatever names and values it quotes."""
    from storage.backends.paths import CONTROL  # imports numpy, which `--help` does without

    text = " ".join(str(error).split()) or type(error).__name__
    text = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return re.sub(rf"\S{{{LONGEST_WORD},}}", lambda found: f"{found[0][:60]}...{found[0][-20:]}", text)


def _quiet_environment() -> None:
    """Keeps the notices of libraries off the terminal; variables that the user has set take precedence."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_SILENT": "true",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)
