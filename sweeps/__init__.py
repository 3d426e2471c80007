"""The experiment: settings, stages, analysis, report, W&B mirror and command line.

`pipeline.execute` runs stages of a configuration; `cli.main` is the command line. From the bottom up, the rooms are
`config`, `runtime`, `stages`, `planning`, `analysis`, `report`, `tracking`, `pipeline`, `curation`, `bench`, `cli`;
each imports only from those below it. `notebook` has the same for notebooks: `sweeps.run` and `sweeps.open`.
"""

from typing import Any

__all__ = ["open", "run"]


def __getattr__(name: str) -> Any:
    """Imports what notebooks use only if it is used."""
    if name in __all__:
        from sweeps import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
