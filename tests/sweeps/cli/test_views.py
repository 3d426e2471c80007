"""Status, plan and benches of sampling: running tasks, their pace, refused plans, rows of measurements."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path

import pytest

import storage
from cluster import Outcome, Progress, TaskDone, TaskFailed, TaskStarted
from probing.dataset.prompts import read
from storage.budget import format_bytes
from support.tiny_runs import configured, settings, stored
from sweeps import pipeline
from sweeps.bench import paired, sampling, suite
from sweeps.cli import status
from sweeps.cli.main import main
from sweeps.planning import table
from sweeps.runtime import failures, live_status
from sweeps.runtime.live_status import LiveStatusWriter
from sweeps.runtime.progress import Display
from sweeps.runtime.run import Run, begin, model_info
from sweeps.stages import intervene
from sweeps.stages.experiments import stage


@pytest.fixture
def half_way(sampled: Path, tmp_path: Path) -> Path:
    """A run of which two shards of the random model are left."""
    output = tmp_path / "half"
    shutil.copytree(sampled, output)
    for shard in (1, 2):
        (output / "shards" / "sample" / "random" / f"{shard:05d}.json").unlink()
    return output


def line(text: str, start: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(start)]
    return " ".join(found.split())


def test_status_shows_running_tasks_with_rate_and_time_left(half_way):
    store = storage.open(str(half_way))
    with store.lease("somebody"):
        note = LiveStatusWriter(store, "sample")
        note(TaskStarted("sample/trained/00000", 1, "sample.0"))
        note(TaskDone("sample/trained/00000", 1, 1.0, {}))
        note(Progress(1, 0, 0, 6))
        note.pace.first = (1, time.time() - 45)  # the first shard, before which the model was loaded
        note.written = 0
        note(TaskStarted("sample/random/00001", 1, "sample.0"))
        note(Progress(4, 0, 1, 6))
        found = status.read(str(half_way))
    text = "\n".join(status.lines(found))
    assert found.failed == {}
    assert line(text, "sampling trained") == "sampling trained 3 of 3 shards done"
    random = line(text, "sampling random")
    assert random == "sampling random 1 of 3 shards, 1 running, 1 to do; 4 a minute, 30 s left"


def test_tasks_of_a_dead_run_are_not_shown_as_running(half_way):
    store = storage.open(str(half_way))
    note = LiveStatusWriter(store, "sample")
    note(TaskStarted("sample/random/00001", 1, "sample.0"))
    note(Progress(4, 0, 1, 6))
    assert json.loads(store.get(live_status.PATH))["running"] == {"sample/random/00001": "sample.0"}
    text = "\n".join(status.lines(status.read(str(half_way))))
    assert line(text, "sampling random") == "sampling random 1 of 3 shards, 2 to do"


def test_status_shows_failed_shards_with_their_reason(half_way, capsys):
    storage.open(str(half_way)).fail("sample", "random", 2, "site mid.0 step 3: activation is not finite")
    assert main(["status", str(half_way)]) == 1
    printed = capsys.readouterr()
    assert "1 of 3 shards, 1 failed, 1 to do" in line(printed.out, "sampling random")
    assert "sample/random/00002 site mid.0 step 3" in " ".join(printed.err.split())


class Refusing:
    """An executor under which every task fails."""

    def run(self, tasks, spec, observers=()):
        return Outcome({}, {task.key: f"ValueError: no room for {task.sample}" for task in tasks}, {})


@pytest.fixture
def probed(finished: Path, tiny_pipeline: Path, tmp_path: Path) -> Run:
    """A finished run whose settings now request four edited images and emergence."""
    output = tmp_path / "probed"
    shutil.copytree(finished, output)
    for path in (output / "results" / "interventions").glob("*.parquet"):
        path.unlink()
    more = ("interventions.images=4", "experiments.names=[emergence]", "experiments.emergence_images=2")
    config = configured(tiny_pipeline, output, *more)
    return begin(config, model_info(config), read(config.prompts).prompts)


def test_status_shows_all_stages(probed, capsys):
    assert main(["status", probed.store.url]) == 0
    printed = capsys.readouterr()
    assert line(printed.out, "probing") == "probing 192 of 192 probes done"
    assert line(printed.out, "other experiments").endswith(" 0 of 2 tasks, 2 to do")
    assert line(printed.out, "intervening").startswith("intervening 0 of 4 images with their controls, 4 to do")
    assert printed.err == ""


def test_status_groups_what_failed_by_reason(probed, capsys):
    store, names = probed.store, ("experiment", "variant", "site", "step", "task", "control", "seed", "stage_hash")
    rows = store.table("probes", probed.hashes.probe).slice(0, 3).to_pylist()
    broken = [{n: row[n] for n in names} | {"status": "failed", "attempt": 9} for row in rows]
    reasons = ["step 1 is not finite", "step 2 is not finite", "no foreground"]
    store.append("probes", [row | {"error": why} for row, why in zip(broken, reasons, strict=True)])
    intervene.execute(probed, Refusing(), [], intervene.missing(probed)[:3])
    pipeline.run_stage(probed, stage, Refusing(), pipeline.Result(), Display(quiet=True))
    assert main(["status", store.url]) == 1
    printed = capsys.readouterr()
    assert line(printed.out, "probing") == "probing 189 of 192 probes, 3 failed"
    assert line(printed.out, "other experiments").startswith("other experiments 0 of 2 tasks, 2 failed")
    assert line(printed.out, "intervening").endswith("0 of 4 images with their controls, 3 failed, 1 to do")
    *lines, resuming = [" ".join(row.split()) for row in printed.err.splitlines()[1:]]
    assert resuming == "the command that made the run resumes it"
    assert len(lines) == 4
    assert [row.partition("/")[0] for row in lines] == ["emergence", "intervene", "probe", "probe"]
    assert " and 1 more ValueError: no room for" in lines[0]
    assert " and 2 more ValueError: no room for" in lines[1]
    reasons_shown = sorted(row.partition(" ")[2].replace("step 2", "step 1") for row in lines[2:])
    assert reasons_shown == ["and 1 more step 1 is not finite", "no foreground"]


def test_a_reason_goes_with_its_task(probed):
    """Reasons that an earlier run noted are not shown for tasks that are done or no longer requested."""
    failures.write(probed.store, "experiments", {"emergence/00099": "gone", "transfer/up.3.2/depth": "gone"})
    assert status.read(probed.store.url).failed == {}
    failures.write(probed.store, "experiments", {})
    assert not probed.store.exists(failures.path("experiments"))


def test_the_live_status_is_written_seldom_but_its_last_state_always(half_way, monkeypatch):
    store = storage.open(str(half_way))
    written = []
    monkeypatch.setattr(type(store), "put", lambda self, path, data: written.append(json.loads(data)))
    note = LiveStatusWriter(store, "sample")
    for done in range(50):
        note(Progress(done, 0, 1, 50))
    assert len(written) == 1
    note(TaskFailed("sample/random/00002", 3, 1.0, "poison", final=True))
    note(Progress(49, 1, 0, 50))
    assert [(n["done"], n["failed"], n["seconds_left"]) for n in written[1:]] == [(49, 1, 0.0)]


def test_a_full_disk_loses_the_live_status_and_stops_no_run(half_way, monkeypatch):
    store = storage.open(str(half_way))

    def full(self, path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(store), "put", full)
    LiveStatusWriter(store, "sample")(Progress(1, 0, 1, 2))


@pytest.mark.parametrize(("address", "refused"), [("none", True), ("local", True), ("auto", False)])
def test_a_plan_that_needs_more_memory_than_there_is(address, refused, tiny_pipeline, tmp_path, monkeypatch):
    """On a cluster the workers may have other memory than the driver."""
    output = tmp_path / "out"
    config = configured(tiny_pipeline, output, f"ray.address={address}", "ray.sampling_actors=3")
    monkeypatch.setattr(table, "machine_memory", lambda: 1000)
    planned = table.describe(config)
    assert "network calls" in planned
    assert ("a run would be refused: " in planned) == refused
    if refused:
        with pytest.raises(ValueError, match="buffers of 3 workers need .* smaller sampling.shard"):
            pipeline.prepare(config)
    assert not output.exists()


def test_a_plan_shows_calls_bytes_files_memory_and_hours(sampled, tiny_pipeline, tmp_path, capsys):
    assert main(["plan", "scenes", *settings(tiny_pipeline, tmp_path / "out"), "--rate", "2"]) == 0
    out = capsys.readouterr().out
    layout = storage.open(str(sampled)).layout
    price = storage.budget.price(layout)
    assert out.startswith("about ")
    assert f"network calls     {12 * 15 * 2} " in out
    assert f"files             {price.files}, " in out
    assert f"{format_bytes(price.peak_writer_bytes)} of buffers" in out
    assert "at 2 samples/s each (given with --rate)" in out
    # one image, one move, the control `none` needs no image
    assert line(out, "editing: interventions") == "editing: interventions 1 images with controls 15 0.00 or more"
    for site in layout.sites:
        assert f"  {site.name:16} " in out
    chunks = {
        path: len(data)
        for path, data in stored(sampled).items()
        if path.startswith("activations") and "/activations/c/" in path
    }
    assert sum(chunks.values()) == price.families()["activations.zarr"]


PRICED = {
    "scenes": {
        "sampling": 208 * 15 * 2, "additional sites: conv": 208 * 3 / 2, "additional sites: vae": 0, "transfer": 0,
        "editing: interventions": 16 * 2 * 2 * 3 * 15,
    },
    # images x tasks x directions x moves x (edit and controls) x steps; a setting equal to the main edit is left out
    "causal": {
        "editing: interventions": 40 * 2 * 3 * 5 * 8 * 15, "editing: steps": 8 * 5 * (3 + 2) * 3 * 15,
        "editing: sides": 8 * 2 * 3 * 5 * 2 * 15, "editing: dose": 8 * 5 * 2 * 15,
        "editing: gain": 8 * 5 * 6 * 2 * (1 + 2 + 2) * 15, "editing: second_object": 6 * 4 * 3 * 15,
        "editing: animation": 9 * 2 * 3 * 15, "editing: guidance": 8 * 2 * 3 * (5 + 1) * 15,
    },
    "scenes-full": {"sampling": 208 * 15 * 4, "additional sites: conv": 208 * 15 / 2,
                    "editing: interventions": 20 * 2 * 2 * 5 * 8 * 15},
}  # fmt: skip


@pytest.mark.parametrize("preset", sorted(PRICED))
def test_a_plan_prices_every_stage(preset, tmp_path, capsys):
    assert main(["plan", preset, f"output={tmp_path / 'out'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (start,) = (i for i, text in enumerate(lines) if text.startswith("stage "))
    (end,) = (i for i, text in enumerate(lines) if text.startswith("all network calls"))
    shown = {text.partition("  ")[0]: text.removesuffix(" or more").split()[-2:] for text in lines[start + 1 : end + 1]}
    for name, calls in PRICED[preset].items():
        assert float(shown[name][0]) == pytest.approx(calls), name
    assert sum(float(calls) for calls, _ in list(shown.values())[:-1]) == float(shown["all network calls"][0])
    assert "(assumed; --rate takes a measured one)" in lines[end + 1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [[], ["--gpus", "8"]])
def test_a_plan_that_does_not_fit_the_disk(more, tiny_pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("storage.backends.files.LocalFiles.free", lambda self: 1000)
    words = ["scenes", *settings(tiny_pipeline, tmp_path / "out")]
    assert main(["plan", *words, *more]) == 0
    planned = capsys.readouterr().out
    assert "its disk has 1 kB free" in planned
    assert "sampling" in planned
    assert main(["run", *words]) == 2
    assert "its disk has 1 kB free" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("what", "pair", "bar", "met"),
    [
        ("capture_over_sampling", (1.05, 1.0), {"most": 1.1}, True),
        ("capture_over_sampling", (1.2, 1.0), {"most": 1.1}, False),
        ("write_over_tofile", (0.8, 1.0), {"least": 0.7}, True),
        ("cell_speedup_scenes", (20.0, 1.0), {"least": 30}, False),
        ("cell_speedup_scenes_16x16", (20.0, 1.0), None, None),
    ],
)
def test_every_bench_reports_in_one_shape(what, pair, bar, met, monkeypatch, capsys):
    monkeypatch.setattr(suite, "measure", lambda name: [paired.row(what, "one", "the other", [pair])])
    assert main(["bench", "capture", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["bench", "machine", "rows"]
    assert found["bench"] == "capture"
    assert found["machine"].keys() == {"processor", "cores", "memory_gib", "gpus", "system", "versions"}
    assert socket.gethostname() not in json.dumps(found)
    (row,) = found["rows"]
    assert list(row) == [*paired.KEYS, "bar", "met"]
    assert (row["bar"], row["met"], row["pairs"]) == (bar, met, [list(pair)])
    assert main(["bench", "capture"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{what}: ")
    assert printed.rstrip().endswith({True: ": met", False: ": missed", None: " s)"}[met])


@pytest.mark.slow
def test_the_benches_of_sampling_measure_the_scenes_model():
    (row,) = sampling.bench_capture(count=1, pairs=1)
    assert tuple(row) == paired.KEYS
    assert row["what"] == "capture_over_sampling"
    assert row["ratio"] == pytest.approx(row["seconds"][0] / row["seconds"][1])
    assert 0.3 < row["ratio"] < 10
    rows = {row["what"]: row for row in sampling.bench_codecs(count=1, steps=(15,), repeats=1)}
    assert {"codec_none", "codec_zstd", "codec_blosc-lz4", "codec_blosc-zstd"} <= set(rows)
    assert all(set(paired.KEYS) < set(row) for row in rows.values())
    assert rows["codec_none"]["ratio"] == pytest.approx(1, abs=0.01)
    assert all(0.9 < row["ratio"] < 3 for row in rows.values())
