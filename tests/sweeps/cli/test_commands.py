"""The command line as a user meets it: help, wrong words, settings and their sources, presets, completion, colour."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import pytest

from support.tiny_runs import settings as tiny_settings
from sweeps.cli.main import VERBS, main
from sweeps.cli.verbs import GROUPS
from sweeps.config.documented import page, settings
from sweeps.config.load import flat, load, presets, sources, to_dict
from sweeps.config.schema import Config
from sweeps.config.summaries import summary

ROOT = Path(__file__).parents[3]


def test_help_lists_every_verb_in_its_group_on_one_line(capsys: Any) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [i for i, line in enumerate(lines) if line in GROUPS]
    assert [lines[i] for i in heads] == list(GROUPS)
    for verb in VERBS:
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"  {verb.name} ")]
        assert lines[max(i for i in heads if i < at)] == verb.group
        assert verb.example.removeprefix('eval "$(').startswith(f"scenesweep {verb.name}")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("statsu runs/x", "scenesweep: statsu: no such verb; did you mean 'status'?; see `scenesweep --help`"),
        ("xyzzy", "scenesweep: xyzzy: no such verb; see `scenesweep --help`"),
        ("run --shards=3", "scenesweep run: not understood: --shards=3; see `scenesweep run --help`"),
        ("status", "scenesweep status: the following arguments are required: output; see `scenesweep status --help`"),
        ("plan guidance=5", "did you mean 'sampling.guidance' or 'interventions.guidance'?"),
        ("plan shard=5", "shard: unknown key; did you mean 'sampling.shard'?"),
        ("plan sweep.shard=5", "sweep.shard: unknown key; did you mean 'sampling.shard'?"),
        ("plan epoch=5", "epoch: unknown key; did you mean 'probe.epochs'?"),
        ("plan sampling.shrad=5", "sampling.shrad: unknown key; did you mean 'sampling.shard'?"),
    ],
)
def test_a_wrong_word_is_one_line_with_what_was_meant(words: str, line: str, capsys: Any) -> None:
    try:
        code = main(words.split())
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.count("\n") == 1
    assert line in printed.err


def test_config_shows_every_key_with_its_source(tmp_path: Path, capsys: Any) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("preset: scenes\nprobe: {lr: 0.5}\n")
    assert main(["config", str(mine), "sampling.guidance=5", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {key: one["value"] for key, one in shown.items()} == flat(to_dict(load(str(mine), ["sampling.guidance=5"])))
    assert shown["sampling.guidance"] == {"value": 5.0, "source": "command line"}
    assert shown["probe.lr"] == {"value": 0.5, "source": str(mine)}
    assert shown["probe.epochs"]["source"] == "preset scenes"
    assert shown["probe.bias"]["source"] == "default"
    assert main(["config", str(mine), "--changed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{mine}  probe.lr=0.5" in lines
    assert not any(line.startswith("default") for line in lines)


def test_a_preset_s_commit_goes_with_its_model() -> None:
    """Another model does not take over the commit, so that hashes of runs of local directories stay as they were."""
    assert load("paper", []).model.revision
    assert load("paper", ["model.name=/models/mine"]).model.revision == ""
    assert sources("paper", ["model.name=/models/mine"])["model.revision"] == "default"
    assert load("paper", ["model.name=/models/mine", "model.revision=abc"]).model.revision == "abc"


@pytest.mark.parametrize("name", presets())
def test_every_preset_says_in_a_line_what_it_does_and_what_it_costs(name: str) -> None:
    found = summary(presets()[name].read_text())
    assert 20 < len(found.what) <= 100, found.what
    assert found.cost.startswith("Cost: ")
    assert 15 < len(found.cost) <= 110, found.cost


def test_presets_lists_them_all(capsys: Any) -> None:
    assert main(["presets"]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert shown[0] == "scenes"
    assert sorted(shown) == sorted(presets())


def test_the_page_of_settings_is_current() -> None:
    """`scenesweep settings > SETTINGS.md` writes it again."""
    assert (ROOT / "SETTINGS.md").read_text() == page(), "run `scenesweep settings > SETTINGS.md`"
    found = settings()
    assert [one.key for one in found] == list(flat(to_dict(Config())))
    assert [one.key for one in found if not one.meaning] == []


def test_the_shell_completes_verbs_presets_and_keys(tmp_path: Path) -> None:
    def completed(line: str) -> list[str]:
        out = tmp_path / "out"
        environment = os.environ | {
            "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(out), "_ARGCOMPLETE_IFS": "\n", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        subprocess.run([sys.executable, "-m", "sweeps"], env=environment, cwd=ROOT, capture_output=True, check=True)
        return [word.strip() for word in out.read_text().split("\n")]

    assert completed("scenesweep sta") == ["status"]
    assert "scenes-full" in completed("scenesweep run sc")
    assert completed("scenesweep run scenes sampling.gui") == ["sampling.guidance="]


def test_completion_prints_a_script(capsys: Any) -> None:
    assert main(["completion", "bash"]) == 0
    assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "colour"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colour_obeys_the_environment(
    environment: dict[str, str], colour: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main([]) == 0
    assert ("\x1b[" in capsys.readouterr().out) == colour


def test_open_shows_the_report(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda link: not opened.append(link))
    assert main(["open", str(finished)]) == 0
    link = (finished.resolve() / "report" / "index.html").as_uri()
    assert (opened, capsys.readouterr().out) == ([link], f"{link}\n")
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("report"))
    assert main(["open", str(tmp_path / "run")]) == 2
    assert "has no report yet" in capsys.readouterr().err


def test_a_dry_run_is_a_plan_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    words = ["scenes", f"output={tmp_path / 'out'}"]

    def shown() -> list[str]:
        """Without the memory that is free at the moment."""
        return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("shard of")]

    assert main(["plan", *words]) == 0
    planned = shown()
    assert main(["run", *words, "--dry-run"]) == 0
    assert shown() == planned
    assert main(["submit", "--address", "http://127.0.0.1:1", *words, "--dry-run"]) == 0  # asks no cluster
    assert shown() == planned
    assert main(["plan", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 300 < sum(found["seconds"].values()) < 600
    assert found["bytes"] > sum(found["arrays"].values()) > 1e9
    assert main(["probe", *words, "--dry-run"]) == 2  # as `probe` itself would
    assert "nothing is sampled yet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_status_and_compare_as_json(finished: Path, capsys: Any) -> None:
    assert main(["status", str(finished), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["failed"]) == (12, {})
    assert {row["title"] for row in found["rows"] if row["complete"]} >= {"sampling trained", "curation", "probing"}
    assert main(["compare", str(finished), str(finished), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == []
    assert all(a == b for a, b in found["results"].values())


@pytest.mark.parametrize("verb", ["status", "compare"])
def test_what_is_shown_fits_eighty_columns(
    verb: str, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(finished.parent)
    assert main([verb, finished.name, *([finished.name] if verb == "compare" else [])]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_verbose_shows_the_trace_of_an_error(capsys: Any) -> None:
    assert main(["plan", "shard=5", "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_second_run_ends_like_the_first(finished: Path, tiny_pipeline: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(finished, output := tmp_path / "run", copy_function=os.link)
    (output / "report" / "built.json").unlink()
    words = tiny_settings(tiny_pipeline, output)
    assert main(["run", "scenes", *words]) == 0
    first = capsys.readouterr().out.splitlines()
    assert main(["run", "scenes", *words]) == 0
    second = capsys.readouterr().out.splitlines()
    assert second == ["nothing to do: everything is complete", *first]
    assert first[-1] == f"report: {(output / 'report' / 'index.html').as_uri()}"
    assert [line for line in first if line.endswith("The model uses it: edits move the picture")]
    assert first[0].startswith("the salient object  best at ")
