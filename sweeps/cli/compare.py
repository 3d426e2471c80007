"""Two runs side by side: decoder means, best sites, when scores rise, and the settings that differ."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from functools import partial

import storage
from probing.statistics import mean_defined
from sweeps.analysis import tables
from sweeps.analysis.scores import Scores, collect
from sweeps.analysis.summary import best_site, emergence
from sweeps.analysis.tables import RunData
from sweeps.config.load import to_dict
from sweeps.config.schema import Config
from sweeps.runtime.run import differences


def _load(config: Config) -> RunData:
    return tables.load(storage.open(config.output), to_dict(config))


def _has_decoder(by_task: dict[str, Scores]) -> bool:
    return all(scores.lead_part == "decoder" for scores in by_task.values())


def _figures(config: Config, by_task: dict[str, Scores], decoder: bool) -> dict[str, float]:
    """The main results at the last step by name: means over the decoder, or all sites, and scores of the best sites."""
    part, noun = ("decoder", "decoder mean") if decoder else ("all", "mean over all sites")
    result: dict[str, float] = {}
    for variant in config.sampling.variants:
        for scores in by_task.values():
            name, last = f"{variant} {scores.measure.score}", scores.means[scores.variant_index(variant), :, -1]
            result[f"{name}, {noun}, last step"] = float(mean_defined(last[scores.site_indices(part)]))
            best = best_site(scores, "all", variant)
            if best is not None:
                result[f"{name}, best site, last step"] = float(last[best])
    return result


@dataclass(frozen=True)
class Arrival:
    """When a score has 95 % of its rise from the floor to the last step."""

    step: int
    log_snr: float | None
    """ln(signal power / noise power) that enters the network at this step, by which samplers compare; None if the
    store does not hold it, or no signal enters yet"""


def rises(data: RunData, by_task: dict[str, Scores], part: str) -> dict[str, Arrival]:
    """The trained network's rises by score, over the decoder or all sites; those that are not clear are left out."""
    found = {}
    for scores in by_task.values():
        rise = emergence(scores, "trained", part)
        if rise.found:
            step = int(rise.step.estimate)
            log_snr = data.log_snrs[step - 1] if data.log_snrs else -math.inf
            found[f"trained {scores.measure.score}"] = Arrival(step, log_snr if math.isfinite(log_snr) else None)
    return found


@dataclass(frozen=True)
class Comparison:
    """The main results of two runs, and the settings that differ."""

    outputs: tuple[str, str]
    results: dict[str, tuple[float, float]]
    """result to its value in each run; NaN where a run has none"""
    rises: dict[str, tuple[Arrival | None, Arrival | None]]
    """score to when each run has 95 % of its rise; None where it does not clearly rise"""
    settings: list[str]
    warnings: list[str]


def compare(one: Config, two: Config) -> Comparison:
    """Compare two runs, by means over the decoder if both have one. Raises ValueError if one of them is no run."""
    runs = [(config, _load(config)) for config in (one, two)]
    tasks = [collect(data) for _, data in runs]
    decoder = all(map(_has_decoder, tasks))
    left, right = (_figures(config, found, decoder) for (config, _), found in zip(runs, tasks, strict=True))
    names = dict.fromkeys([*left, *right])
    part = "decoder" if decoder else "all"
    early, late = (rises(data, found, part) for (_, data), found in zip(runs, tasks, strict=True))
    return Comparison(
        (one.output, two.output),
        {name: (left.get(name, math.nan), right.get(name, math.nan)) for name in names},
        {name: (early.get(name), late.get(name)) for name in dict.fromkeys([*early, *late])},
        differences(to_dict(one), to_dict(two)),
        [f"{config.output}: {data.warning}" for config, data in runs if data.warning],
    )


def lines(found: Comparison) -> list[str]:
    """Return a comparison as a table in text, at most 80 columns wide unless names of settings are long."""
    names = {name: name.replace(", last step", "") for name in found.results}
    width = max([len(name) for name in names.values()], default=10)
    ends = [output.rpartition("/")[2] for output in found.outputs]
    heads = [f"{name[-16:]:>16}" for name in (ends if ends[0] != ends[1] else found.outputs)]
    table = [f"{'at the last step':{width}}  {'  '.join(heads)}  {'difference':>10}"]
    for name, (a, b) in found.results.items():
        texts = ("-" if math.isnan(value) else f"{value:.3f}" for value in (a, b))
        difference = "" if math.isnan(b - a) else f"{b - a:+.3f}"
        table.append(f"{names[name]:{width}}  {'  '.join(f'{text:>16}' for text in texts)}  {difference:>10}".rstrip())
    if found.rises:
        table.append("first step with 95 % of the rise, and its log-SNR, by which samplers compare:")
    for name, pair in found.rises.items():
        table.append(f"{name:{width}}  {'  '.join(f'{_when(rise):>16}' for rise in pair)}")
    wrap = partial(textwrap.fill, width=80, initial_indent="  ", subsequent_indent="    ", break_long_words=False)
    changed = [wrap(line) for line in found.settings]
    return [*table, *found.warnings, "settings that differ:" if changed else "no setting differs", *changed]


def _when(arrival: Arrival | None) -> str:
    if arrival is None:
        return "no clear rise"
    return f"{arrival.step}" + ("" if arrival.log_snr is None else f" ({arrival.log_snr:+.2f})")


def as_json(found: Comparison) -> dict[str, object]:
    """Return a comparison as plain values; null where a run has no such result."""
    values = {name: [None if math.isnan(v) else v for v in pair] for name, pair in found.results.items()}
    arrivals = {name: [None if rise is None else vars(rise) for rise in pair] for name, pair in found.rises.items()}
    return {**vars(found), "results": values, "rises": arrivals}
