"""The W&B mirror: W&B's own reader reads it back, no run is written twice, and no W&B failure stops a sweep."""

from __future__ import annotations

import http.server
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import storage
from support.report_store import CONFIG, Made, make_store
from sweeps.analysis.tables import load
from sweeps.report import thumbnails
from sweeps.report.build import Drawn, draw
from sweeps.runtime.layout import PAGE, wandb_group
from sweeps.tracking import mirror as mirror_module
from sweeps.tracking.mirror import MARKER, Marker, Mirrored, Writer, mirror
from sweeps.tracking.runs import plan
from sweeps.tracking.summary import artifacts

SITES = ("mid.0", "up.2.1", "up.3.0")
SMALL = Made(train=2, test=4, sites=SITES, steps=(1, 8, 15), extras=False, pictures=False)
RUNS = 2 * len(SITES) + 1
"""runs of a small sweep, with its summary"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> storage.Store:
    return make_store(tmp_path_factory.mktemp("tracked"), Made(train=4, test=6))


@pytest.fixture(scope="module")
def drawn(store: storage.Store) -> Drawn:
    return draw(load(store, CONFIG), store)


@pytest.fixture(scope="module")
def mirrored(store: storage.Store, drawn: Drawn) -> Mirrored:
    return mirror(store, CONFIG, drawn=drawn)


@pytest.fixture
def fresh(tmp_path: Path) -> storage.Store:
    return make_store(tmp_path, SMALL)


def directories(store: storage.Store) -> list[Path]:
    return sorted(Path(store.url).glob("wandb/offline-run-*"))


def inspect(store: storage.Store, *parts: object) -> dict[str, Any]:
    """One run, read by W&B's own reader."""
    ident = load(store, CONFIG).wandb_id(*parts)
    (directory,) = Path(store.url).glob(f"wandb/offline-run-*-{ident}")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json"]
    done = subprocess.run([*command, str(directory)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def history(store: storage.Store, *parts: object) -> list[dict[str, Any]]:
    """The logged rows of one run, from W&B's own reader."""
    ident = load(store, CONFIG).wandb_id(*parts)
    (directory,) = Path(store.url).glob(f"wandb/offline-run-*-{ident}")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    return [r for r in records if r.get("type") == "history"]


def scores(store: storage.Store, variant: str, site: str, step: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in store.table("probes").to_pylist():
        if (row["experiment"], row["variant"], row["site"], row["step"], row["control"]) == (
            "grid", variant, site, step, "none",
        ):  # fmt: skip
            found |= {k: row[k] for k in ("dice", "rmse") if row[k] is not None}
    return found


# -- content


def test_one_run_per_variant_and_site_and_a_summary(store: storage.Store, mirrored: Mirrored) -> None:
    assert mirrored == Mirrored(written=33)
    assert len(directories(store)) == 33


def test_a_site_run_reads_back_with_its_scores(store: storage.Store, mirrored: Mirrored) -> None:
    run = inspect(store, "trained", "up.2.1")
    assert (run["name"], run["state"]) == ("trained up.2.1", "finished")
    assert run["project"] == "scenesweep"
    config = run["config"]
    assert (config["variant"], config["site"], config["side"]) == ("trained", "up.2.1", "decoder")
    assert config["manifest"]["stages"]["probe"] == "c7d9e0f2"
    assert config["sweep"]["name"] == "scenes"
    expected = scores(store, "trained", "up.2.1", 15)
    summary = run["summary"]
    assert summary["denoising_step"] == 15
    assert summary["saliency/dice"]["last"] == pytest.approx(expected["dice"])
    assert summary["depth/rmse"]["last"] == pytest.approx(expected["rmse"])
    by_step = [scores(store, "trained", "up.2.1", step) for step in range(1, 16)]
    assert summary["saliency/dice"]["max"] == pytest.approx(max(row["dice"] for row in by_step))
    assert summary["depth/rmse"]["min"] == pytest.approx(min(row["rmse"] for row in by_step))
    assert summary["saliency/position/dice"]["last"] < summary["saliency/dice"]["last"]
    assert not [name for name in summary if name.startswith("epoch")]
    rows = [r for r in store.table("probes").to_pylist() if (r["variant"], r["site"]) == ("trained", "up.2.1")]
    grid = [r["seconds"] or 0 for r in rows if r["experiment"] == "grid" and r["seed"] == 0]
    assert summary["duration_s"] == pytest.approx(sum(grid))
    assert (config["layer_index"], config["grid"], config["tokens"]) == (11, 8, 64)
    assert config["output"] == store.url
    assert config["report"] == f"{store.url}/report/index.html"


def test_a_site_run_has_one_row_per_denoising_step_and_one_per_epoch(store: storage.Store, mirrored: Mirrored) -> None:
    rows = history(store, "random", "mid.0")
    assert len(rows) == 15 + 3
    assert "epochs/step03/depth/train_loss" in json.dumps(rows[15])
    text = json.dumps(rows[2])
    assert repr(scores(store, "random", "mid.0", 3)["dice"])[:12] in text


def test_the_summary_run_has_table_figures_examples_and_reference(store: storage.Store, mirrored: Mirrored) -> None:
    run = inspect(store, "summary")
    summary = run["summary"]
    rows = store.table("probes").num_rows
    assert summary["tables/probes"]["nrows"] == rows
    assert summary["tables/examples"]["nrows"] == 4
    assert "figures/heatmap-saliency-trained" in summary
    assert "figures/edits-depth-weights-controls" in summary
    for name in ("emergence-depth", "vae-saliency", "transfer-depth-up-3-0", "selectivity-saliency"):
        assert f"figures/{name}" in summary
    assert summary["claims/linear-depth"] == "not tested"  # this run holds too few test images
    assert summary["depth/best_baseline"] in ("floor", "random", "position", "surface", "surface_point", "surface_rgb")
    assert summary["depth/gain_over_best_baseline"] > 0
    assert summary["tables/claims"]["nrows"] == 5
    assert summary["saliency/best_site"] == "up.3.0"
    assert summary["depth/gap_random"] > 0
    (directory,) = Path(store.url).glob(f"wandb/offline-run-*-{run['run_id']}")
    (table,) = directory.glob("files/media/table/tables/probes*.table.json")
    found = json.loads(table.read_text())
    assert len(found["data"]) == rows
    dice = found["columns"].index("dice")
    assert sum(r[dice] is not None for r in found["data"]) == rows // 2


def test_the_summary_run_shows_every_figure_of_the_report_with_its_title(
    store: storage.Store, mirrored: Mirrored, drawn: Drawn
) -> None:
    summary = inspect(store, "summary")["summary"]
    titles = {f"figures/{p.name}": p.title for p in drawn.figures}
    shown = {name: value for name, value in summary.items() if name.startswith("figures/")}
    assert {name: value["caption"] for name, value in shown.items()} == titles
    assert len(shown) == drawn.html.count('role="img" aria-labelledby')
    for panel in (drawn.figures[0], drawn.figures[-1]):
        assert (pixels(store, f"figures/{panel.name}") == panel.png()).all()


def test_the_summary_run_shows_every_picture_of_the_report(
    store: storage.Store, mirrored: Mirrored, drawn: Drawn
) -> None:
    strips = drawn.strips
    assert sum(len(strip.pictures) for strip in strips) == drawn.html.count("<figure><img") > 50
    assert {strip.section for strip in strips} == {
        "explorer", "images", "examples", "emergence", "smoothness", "interventions",
    }  # fmt: skip
    summary = inspect(store, "summary")["summary"]
    for section in {strip.section for strip in strips}:
        words = [strip.words for strip in strips if strip.section == section]
        assert summary[f"pictures/{section}"]["captions"] == words
    edited = next(strip for strip in strips if strip.section == "interventions")
    assert edited.title.startswith("Edited pictures, ")
    assert ": before | its label | requested | after" in edited.words
    assert next(s for s in strips if s.section == "images").title == "What the model generates"
    sheets = thumbnails.sheets([strip.pictures for strip in strips[:2]])
    assert len({sheet.shape for sheet in sheets}) == 1
    photo = sheets[0][:, : thumbnails.SHEET_HEIGHT].astype(float)
    kept = np.asarray(Image.fromarray(store.read_images("trained", [first_test(store)])[0]).resize((128, 128)))
    assert np.abs(photo - kept).mean() < 12


def test_store_probes_and_report_are_artifacts_that_name_their_origin(store: storage.Store, mirrored: Mirrored) -> None:
    store.put(PAGE, b"<!doctype html>")
    run = load(store, CONFIG)
    found = {artifact.type: artifact for artifact in artifacts(run, store)}
    assert set(found) == {"store", "probes", "report"}
    assert found["report"].metadata["store"] == found["store"].name.partition(":")[0] == f"{run.group}-store"
    assert list(found["report"].manifest.entries) == ["index.html"]
    assert len(found["probes"].manifest.entries) == len(store.list("probes/"))


def test_two_outputs_of_one_name_are_two_groups(store: storage.Store, fresh: storage.Store) -> None:
    groups = {load(s, CONFIG).group for s in (store, fresh)}
    assert len(groups) == 2
    assert all(group.startswith("scenes-") for group in groups)
    assert len(wandb_group("n" * 120, store.url)) <= 128


def first_test(store: storage.Store) -> int:
    return int(min(r["sample"] for r in store.curation().to_pylist() if r["split"] == "test"))


def pixels(store: storage.Store, name: str) -> np.ndarray:
    """A logged picture of the summary run."""
    ident = load(store, CONFIG).wandb_id("summary")
    (path,) = Path(store.url).glob(f"wandb/offline-run-*-{ident}/files/media/images/{name}_*.png")
    return np.asarray(Image.open(path).convert("RGB"))


def test_nothing_secret_or_local_is_recorded(store: storage.Store, mirrored: Mirrored) -> None:
    names = {p.name for d in directories(store) for p in d.rglob("*") if p.is_file()}
    assert not names & {"requirements.txt", "wandb-metadata.json", "diff.patch"}


# -- repeated calls


def test_a_second_mirror_writes_nothing(store: storage.Store, mirrored: Mirrored) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path(store.url).glob("wandb/**/*")}
    assert mirror(store, CONFIG) == Mirrored(kept=33)
    assert {p: p.stat().st_mtime_ns for p in Path(store.url).glob("wandb/**/*")} == before


def test_only_what_changed_is_written_again(fresh: storage.Store) -> None:
    """Lost files, changed rows and a lost marker, as after a kill; no run is ever doubled."""
    assert mirror(fresh, CONFIG).written == RUNS
    shutil.rmtree(directories(fresh)[4])
    assert mirror(fresh, CONFIG) == Mirrored(written=1, kept=RUNS - 1)

    row = fresh.table("probes").to_pylist()[0]
    fresh.append("probes", [{**row, "train_loss": 0.125, "attempt": 2}])
    assert mirror(fresh, CONFIG) == Mirrored(written=2, kept=RUNS - 2)  # its run and the summary
    assert len(directories(fresh)) == RUNS
    run = inspect(fresh, row["variant"], row["site"])
    logged = history(fresh, row["variant"], row["site"])
    assert "0.125" in json.dumps(logged)
    assert run["state"] == "finished"

    (Path(fresh.url) / "wandb" / MARKER).unlink()
    assert mirror(fresh, CONFIG).written == RUNS
    assert len(directories(fresh)) == RUNS


# -- the plan


def test_ids_are_those_of_the_sweep_stage_and_part(store: storage.Store, fresh: storage.Store) -> None:
    run, same = (load(s, CONFIG) for s in (store, fresh))
    assert run.wandb_id("trained", "mid.0") == same.wandb_id("trained", "mid.0")
    other = load(store, {**CONFIG, "name": "else"})
    ids = {r.wandb_id(v, "mid.0") for r in (run, other) for v in ("trained", "random")}
    assert len(ids) == 4
    assert all(len(i) <= 64 for i in ids)


def test_the_x_axis_is_the_denoising_step_or_with_a_run_per_probe_the_epoch(fresh: storage.Store) -> None:
    run = load(fresh, CONFIG)
    for runs, axis in (("site", "denoising_step"), ("cell", "epoch")):
        planned = plan(run, runs)
        assert {each.axis for each in planned} == {axis}
        assert all(axis in row for each in planned for row in each.history)


def test_a_run_per_cell_has_epochs_and_final_scores(fresh: storage.Store) -> None:
    cells = plan(load(fresh, CONFIG), "cell")
    assert len(cells) == len({c.id for c in cells}) == 36
    cell = next(c for c in cells if c.name == "trained up.3.0 step 15 depth none seed 0")
    assert [r["epoch"] for r in cell.history] == [1, 2, 3]
    assert cell.history[1]["train_loss"] == pytest.approx(0.5)
    assert cell.summary["rmse"] == pytest.approx(scores(fresh, "trained", "up.3.0", 15)["rmse"])
    assert cell.config["step"] == 15


def test_unknown_settings_are_refused(fresh: storage.Store) -> None:
    with pytest.raises(ValueError, match=r"tracking\.mode='cloud'"):
        mirror(fresh, CONFIG, mode="cloud")
    with pytest.raises(ValueError, match=r"tracking\.runs='step'"):
        mirror(fresh, CONFIG, runs="step")


def test_disabled_writes_nothing(fresh: storage.Store) -> None:
    assert mirror(fresh, CONFIG, mode="disabled") == Mirrored()
    assert not (Path(fresh.url) / "wandb").exists()


# -- failures of W&B


def broken(monkeypatch: pytest.MonkeyPatch, init: Any) -> None:
    fake = ModuleType("wandb")
    fake.Settings = lambda **_: None  # type: ignore[attr-defined]
    fake.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)


def test_without_wandb_there_is_one_warning_line(
    fresh: storage.Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.WARNING):
        result = mirror(fresh, CONFIG)
    assert "wandb" in result.problem
    assert len(caplog.records) == 1
    assert "\n" not in caplog.records[0].getMessage()


def test_a_failing_wandb_never_raises(
    fresh: storage.Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("service\ndied")

    broken(monkeypatch, init)
    with caplog.at_level(logging.WARNING):
        result = mirror(fresh, CONFIG)
    assert result.problem == "RuntimeError: service died"
    assert len(caplog.records) == 1


def test_a_hanging_wandb_is_abandoned(fresh: storage.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    broken(monkeypatch, lambda **_: released.wait(30))
    started = time.perf_counter()
    result = mirror(fresh, CONFIG, limit_s=0.5)
    released.set()
    assert result.problem.startswith("TimeoutError: ")
    assert time.perf_counter() - started < 10


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A fake W&B server that answers every request with 429; yields the requested paths."""
    requested: list[str] = []

    class Limited(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requested.append(self.path)
            self.send_response(429)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT = do_POST

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Limited) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{found.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield requested
        found.shutdown()


@pytest.mark.slow
def test_a_server_that_limits_rates_does_not_delay_the_sweep(fresh: storage.Store, server: list[str]) -> None:
    assert mirror(fresh, CONFIG).written == RUNS
    started = time.perf_counter()
    result = mirror(fresh, CONFIG, mode="online", limit_s=12)
    assert time.perf_counter() - started < 60
    assert server
    assert "wandb sync" in result.problem
    assert (result.kept, result.sent, len(directories(fresh))) == (RUNS, 0, RUNS)
    marker = Marker(Path(fresh.url) / "wandb")
    assert marker.unsent(list(marker.runs)) == list(marker.runs)


def test_an_unreachable_server_is_named(fresh: storage.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.tracking.mirror.SYNC", ("-c", "raise SystemExit('connection refused')"))
    result = mirror(fresh, CONFIG, mode="online")
    assert result.problem.startswith("ConnectionError: connection refused; ")
    assert (result.written, result.sent) == (RUNS, 0)


def test_sent_runs_are_not_sent_again(fresh: storage.Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "sent"
    script = f"import sys; open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    monkeypatch.setattr("sweeps.tracking.mirror.SYNC", ("-c", script))
    assert mirror(fresh, CONFIG, mode="online") == Mirrored(written=RUNS, sent=RUNS)
    assert mirror(fresh, CONFIG, mode="online") == Mirrored(kept=RUNS)
    row = fresh.table("probes").to_pylist()[0]
    fresh.append("probes", [{**row, "train_loss": 0.125, "attempt": 2}])
    assert mirror(fresh, CONFIG, mode="online").sent == 2
    first, second = log.read_text().splitlines()
    assert len(first.split()) == RUNS
    assert len(second.split()) == 2


@pytest.mark.slow
def test_a_full_mirror_is_quick(full_report) -> None:
    store, drawn, _ = full_report
    started = time.process_time()
    assert mirror(store, CONFIG, drawn=drawn).written == 33
    assert time.process_time() - started < 16  # about 8 s on a quiet core, with the artifacts


# -- hundreds of runs


def test_the_folder_is_listed_once_for_all_runs(fresh: storage.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = load(fresh, CONFIG), Path(fresh.url) / "wandb"
    planned = plan(run, "site")[:3]
    listed: list[str] = []
    glob = Path.glob

    def counted(self: Path, pattern: str, **options: Any) -> Iterator[Path]:
        listed.append(pattern)
        return glob(self, pattern, **options)

    monkeypatch.setattr(Path, "glob", counted)
    for _ in range(2):  # the second time in the place of the first
        writer = Writer(run, folder)
        written = [writer.write(one) for one in planned]
    assert sum("offline-run" in pattern for pattern in listed) == 2
    assert sorted(written) == directories(fresh)


def test_runs_written_before_a_failure_are_kept(fresh: storage.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of runs may take longer than the time limit; the next call goes on after them."""
    write, count = Writer.write, iter(range(100))

    def failing(self: Writer, planned: Any) -> Path:
        if next(count) == 5:
            raise OSError("no answer")
        return write(self, planned)

    monkeypatch.setattr(mirror_module, "SAVED_EVERY", 2)
    monkeypatch.setattr(Writer, "write", failing)
    assert "no answer" in mirror(fresh, CONFIG).problem
    assert len(Marker(Path(fresh.url) / "wandb").runs) == 4
