"""Digests of contents: every byte counts, unchanged large files are read once, and links are followed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from probing import contents


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scenesweep" / "digests.json"


def large(path: Path, age: float = 60) -> Path:
    path.write_bytes(os.urandom(contents.LARGE) + b"end")
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_last_byte_of_a_large_file_counts(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED", -1.0)
    path = large(tmp_path / "w")
    first = contents.digests({"w": path})
    assert first == {"w": sha(path)}
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    os.utime(path, (path.stat().st_mtime - 60,) * 2)  # a tool that restores times
    assert contents.digests({"w": path}) == {"w": sha(path)} != first


def test_unchanged_large_files_are_read_once(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED", -1.0)
    path, small = large(tmp_path / "w"), tmp_path / "small"
    small.write_text("x")
    found = contents.digests({"w": path, "s": small})
    assert cache.exists()
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert contents.digests({"w": path, "s": small}) == found


def test_a_file_that_may_still_change_is_not_kept(cache, tmp_path):
    path = large(tmp_path / "w", age=0)
    assert contents.digests({"w": path}) == {"w": sha(path)}
    assert not cache.exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}'])
def test_a_damaged_cache_is_no_obstacle(cache, tmp_path, text):
    cache.parent.mkdir(parents=True)
    cache.write_text(text)
    path = large(tmp_path / "w")
    assert contents.digests({"w": path}) == {"w": sha(path)}


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(contents, "SETTLED", -1.0)
    path = large(tmp_path / "w")
    assert contents.digests({"w": path}) == {"w": sha(path)}


def test_trees_follow_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "tree" / "b.txt").symlink_to(tmp_path / "real" / "a.txt")
    assert list(contents.tree(tmp_path / "tree")) == ["b.txt", "linked/a.txt"]
    assert list(contents.tree(tmp_path / "real" / "a.txt")) == ["a.txt"]
