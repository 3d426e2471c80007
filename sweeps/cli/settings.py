"""The verbs about settings, and those that need no run: config, presets, open, completion, settings."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap

from sweeps.cli.style import paint
from sweeps.cli.verbs import DEFAULT, argument, as_json, output, settings, verb

SHELLS = ("bash", "zsh", "fish")


@verb(
    "inspect",
    "scenesweep config scenes sampling.guidance=5",
    settings,
    argument("--changed", action="store_true", help="leave out the settings at their default"),
    as_json,
)
def config(parsed: argparse.Namespace) -> int:
    """Show all settings, and where each value comes from. SETTINGS.md explains them."""
    from sweeps.config.load import flat, load, sources, to_dict

    values = flat(to_dict(load(parsed.preset, parsed.overrides)))
    found = sources(parsed.preset, parsed.overrides)
    rows = {key: (value, found[key]) for key, value in values.items() if not parsed.changed or found[key] != "default"}
    if parsed.json:
        print(json.dumps({key: {"value": value, "source": source} for key, (value, source) in rows.items()}))
        return 0
    width = max([len(source) for _, source in rows.values()], default=0) + 2
    columns = max(width + 40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 10_000
    for key, (value, source) in rows.items():
        text = f"{key}={written(value)}"
        first, *rest = textwrap.wrap(text, columns - width, break_on_hyphens=False, subsequent_indent="  ") or [""]
        print(paint(f"{source:{width}}", "dim") + (first if source == "default" else paint(first, "bold")))
        for line in rest:
            print(" " * width + line)
    return 0


def written(value: object) -> str:
    """A value as a key=value pair has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


@verb("inspect", "scenesweep presets", as_json)
def presets(parsed: argparse.Namespace) -> int:
    """List the presets with their cost."""
    from sweeps.config.load import presets
    from sweeps.config.summaries import summary

    paths = presets()
    found = {name: summary(paths[name].read_text()) for name in sorted(paths, key=lambda name: (name != DEFAULT, name))}
    if parsed.json:
        print(json.dumps({name: {"what": one.what, "cost": one.cost} for name, one in found.items()}))
        return 0
    width = max(map(len, found)) + 2
    columns = max(60, min(100, shutil.get_terminal_size().columns))
    for name, one in found.items():
        lines = [*textwrap.wrap(one.what, columns - width), *textwrap.wrap(one.cost, columns - width)]
        print(paint(f"{name:{width}}", "bold") + f"\n{'':{width}}".join(lines))
    return 0


@verb("results", "scenesweep open runs/scenes", output)
def open_(parsed: argparse.Namespace) -> int:
    """Open the report of a run in the browser."""
    import webbrowser

    import storage
    from sweeps.runtime.layout import PAGE, page_link

    store = storage.open(parsed.output)
    if not store.exists(PAGE):
        raise ValueError(f"{parsed.output}: has no report yet; make one with `scenesweep report {parsed.output}`")
    link = page_link(store.url)
    print(link)
    if not link.startswith("file:"):
        raise ValueError(f"{link}: a browser can't open it there; copy {PAGE} to this machine")
    if not webbrowser.open(link):
        print("no browser was found here; open the link yourself", file=sys.stderr)
    return 0


@verb(
    "develop", 'eval "$(scenesweep completion bash)"', argument("shell", choices=SHELLS, help="whose script to print")
)
def completion(parsed: argparse.Namespace) -> int:
    """Print the script with which a shell completes verbs and keys."""
    import argcomplete

    print(argcomplete.shellcode(["scenesweep"], shell=parsed.shell))
    return 0


@verb("develop", "scenesweep settings > SETTINGS.md")
def settings_(parsed: argparse.Namespace) -> int:
    """Print the page of all settings in Markdown."""
    from sweeps.config.documented import page

    print(page(), end="")
    return 0
