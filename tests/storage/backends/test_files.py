"""Atomic files: kills, full and read-only disks, temporary files, compare-and-set, S3."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr

import storage
from storage import Store
from storage.backends import open_files
from storage.backends.files import Files, LocalFiles
from support.storage_fakes import contents, fill, tiny_layout, zarr_store

HERE = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """Empty files on disk and in memory."""
    local = request.param == "local"
    return open_files(str(tmp_path / "x") if local else f"memory://{uuid.uuid4().hex}")


def child(code: str, *arguments: str, **options: object) -> subprocess.Popen:
    """A Python process that can import this project and these tests' fakes."""
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **options)  # fmt: skip


def test_put_get_list_delete(files: Files):
    for path in ("a/b/c", "a/bc", "d"):
        files.put(path, [path.encode(), np.frombuffer(b"!!", np.uint8)])
    assert files.get("a/bc") == b"a/bc!!"
    assert files.list() == {"a/b/c": 7, "a/bc": 6, "d": 3}
    assert list(files.list("a/b")) == ["a/b/c", "a/bc"]
    assert list(files.list("a/b/")) == ["a/b/c"]
    assert files.list("nothing/") == {}
    assert [files.size(path) for path in ("d", "e", "a/b/c", "a")] == [3, None, 7, None]
    files.put("d", [b"new"])
    files.delete(["a/b/c", "e"])
    assert files.list() == {"a/bc": 6, "d": 3}
    with pytest.raises(FileNotFoundError):
        files.get("a/b/c")


@pytest.mark.parametrize("shards", [3, 12])  # a few are listed one by one
def test_chunks_of_another_size_or_absent_are_not_intact(files: Files, shards: int):
    arrays = ("images.zarr/x/images", "activations.zarr/x/c/activations")  # a site may be called c
    groups = [{f"{array}/c/{shard}/0/0": 3 for array in arrays} for shard in range(shards)]
    for path in (path for group in groups for path in group):
        files.put(path, [b"abc"])
    assert list(files.intact(groups)) == [True] * shards
    files.put("images.zarr/x/images/c/1/0/0", [b"abcd"])
    files.delete(["activations.zarr/x/c/activations/c/2/0/0"])
    assert [shard for shard, whole in enumerate(files.intact([*groups, {}])) if not whole] == [1, 2]


def test_create_and_swap_succeed_only_once(files: Files):
    assert not files.swap("x", b"", b"1")
    assert files.create("x", b"1")
    assert not files.create("x", b"2")
    assert files.swap("x", b"1", b"3")
    assert not files.swap("x", b"1", b"4")
    assert files.get("x") == b"3"


def test_only_one_of_many_threads_creates_and_one_swaps(files: Files):
    files.create("swapped", b"0")
    wins: list[str] = []

    def contend(number: int) -> None:
        if files.create("created", b"%d" % number):
            wins.append("created")
        if files.swap("swapped", b"0", b"%d" % (number + 1)):
            wins.append("swapped")

    threads = [threading.Thread(target=contend, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == ["created", "swapped"]


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", ""])
def test_paths_cannot_leave_the_store(files: Files, path: str):
    with pytest.raises(ValueError, match="must be relative to the store"):
        files.put(path, [b""])


def test_unknown_schemes_are_refused():
    with pytest.raises(ValueError, match="scheme 'ftp' is not known"):
        open_files("ftp://host/x")


def test_file_urls_and_paths_are_the_same(tmp_path: Path):
    assert open_files(f"file://{tmp_path}/a").url == open_files(f"{tmp_path}/a").url


def test_deleting_removes_empty_folders_but_not_the_store(tmp_path: Path):
    files = LocalFiles(tmp_path)
    files.put("a/b/c", [b"1"])
    files.put("a/d", [b"2"])
    files.delete(["a/b/c"])
    assert not (tmp_path / "a/b").exists()
    files.delete(["a/d"])
    assert tmp_path.is_dir()
    assert not (tmp_path / "a").exists()


def test_large_parts_are_written_and_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The system may write or read fewer bytes than requested in one call."""
    writev, readv = os.writev, os.readv
    monkeypatch.setattr(os, "writev", lambda fd, v: writev(fd, [bytes(v[0])[:1000]]))
    monkeypatch.setattr(os, "readv", lambda fd, v: readv(fd, [v[0][:777]]))
    files = LocalFiles(tmp_path)
    body = np.random.default_rng(0).integers(0, 256, 20_001, dtype=np.uint8)
    files.put("x", [body, b"tail"])
    out, tail = np.empty_like(body), np.empty(4, np.uint8)
    size, crc = files.read_chunk("x", out, tail)
    assert (size, tail.tobytes()) == (20_005, b"tail")
    np.testing.assert_array_equal(out, body)
    assert crc == google_crc32c.value(body.tobytes())


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = LocalFiles(tmp_path)
    files.put("x", [b"old"])

    def full(fd: int, views: list) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(OSError, match="No space left"):
        files.put("x", [b"new"])
    assert files.get("x") == b"old"
    assert files.partials() == []


def test_only_half_written_files_are_removed(tmp_path: Path):
    store = Store.create(str(tmp_path), tiny_layout(), durable=False)
    before = contents(store)
    (tmp_path / ".partial").mkdir(exist_ok=True)
    (tmp_path / ".partial/abc").write_bytes(b"half")
    assert store.remove_partial_files() == [".partial/abc"]
    assert contents(store) == before
    assert store.remove_partial_files() == []


@pytest.mark.parametrize("count", [1, 40])
def test_syncing_reaches_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int):
    """One file: fsync of it and its folders; many: one syncfs, or fsync where there is none."""
    files = LocalFiles(tmp_path)
    paths = [f"a/{n}/x" for n in range(count)]
    for path in paths:
        files.put(path, [b"1"])
    monkeypatch.setattr("storage.backends.files._syncfs", lambda root: False)
    synced: list[str] = []
    monkeypatch.setattr("storage.backends.files._fsync", synced.append)
    files.sync(paths)
    expected = {str(tmp_path), f"{tmp_path}/a"}
    for path in paths:
        expected |= {f"{tmp_path}/{path}", os.path.dirname(f"{tmp_path}/{path}")}
    assert set(synced) == expected
    monkeypatch.undo()
    files.sync(paths)


FILL = """
import sys
from storage import Store
from support.storage_fakes import fill_shard, tiny_layout
store = Store.create(sys.argv[1], tiny_layout(samples=40), durable=False)
print("ready", flush=True)
for variant in store.layout.variants:
    for shard in range(store.layout.shards):
        if shard not in store.completed("sample", variant):
            fill_shard(store, variant, shard)
"""


def test_kills_leave_complete_chunks_and_a_rerun_gives_the_same_bytes(tmp_path: Path):
    """SIGKILL at three seeded moments; each rerun redoes only shards without a record."""
    delays = np.random.default_rng(3).uniform(0.0, 0.05, 3)
    store, killed = None, 0
    for delay in delays:
        process = child(FILL, str(tmp_path / "killed"))
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        store = storage.open(str(tmp_path / "killed"))
        assert not [d for d in storage.audit.verify(store) if d.kind != "partial"]
    assert killed
    assert store is not None
    done = {
        path: os.stat(tmp_path / "killed" / path).st_mtime_ns
        for _, record in store.records.read("shards/")
        for path in record.chunks
    }
    process = child(FILL, store.url)
    assert process.communicate()[1] == ""
    store.remove_partial_files()
    undisturbed = Store.create(str(tmp_path / "undisturbed"), tiny_layout(samples=40), durable=False)
    assert contents(store) == contents(fill(undisturbed))
    assert all(os.stat(f"{store.url}/{path}").st_mtime_ns == t for path, t in done.items())


FULL_DISK = """
import sys
from storage import Store
from support.storage_fakes import fill_shard, tiny_layout
store = Store.create(sys.argv[1], tiny_layout(samples=400, shard=40), durable=False)
try:
    for shard in range(10):
        fill_shard(store, "trained", shard)
except OSError as error:
    print(error.errno, sorted(store.completed("sample", "trained")), store.files.partials())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_an_error_and_complete_shards_stay_complete(tmp_path: Path):
    mount = f'mount -t tmpfs -o size=600k none {tmp_path} && exec "$@"'
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", FULL_DISK,
         str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no private mounts here: {done.stderr}")
    errno, _, rest = done.stdout.partition(" ")
    assert errno == "28", done.stderr
    assert rest.startswith("[0")
    assert rest.strip().endswith("[]")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_read_only_store_is_an_error(tmp_path: Path):
    store = fill(Store.create(str(tmp_path / "out"), tiny_layout(), durable=False), ["trained"])
    before = contents(store)
    code = (
        "import os, sys, numpy, storage\n"
        "store = storage.open(sys.argv[1])\n"
        "assert store.read_images('trained').shape[0] == 10\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: store.write_images('trained', 0, numpy.zeros((4, 8, 6, 3), 'uint8'))\n"
        "except OSError as error: print(error.errno)\n"
    )
    out, err = child(code, store.url).communicate()
    assert out.strip() == "13", err
    assert contents(store) == before


@pytest.mark.slow
def test_s3_serves_the_same_store_through_outages(flaky_s3: list[int], tmp_path: Path):
    import urllib.request

    request = urllib.request.Request(f"{os.environ['AWS_ENDPOINT']}/bucket", method="PUT")
    urllib.request.urlopen(request).close()
    names = ["trained", "random@7"]
    layout = tiny_layout(samples=6, steps=2, variants=tuple(names))
    store = Store.create("s3://bucket/a/run", layout)
    flaky_s3 += [503, 500, 503]
    fill(store, names)
    assert flaky_s3 == []
    local = fill(Store.create(str(tmp_path), layout, durable=False), names)
    assert contents(store) == contents(local)
    flaky_s3 += [500]
    again = storage.open("s3://bucket/a/run")
    assert again.completed("sample", "trained") == {0, 1}
    np.testing.assert_array_equal(again.read_images("trained"), local.read_images("trained"))
    for name in names:
        assert np.isfinite(
            zarr.open(zarr_store(again), path=f"activations.zarr/{name}/mid.0/activations", mode="r")[:]
        ).all()
    with store.lease("one") as lease:
        assert lease.beat()
        with pytest.raises(storage.LeaseHeld, match="in use by one"):
            store.lease("two").__enter__()
    assert storage.audit.verify(store) == []
