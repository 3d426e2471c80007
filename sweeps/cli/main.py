"""The command line: parses the arguments, runs the verb, returns 0 (done), 1 (something failed) or 2 (wrong input)."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import time
from collections.abc import Sequence

from sweeps.cli import commands, jobs
from sweeps.cli.verbs import DEFAULT, Verb

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""a full, read-only or broken disk: reported in one line, since the same command resumes once it is repaired"""

VERBS = [value for module in (commands, jobs) for value in vars(module).values() if isinstance(value, Verb)]


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
    if rest and hasattr(parsed, "overrides"):
        if "=" not in rest[0] and not rest[0].startswith("-") and parsed.preset == DEFAULT:
            parsed.preset = rest.pop(0)
        while rest and "=" in rest[0] and not rest[0].startswith("-"):
            parsed.overrides = [*parsed.overrides, rest.pop(0)]
    if rest:
        whole.error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A pair right after the verb means the default preset: `scenesweep run key=value`.
    if len(words) > 1 and "=" in words[1] and not words[1].startswith("-"):
        words.insert(1, DEFAULT)
    parsed = parse(words)
    if parsed.version:
        print(commands.version())
        return 0
    if parsed.verb is None:
        parser().print_help()
        return 0
    _quiet_environment()
    command = shlex.join(["scenesweep", *words])
    started = time.monotonic()
    try:
        code = parsed.action(parsed)
    except ValueError as error:
        print(f"scenesweep {parsed.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"scenesweep {parsed.verb}: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(f"\nstopped; resume with: {command}", file=sys.stderr)
        return 1
    if code == 1 and parsed.verb == "status":
        print("the command that made the run resumes it", file=sys.stderr)
    elif code == 1:
        print(f"resume with: {command}", file=sys.stderr)
    elif parsed.verb == "run":
        print(f"done in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return code


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
