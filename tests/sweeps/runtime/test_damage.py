"""Damage to the small files of a finished run: `verify` names it, `verify --repair` and `run` mend it."""

from __future__ import annotations

from pathlib import Path

import pytest

import storage
from storage import audit
from support.tiny_runs import assert_same_scores, copied, settings, stored
from sweeps.cli.main import main
from sweeps.runtime import damage

PROBE = "probes/trained/up.3.2/15.depth.none.0.safetensors"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


HARM = {"flip": flip, "truncate": lambda path: path.write_bytes(path.read_bytes()[:-7]), "delete": Path.unlink}
FILES = {
    "probe": PROBE,
    "images": "results/images/*.parquet",
    "epochs": "results/epochs/*.parquet",
    "pictures of an edit": "interventions/**/*.safetensors",
    "recipe of an edit": "interventions/**/*.yaml",
    "manifest": "manifest.json",
    "config": "config.yaml",
    "prompts": "prompts.json",
    "samples": "samples.parquet",
    "curation": "curation.parquet",
    "experiments": "experiments.json",
    "layout": "layout.json",
}


def files(output: Path) -> dict[str, bytes]:
    """Files that a mended run must have again; of edits the names, since their recipes hold the output's path."""
    found = [path for path in (output / "probes").rglob("*") if path.is_file()]
    found += [*output.glob("*.json"), *output.glob("*.yaml"), output / "curation.parquet"]
    own = [path for path in found if path.name not in ("costs.json", "progress.json")]
    edits = dict.fromkeys((output / "interventions").rglob("*"), b"")
    contents = {path: path.read_bytes() for path in own} | edits
    return {str(path.relative_to(output)): data for path, data in contents.items()}


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A finished run whose file may be damaged."""
    return copied(finished, tmp_path / "out")


def one(output: Path, pattern: str) -> Path:
    return sorted(path for path in output.glob(pattern))[0]


def check_mended(output: Path, finished: Path, before: dict[str, bytes]) -> None:
    assert audit.verify(storage.open(str(output))) == []
    assert damage.find(storage.open(str(output))) == []
    assert files(output) == before
    assert stored(output) == stored(finished)
    assert_same_scores(output, finished)
    for table in ("images", "epochs", "interventions"):
        rows = [storage.open(str(run)).table(table).num_rows for run in (output, finished)]
        assert rows[0] == rows[1]


@pytest.mark.parametrize("harm", HARM)
def test_a_run_mends_damage_to_everything_at_once(output, finished, tiny_pipeline, capsys, harm):
    arguments = ["run", "scenes", *settings(tiny_pipeline, output)]
    assert main(arguments) == 0
    before = files(output)
    # If layout and manifest are damaged together, nothing says which one is.
    paths = [one(output, pattern) for name, pattern in FILES.items() if name != "layout"]
    for path in paths:
        HARM[harm](path)
    assert main(["verify", str(output), "--recompute", "0"]) == 1
    capsys.readouterr()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    recorded_in_damaged = ("samples.parquet", "prompts.json", "config.yaml", "experiments.json")
    for path in paths:
        assert str(path.relative_to(output)) in out or path.name in recorded_in_damaged
    check_mended(output, finished, before)
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("harm", HARM)
def test_a_run_writes_a_damaged_layout_again(output, finished, tiny_pipeline, harm):
    HARM[harm](output / "layout.json")
    assert main(["run", "scenes", *settings(tiny_pipeline, output)]) == 0
    assert stored(output) == stored(finished)


@pytest.mark.parametrize("name", ["images", "manifest"])
def test_a_repair_followed_by_a_run_mends_too(output, finished, tiny_pipeline, capsys, name):
    arguments = ["run", "scenes", *settings(tiny_pipeline, output)]
    assert main(arguments) == 0
    before = files(output)
    flip(one(output, FILES[name]))
    assert main(["report", str(output)]) == 2
    assert main(["verify", str(output), "--recompute", "0", "--repair"]) == 1
    capsys.readouterr()
    assert main(arguments) == 0
    check_mended(output, finished, before)
