"""The list of all stages."""

from __future__ import annotations

from typing import Any

from sweeps.stages import curate, decode, experiments, intervene, label, probe, replay, safety, sample
from sweeps.stages.base import Stage

STAGES: tuple[Stage[Any], ...] = (sample, label, safety, curate, replay, decode, probe, experiments.stage, intervene)
"""in order of execution; what `replay` and `decode` record is read by probes"""
