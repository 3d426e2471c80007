"""Sampling with a full disk, a store without write permission and a failing S3 server: named, retried or redone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest

import storage
from cluster import InProcess
from support.tiny_runs import configured, settings, stored
from sweeps import pipeline
from sweeps.cli.main import main
from sweeps.stages import sample

HERE = Path(__file__).resolve().parents[1]
DATA = ("activations.zarr/trained", "images.zarr/trained", "latents.zarr/trained")

FULL_DISK = """
import json, os, sys
from pathlib import Path
from support.tiny_runs import configured
from cluster import InProcess
from storage import budget
from sweeps import pipeline
from sweeps.stages import sample

model, folder, target = sys.argv[1:]
config = configured(model, f"{folder}/out", "sampling.variants=[trained]")
run = pipeline.prepare(config)
shard = budget.price(run.store.layout).total // run.store.layout.shards
disk = os.statvfs(folder)
ballast = Path(folder) / "ballast"
ballast.write_bytes(bytes(disk.f_bavail * disk.f_frsize - shard * 3 // 2))
outcome = sample.execute(run, InProcess(retries=0), [], sample.missing(run))
done = sorted(run.store.completed("sample", "trained"))
try:
    refused = str(pipeline.execute(config, ("sample",)))
except ValueError as error:
    refused = str(error)
ballast.unlink()
again = pipeline.execute(config, ("sample",))
import shutil; shutil.copytree(f"{folder}/out", target)
print(json.dumps([done, outcome.failed, refused, again.failed]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_fails_its_shards_by_name_and_they_resume_once_there_is_room(sampled, tiny_pipeline, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=96m none {disk} && exec "$@"'
    code = [sys.executable, "-c", FULL_DISK, str(tiny_pipeline), str(disk), str(tmp_path / "out")]
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", *code],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no private mounts here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    complete, failed, refused, again = json.loads(done.stdout.splitlines()[-1])
    assert complete == [0]
    assert sorted(failed) == ["sample/trained/00001", "sample/trained/00002"]
    assert all("No space left on device" in reason for reason in failed.values()), failed
    assert "its disk has" in refused
    assert again == {}
    assert storage.audit.verify(storage.open(str(tmp_path / "out"))) == []
    assert stored(tmp_path / "out", DATA) == stored(sampled, DATA)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_store_without_write_permission_is_refused(sampled, tiny_pipeline):
    """Root ignores file modes, so a child process becomes another user; no byte changes."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        shutil.copytree(sampled, output)
        os.chmod(folder, 0o755)
        (output / "shards" / "sample" / "random" / "00001.json").unlink()
        before = stored(output)
        words = ["sample", "scenes", *settings(tiny_pipeline, output)]
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.setgid(65534)
            os.setuid(65534)
            os.dup2(writing, 2)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            os._exit(main(words))
        os.close(writing)
        error = os.fdopen(reading).read()
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 2, error
        assert f"output: cannot write to {output}" in error
        assert stored(output) == before


@pytest.mark.slow
def test_sampling_into_s3_survives_an_outage(flaky_s3, sampled, tiny_pipeline, tmp_path, monkeypatch):
    request = urllib.request.Request(f"{os.environ['AWS_ENDPOINT']}/bucket", method="PUT")
    urllib.request.urlopen(request).close()
    outages = []
    write = sample.SampleWorker._write_activation

    def write_with_outage(self, task, site, step, values):
        if (site, step) == ("mid.0", 5):
            outages.append(len(flaky_s3))
            flaky_s3.extend([503, 500, 503, 500, 503, 500])
        write(self, task, site, step, values)

    monkeypatch.setattr(sample.SampleWorker, "_write_activation", write_with_outage)
    few = ("prompts.count=4", "sampling.variants=[trained]", "sampling.sites=[mid.0,up.2.1]", "interventions.tasks=[]")
    config = configured(tiny_pipeline, "s3://bucket/run", *few)
    result = pipeline.execute(config, ("sample",))
    assert result.failed == {}
    assert outages == [0]
    assert flaky_s3 == []
    found = stored("s3://bucket/run", DATA)
    local = stored(sampled, ("activations.zarr/trained/mid.0", "activations.zarr/trained/up.2.1", *DATA[1:]))
    chunks = {path for path in local if "/c/0/" in path}
    metadata = storage.open("s3://bucket/run").layout.documents()
    assert {path for path in found if "/c/" in path and path not in metadata} == chunks
    assert all(found[path] == local[path] for path in chunks)
    assert storage.audit.verify(storage.open("s3://bucket/run")) == []


def test_a_failure_is_reported_when_the_disk_cannot_record_it(sampled, tiny_pipeline, tmp_path, monkeypatch):
    output = tmp_path / "full"
    shutil.copytree(sampled, output)
    (output / "shards" / "sample" / "random" / "00001.json").unlink()
    run = pipeline.prepare(configured(tiny_pipeline, output))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(run.store), "fail", full)
    monkeypatch.setattr(sample.SampleWorker, "__call__", full)
    outcome = sample.execute(run, InProcess(retries=0), [], sample.missing(run))
    assert outcome.failed == {"sample/random/00001": "OSError: [Errno 28] No space left on device"}


def test_a_disk_error_in_the_driver_is_one_line_and_code_1(monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "out/costs.json")

    monkeypatch.setattr(pipeline, "execute", full)
    assert main(["sample", "scenes"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "scenesweep sample: [Errno 28] No space left on device: 'out/costs.json'",
        "resume with: scenesweep sample scenes",
    ]
    monkeypatch.setattr(pipeline, "execute", lambda *_: {}["a programming error"])
    with pytest.raises(KeyError):
        main(["sample", "scenes"])
