"""The tasks that a probe can learn, one module each; importing this package imports no heavy library.

A new task is one module with a class like `saliency.SaliencyHeads`, and one line in `TASKS`. `heads` defines what such
a class provides.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probing.probes.tasks.heads import Task

TASKS = {"saliency": "probing.probes.tasks.saliency:SaliencyHeads", "depth": "probing.probes.tasks.depth:DepthHeads"}
"""task name -> class that makes its heads, as module:name, so that the names are known without importing torch"""


def load_task(name: str) -> Task:
    """Import and return the task `name`. Raises KeyError if no task has that name."""
    return pkgutil.resolve_name(TASKS[name])
