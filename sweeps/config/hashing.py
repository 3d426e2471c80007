"""Stage hashes: which settings a stage's results depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from sweeps.config.schema import Config, previews

EDITED = {"images", "tasks", "ablation_images", "second_objects", "transplants", "keep_images"}
ABLATIONS = {"directions", "dose", "step_counts", "sides", "guidances", "gains"}
"""fields of interventions that only set how many edits there are, not what an edit does"""

NOT_SCIENCE = {"model": {"device", "config"}, "sampling": {"retries", "preview"}, "interventions": EDITED | ABLATIONS}
"""fields that change no result and are in no hash; what `model.config` holds is part of the model's revision"""

IF_SET = {
    *(("interventions", name) for name in ("probes", "scale", "depth_scale", "saliency_gain", "depth_gain")),
    *(("sampling", name) for name in ("scheduler", "steps", "recorded_steps")),
    ("model", "variant"),
    ("model", "size"),
}
"""fields that are in a hash only if they are not at their default: runs from before these fields keep their hashes"""

CONSTANTS = {"curation": {"salt": "scenesweep"}}
"""values that were settings once: they stay in the hash, so that finished runs keep theirs"""

RULES = ("min_foreground", "max_foreground", "min_contrast", "min_saturation", "max_plain", "safety", "safety_weights")
CHOOSING = {"labels": ("saliency", "saliency_weights", "threshold"), "curation": RULES}
"""settings by which a preview chooses samples"""


@dataclass(frozen=True)
class Hashes:
    """One hash per stage, over its own scientific settings and the hash of the stage before."""

    sample: str
    label: str
    curate: str
    probe: str
    intervene: str


def digest(*parts: object) -> str:
    """First 16 hex digits of the SHA-256 of plain values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def science(config: Config, part: str) -> dict[str, object]:
    """The settings of one part of the configuration that results depend on."""
    values = dataclasses.asdict(getattr(config, part)) | CONSTANTS.get(part, {})
    defaults = dataclasses.asdict(type(getattr(config, part))())
    left_out = NOT_SCIENCE.get(part, set()) | {k for p, k in IF_SET if p == part and values[k] == defaults[k]}
    return {k: v for k, v in values.items() if k not in left_out}


def chosen_by(config: Config) -> dict[str, dict[str, object]]:
    """The settings by which a preview chooses samples; empty if the run has no preview."""
    if not previews(config):
        return {}
    return {part: {key: science(config, part)[key] for key in keys} for part, keys in CHOOSING.items()}


def hashes(config: Config, revision: str, decisions: str = "", previewed: str = "") -> Hashes:
    """Hashes of all stages.

    `revision` identifies the model's exact weights, `decisions` the manual decisions on recorded samples,
    `previewed` those on the preview's samples.
    """
    parts = [science(config, part) for part in ("model", "prompts", "sampling")]
    chosen = chosen_by(config)
    sample = digest(*parts, revision, *([chosen] if chosen else []), *([previewed] if previewed else []))
    label = digest(sample, science(config, "labels"))
    curate = digest(label, science(config, "curation"), *([decisions] if decisions else []))
    probe = digest(curate, science(config, "probe"))
    return Hashes(sample, label, curate, probe, digest(probe, science(config, "interventions")))
