"""Prompt files: exact bytes of the authors' two CSV files, LAION's schemas, JSON lines, text, and broken rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probing.dataset import prompt_files
from probing.dataset.prompts import PromptConfig, read
from sweeps.cli.main import main

AWKWARD = [
    b'a "quoted", odd thing', b"two\nlines", b"windows\r\nlines", b"caf\xc3\xa9 by Monet", b"caf\xe9 in one byte",
    b"x" * 300, b" spaces kept ", b"NA", b"null", b"'single', #hash; semicolon", b'"', b"a,b,,c",
    b"\xc2\xa0 hard space",
    b"back\\slash \\n", b"tab\there", b"line\xe2\x80\xa8separator", b"next\x85line", b"-1", b"1e5", b"<b>&amp;</b>",
]  # fmt: skip


def authors_file(path: Path, count: int, first: int) -> list[tuple[bytes, int, str]]:
    """A file as pandas writes one, built byte by byte without the csv module; its rows."""
    rows = []
    for i in range(count):
        text = AWKWARD[i % len(AWKWARD)] + (b" %d" % i if i >= len(AWKWARD) else b"")
        rows.append((text, (i * 7_919_317 + first) % 100_000_000, str(first + 3 * i)))
    lines = [b"prompts,seeds,prompt_inds"]
    for text, seed, name in rows:
        special = any(mark in text for mark in (b",", b'"', b"\n", b"\r"))
        field = b'"' + text.replace(b'"', b'""') + b'"' if special else text
        lines.append(b"%b,%d,%b" % (field, seed, name.encode()))
    path.write_bytes(b"\n".join(lines) + b"\n")
    return rows


def test_the_authors_two_files_keep_their_exact_bytes(tmp_path):
    train = authors_file(tmp_path / "train_split_prompts_seeds.csv", 246, 0)
    test = authors_file(tmp_path / "test_split_prompts_seeds.csv", 371, 1)
    found = read(
        PromptConfig(
            source=str(tmp_path / "train_split_prompts_seeds.csv"),
            test=str(tmp_path / "test_split_prompts_seeds.csv"),
            encoding="iso-8859-1",
        )
    )
    assert found.dropped == {}
    prompts = [(p.text.encode("iso-8859-1"), p.seed, p.name) for p in found.prompts]
    assert prompts == train + test
    assert [p.split for p in found.prompts] == ["train"] * 246 + ["test"] * 371


def test_names_and_split_reach_the_run(tmp_path, capsys):
    import json

    from support import tiny_model
    from sweeps import pipeline
    from sweeps.config.load import load

    text = "prompts,seeds,prompt_inds\na red box on a white floor,{},{}\n"
    for name, number in (("a.csv", 12), ("b.csv", 99)):
        (tmp_path / name).write_text(text.format(number % 10, number))
    words = [f"prompts.source={tmp_path / 'a.csv'}", f"prompts.test={tmp_path / 'b.csv'}", "prompts.count=0"]
    words += [f"output={tmp_path / 'run'}", f"model.name={tiny_model.save(tmp_path)}", "probe.selection=last"]
    run = pipeline.prepare(load("scenes", words))
    stored = json.loads(run.store.get("prompts.json"))
    assert stored == [{"split": "train", "name": "12"}, {"split": "test", "name": "99"}]
    assert run.store.samples()["seed"].to_pylist() == [2, 9]


def laion(path: Path, rows: int, **more: list) -> None:
    """The original 6.5+ schema."""
    table = {
        "URL": pa.array([f"u{i}" for i in range(rows)]),
        "TEXT": pa.array([f"caption {i}" for i in range(rows)]),
        "WIDTH": pa.array([512.0] * rows),
        "HEIGHT": pa.array([None] + [512.0] * (rows - 1)),
        "similarity": pa.array([0.3] * rows),
        "punsafe": pa.array([0.01 * i for i in range(rows)], pa.float32()),
        "pwatermark": pa.array([0.5] * rows, pa.float32()),
        "AESTHETIC_SCORE": pa.array([5 + 0.1 * i for i in range(rows)], pa.float32()),
        "hash": pa.array([-(2**62) + i for i in range(rows)], pa.int64()),
        "__index_level_0__": pa.array(range(rows)),
    } | {name: pa.array(values) for name, values in more.items()}
    pq.write_table(pa.table(table), path, row_group_size=7)


def test_laions_own_schema_by_glob_row_groups_and_filters(tmp_path):
    laion(tmp_path / "part-00000.parquet", 30)
    laion(tmp_path / "part-00001.parquet", 30, TEXT=[None, " ", "caption 3", "new\nline"] + ["more"] * 26)
    config = PromptConfig(source=str(tmp_path / "part-*.parquet"), min_score=5.25, max_unsafe=0.205)
    found = read(config)
    texts = [p.text for p in found.prompts]
    assert texts == [f"caption {i}" for i in range(3, 21)] + ["new\nline", "more"]
    assert found.dropped == {"low score": 6, "unsafe": 18, "duplicate": 16}
    assert all(0 <= p.seed < 10**8 for p in found.prompts)
    assert len({p.seed for p in found.prompts}) == len(texts)
    with pytest.raises(ValueError, match=r"no usable prompt; dropped \{'watermark': 60\}"):
        read(PromptConfig(source=str(tmp_path / "part-*.parquet"), max_watermark=0.4))


@pytest.mark.parametrize(
    "columns",
    [
        {"url": ["u"], "caption": ["one"]},
        {"URL": ["u"], "TEXT": ["one"], "aesthetic": [8.0], "LANGUAGE": ["en"]},
        {"key": ["000"], "caption": pa.array(["one"], pa.large_string()), "status": ["success"]},
        {"TEXT": pa.array(["one"]).dictionary_encode(), "AESTHETIC_SCORE": pa.array([8.0], pa.float64())},
        {"Prompt": ["one"], "seed": [3.0]},
    ],
)
def test_variant_schemas(tmp_path, columns):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = read(PromptConfig(source=str(tmp_path / "a.parquet"), min_score=6.0)).prompts
    assert [p.text for p in found] == ["one"]
    assert found[0].seed == (
        3 if "seed" in columns else read(PromptConfig(source=str(tmp_path / "a.parquet"))).prompts[0].seed
    )


def test_only_the_needed_columns_are_read(tmp_path, monkeypatch):
    laion(tmp_path / "a.parquet", 20)
    requested = []
    iter_batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda self, **k: requested.append(k["columns"]) or iter_batches(self, **k)
    )
    read(PromptConfig(source=str(tmp_path / "a.parquet"), min_score=5.5))
    assert requested == [["TEXT", "AESTHETIC_SCORE"]]


def test_json_lines_keep_separators_and_text_keeps_spaces(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a\u2028b", "seed": 7, "id": 4}\r\n\n{"caption": null}\n{"text": "é"}\n'
    )
    found = read(PromptConfig(source=str(tmp_path / "a.jsonl")))
    assert [p.text for p in found.prompts] == ["a\u2028b", "é"]
    assert (found.prompts[0].seed, found.prompts[0].name) == (7, "4")
    assert found.dropped == {"empty": 1}
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf one \r\n\r\ntwo\x0bhalf\n one \n")
    found = read(PromptConfig(source=str(tmp_path / "a.txt")))
    assert [p.text for p in found.prompts] == [" one ", "two\x0bhalf"]
    assert found.dropped == {"empty": 1, "duplicate": 1}


def test_endings_are_read_in_either_case(tmp_path):
    (tmp_path / "A.CSV").write_text("prompt\none\n")
    (tmp_path / "b.Txt").write_text("two\n")
    for name, text in (("A.CSV", "one"), ("b.Txt", "two")):
        assert [p.text for p in read(PromptConfig(source=str(tmp_path / name))).prompts] == [text]


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path):
    (tmp_path / "a[1].txt").write_text("one\n")
    assert [p.text for p in read(PromptConfig(source=str(tmp_path / "a[1].txt"))).prompts] == ["one"]


def broken_parquet(path: Path) -> None:
    laion(path, 200)
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(bytes(data))


def one_column_twice(path: Path) -> None:
    columns = [pa.array(["one"]), pa.array(["another"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["prompt", "prompt"]), path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text_of,seeds\nx,1\n", "text_of, seeds"),
        ("a.csv", b"", "none"),
        ("a.csv", b"prompts,seeds\nx,1\ny,one\n", "row 3: seed 'one'"),
        ("a.csv", b"prompts,seeds\nx,1.5\n", "row 2: seed '1.5'"),
        ("a.jsonl", b'{"prompt": "x", "seed": true}\n', "row 1: seed True"),
        ("a.csv", b"prompts,seeds\nx,-4\n", "row 2: seed '-4'"),
        ("a.csv", b"prompts,seeds\nx,nan\n", "row 2: seed 'nan'"),
        ("a.csv", b"prompts,seeds\nx,1e999999999\n", "row 2: seed '1e999999999'"),
        ("a.csv", b"prompts,seeds\nx\n", "row 2: 2 fields expected"),
        ("a.csv", b"prompts,seeds\nx,1\nx,1,2\n", "row 3: 2 fields expected"),
        ("a.csv", b'prompts,seeds\nx,1\n"never closed,2\n', "row 3: broken CSV"),
        ("a.jsonl", b'{"prompt": "x"}\n{broken\n', "row 2: broken JSON"),
        ("a.jsonl", b"[1]\n", "row 1: "),
        ("a.jsonl", b'{"prompt": 3}\n', "row 1: prompt 3"),
        ("a.jsonl", b'{"prompt": "x"}\n{"words": "x"}\n', "row 2: no key prompts"),
        ("a.xyz", b"x", ".parquet"),
        ("a.txt", b"\n\n", "no usable prompt; dropped {'empty': 2}"),
        ("a.txt", b"caf\xe9\n", "prompts.encoding"),
        ("a.parquet", b"PAR1 not", "Parquet"),
        ("a.parquet", broken_parquet, "damaged"),
        ("a.parquet", one_column_twice, "prompt 2 times"),
        ("a.csv", b"prompt,prompt\none,another\n", "prompt 2 times"),
        ("a.parquet", {"URL": ["u"], "score": [1.0]}, "URL, score"),
        ("a.parquet", {"TEXT": [1, 2]}, "column TEXT holds int64"),
        ("a.parquet", {"TEXT": ["x", "y"], "seed": [1.0, 1.5]}, "row 2: seed 1.5"),
    ],
)
def test_broken_files_are_one_line_and_code_2(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if callable(content):
        content(path)
    elif isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        path.write_bytes(content)
    words = ["run", "scenes", f"prompts.source={path}", "prompts.count=0", f"output={tmp_path / 'out'}"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_dropped_rows_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\none\ntwo\n")
    dropped: Counter[str] = Counter()
    rows = list(prompt_files.read(tmp_path / "a.txt", "utf-8", prompt_files.Limits(), dropped))
    assert [row.text for row in rows] == ["one", "one", "two"]
    assert dropped == {"empty": 1}
