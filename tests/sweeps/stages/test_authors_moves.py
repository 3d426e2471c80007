"""The authors' moves count every row of the test list, those that curation drops too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from support.tiny_runs import configured
from sweeps.runtime.run import reopen
from sweeps.stages import intervene


def test_positions_count_all_prompts_of_the_test_list(finished: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    config = configured(tiny_pipeline, tmp_path / "run", "interventions.images=0", "interventions.move_rule=authors")
    run = reopen(config)
    rows = run.store.curation().to_pylist()
    test = [row["sample"] for row in rows if row["split"] == "test"]
    plain = [(task.sample, task.position) for task in intervene.tasks(run)]
    assert plain == [(sample, place) for place, sample in enumerate(test)]

    records = [{"split": "test" if row["sample"] in test else "train", "name": ""} for row in rows]
    run.store.put("prompts.json", json.dumps(records).encode())
    recorded = run.store.recorded("manifest.json") | run.store.checksums(["prompts.json"])
    run.store.put_document("manifest.json", run.store.document("manifest.json"), recorded)
    dropped = test[1]
    run.store.write_curation({**row, "keep": row["sample"] != dropped} for row in rows)
    found = [(task.sample, task.position) for task in intervene.tasks(run)]
    assert found == [(sample, place) for place, sample in enumerate(test) if sample != dropped]
