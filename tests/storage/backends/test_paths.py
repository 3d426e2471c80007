"""Paths and URLs that users give: every character stands for itself, except `~`."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.backends import LocalFiles, local_folder, local_path, open_files, without_slash
from storage.backends.objects import ObjectFiles

SPECIAL = "guidance=3 #1 [a] 100% ?é😀"


def test_only_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a b#1") == tmp_path / "a b#1"
    assert local_path(SPECIAL) == Path(SPECIAL)
    assert open_files("~/run").url == str(tmp_path / "run")
    assert local_folder(f"file://{tmp_path}/{SPECIAL}") == tmp_path / SPECIAL
    assert local_folder("s3://bucket/run") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "labels.x is empty"),
        ("a\nb", r"labels.x='a\\nb': .*control characters"),
        ("a\x00b", "control characters"),
        ("a\udc80", "control characters"),
        ("$SCRATCH/run", r"labels.x=\$SCRATCH/run: \$SCRATCH is not expanded here"),
        ("runs/${NAME}", r"\$\{ is not expanded"),
        ("x" * 300, "labels.x=xxx.*too long"),
        ("é" * 150, "too long"),
        ("a/" * 3000, "too long"),
        ("~nobody-has-this-name/x", "labels.x=~nobody-has-this-name/x: "),
    ],
)
def test_what_cannot_be_a_path_is_refused_with_the_key(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        local_path(text, "labels.x")


def test_a_store_may_have_any_name(tmp_path: Path) -> None:
    files = open_files(f"{tmp_path}/{SPECIAL}")
    assert isinstance(files, LocalFiles)
    files.put("a/b", [b"1"])
    assert (tmp_path / SPECIAL / "a" / "b").read_bytes() == b"1"
    assert list(files.list()) == ["a/b"]


@pytest.mark.parametrize("name", ["run#1", "run?a=1", "run=3 b", "run%20b", "😀"])
def test_a_name_in_a_bucket_is_not_cut_at_special_characters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(variable, "x")
    files = ObjectFiles(f"s3://bucket/{name}")
    assert files.store.prefix == name.replace("%20", " ")


@pytest.mark.parametrize(
    ("url", "expected"), [("runs/x/", "runs/x"), ("s3://b/x//", "s3://b/x"), ("/", "/"), ("x", "x"), ("", "")]
)
def test_a_trailing_slash_is_no_part_of_a_name(url: str, expected: str) -> None:
    assert without_slash(url) == expected
