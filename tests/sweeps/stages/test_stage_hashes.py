"""Results of other settings are never taken for current ones: each stage finds its own tasks missing again.

Interventions have tasks only once curation is done with the current settings.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.tiny_runs import configured
from sweeps.runtime.run import reopen
from sweeps.stages.all import STAGES


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], {}),
        (["interventions.lr=0.5"], {"intervene": 1}),
        (["probe.lr=0.5"], {"probe": 192, "intervene": 1}),
        (["curation.min_contrast=0.01"], {"curate": 1, "probe": 192}),
        (["labels.threshold=9"], {"label": 3, "curate": 1, "probe": 192}),
    ],
)
def test_other_settings_leave_a_stage_and_the_later_ones_to_do(
    finished: Path, tiny_pipeline: Path, pairs: list[str], expected: dict[str, int]
) -> None:
    run = reopen(configured(tiny_pipeline, finished, *pairs))
    counts = {stage.INFO.name: len(stage.missing(run)) for stage in STAGES}
    assert {name: count for name, count in counts.items() if count} == expected
