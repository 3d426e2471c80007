"""Prompts from the grammar and from files."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probing.dataset.prompts import PromptConfig, read

AWKWARD = ['a "quoted", odd café', "two\nlines", "x" * 300, "plain"]


def csv_file(path: Path, encoding: str = "utf-8", seed: int = 10) -> Path:
    import csv

    with path.open("w", newline="", encoding=encoding) as handle:
        writer = csv.writer(handle)
        writer.writerow(["prompts", "seeds", "prompt_inds"])
        writer.writerows([text, seed + i, i] for i, text in enumerate(AWKWARD))
    return path


def test_csv_is_read_exactly(tmp_path):
    found = read(PromptConfig(source=str(csv_file(tmp_path / "a.csv"))))
    assert [p.text for p in found.prompts] == AWKWARD
    assert [p.seed for p in found.prompts] == [10, 11, 12, 13]


def test_latin_encoding_garbles_text_as_in_the_authors_scripts(tmp_path):
    path = str(csv_file(tmp_path / "a.csv"))
    garbled = read(PromptConfig(source=path, encoding="iso-8859-1")).prompts[0].text
    assert garbled == AWKWARD[0].encode().decode("iso-8859-1")


def test_two_files_give_the_split(tmp_path):
    one, two = csv_file(tmp_path / "a.csv"), csv_file(tmp_path / "b.csv", seed=50)
    found = read(PromptConfig(source=str(one), test=str(two)))
    assert [p.split for p in found.prompts] == ["train"] * 4 + ["test"] * 4


def test_rows_of_both_files_are_refused(tmp_path):
    one, two = (
        csv_file(tmp_path / "a.csv"),
        csv_file(tmp_path / "b.csv", seed=13),
    )  # one row has prompt and seed of both
    two.write_text(two.read_text() + "plain,13,x\n")
    with pytest.raises(ValueError, match=r"1 of its prompts .* b.csv row 6 is a.csv row 5"):
        read(PromptConfig(source=str(one), test=str(two)))
    with pytest.raises(ValueError, match="4 of its prompts"):
        read(PromptConfig(source=str(one), test=str(one)))


def test_limits_count_in_every_kind_of_file(tmp_path):
    rows = [("kept", 6.0, 0.1), ("low", 4.0, 0.1), ("unsafe", 6.0, 0.9)]
    (tmp_path / "a.csv").write_text("prompt,aesthetic,punsafe\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    lines = [json.dumps({"prompt": a, "aesthetic": b, "punsafe": c}) for a, b, c in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for name in ("a.csv", "a.jsonl"):
        found = read(PromptConfig(source=str(tmp_path / name), min_score=5.0, max_unsafe=0.5))
        assert [p.text for p in found.prompts] == ["kept"]
        assert found.dropped == {"low score": 1, "unsafe": 1}
        assert len(read(PromptConfig(source=str(tmp_path / name))).prompts) == 3
    (tmp_path / "b.csv").write_text("prompt,aesthetic\na,high\n")
    with pytest.raises(ValueError, match=r"row 2: aesthetic 'high' is no number"):
        read(PromptConfig(source=str(tmp_path / "b.csv"), min_score=5.0))


def test_missing_file_is_named():
    with pytest.raises(ValueError, match="no file nowhere.csv"):
        read(PromptConfig(source="nowhere.csv"))


@pytest.mark.parametrize(("text", "score"), [("TEXT", "AESTHETIC_SCORE"), ("caption", "aesthetic")])
def test_parquet_schemas_filters_and_duplicates(tmp_path, text, score):
    table = pa.table(
        {
            "URL": ["u"] * 6,
            text: ["one", "two", "two", None, "  ", "low"],
            score: [6.0, 6.0, 6.0, 6.0, 6.0, 4.0],
            "punsafe": [0.0, 0.1, 0.1, 0.0, 0.0, 0.0],
        }
    )
    pq.write_table(table, tmp_path / "part-0.parquet")
    found = read(PromptConfig(source=str(tmp_path / "*.parquet"), min_score=5.0, max_unsafe=0.5))
    assert [p.text for p in found.prompts] == ["one", "two"]
    assert found.dropped == {"duplicate": 1, "empty": 2, "low score": 1}
    assert len({p.seed for p in found.prompts}) == 2


def test_counts_draw_reproducibly(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(50)))
    one = read(PromptConfig(source=str(path), count=10, seed=1)).prompts
    assert one == read(PromptConfig(source=str(path), count=10, seed=1)).prompts
    assert one != read(PromptConfig(source=str(path), count=10, seed=2)).prompts
    with pytest.raises(ValueError, match="prompts.count=60"):
        read(PromptConfig(source=str(path), count=60))


def test_scenes_prompts_are_distinct_and_repeat():
    one = read(PromptConfig(count=20)).prompts
    assert one == read(PromptConfig(count=20)).prompts
    assert len({p.text for p in one}) == 20
    assert all(0 <= p.seed < 10**8 for p in one)
