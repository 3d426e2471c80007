"""Two runs side by side: decoder means, best sites and the settings that differ."""

from __future__ import annotations

import math

import storage
from probing.statistics import mean_defined
from sweeps.analysis import tables
from sweeps.analysis.scores import collect
from sweeps.analysis.summary import best_site
from sweeps.analysis.tables import RunData
from sweeps.config.load import to_dict
from sweeps.config.schema import Config
from sweeps.runtime.run import differences


def figures(config: Config) -> dict[str, float]:
    """The main results of a run at the last step by name: decoder means, and scores of the best sites."""
    return _figures(config, _load(config))


def _load(config: Config) -> RunData:
    return tables.load(storage.open(config.output), to_dict(config))


def _figures(config: Config, data: RunData) -> dict[str, float]:
    by_task = collect(data)
    result: dict[str, float] = {}
    for variant in config.sampling.variants:
        for scores in by_task.values():
            name, last = f"{variant} {scores.measure.score}", scores.means[scores.variant_index(variant), :, -1]
            result[f"{name}, decoder mean, last step"] = float(mean_defined(last[scores.site_indices("decoder")]))
            best = best_site(scores, "all", variant)
            if best is not None:
                result[f"{name}, best site, last step"] = float(last[best])
    return result


def describe(one: Config, two: Config) -> str:
    """A table of the main results of both runs, and the settings that differ."""
    runs = [(config, _load(config)) for config in (one, two)]
    left, right = (_figures(config, data) for config, data in runs)
    names = list(dict.fromkeys([*left, *right]))
    width = max([len(name) for name in names], default=10)
    lines = [f"{'':{width}}  {one.output[-18:]:>18}  {two.output[-18:]:>18}  {'difference':>10}"]
    for name in names:
        a, b = left.get(name, math.nan), right.get(name, math.nan)
        texts = ("-" if math.isnan(value) else f"{value:.3f}" for value in (a, b))
        difference = "" if math.isnan(b - a) else f"{b - a:+.3f}"
        lines.append(f"{name:{width}}  {'  '.join(f'{text:>18}' for text in texts)}  {difference:>10}")
    changed = differences(to_dict(one), to_dict(two))
    lines += [f"{config.output}: {data.warning}" for config, data in runs if data.warning]
    return "\n".join([*lines, "settings that differ:", *(f"  {line}" for line in changed)])
