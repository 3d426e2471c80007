"""Results as append-only Parquet parts: schemas and keys. The latest of several attempts counts."""

import difflib
import io
import json
import re
import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage import keys
from storage.backends.files import Files
from storage.codec import crc32c
from storage.documents import FILES, Checksum, check_recorded, checksum, decode_checksums, encode_checksums
from storage.errors import CorruptFile
from storage.format import Layout, encode_json


def _schema(text: str, **types: pa.DataType) -> pa.Schema:
    """Columns named in `text`, float64 unless `types` gives another type."""
    return pa.schema([(name, types.get(name, pa.float64())) for name in text.split()])


_TEXT, _INT = pa.string(), pa.int64()
_IDENTITY = {name: _TEXT for name in ("experiment", "variant", "site", "task", "control")}
_IDENTITY |= {"step": _INT, "seed": _INT, "stage_hash": _TEXT, "attempt": _INT}

PROBES = _schema(
    "experiment variant site block index step task control seed tokens channels "
    "n_train n_val n_test train_loss val_loss test_loss val_dice val_rmse dice rmse "
    "oracle_dice oracle_rmse spearman pearson crossentropy ap ap_val dice_threshold "
    "dice_background skill rmse_aligned floor_dice floor_rmse "
    "rmse_object rmse_background spearman_residual dropped "
    "seconds status error attempt stage_hash",
    **_IDENTITY, block=_TEXT, index=_INT, tokens=_INT, channels=_INT,
    n_train=_INT, n_val=_INT, n_test=_INT, dropped=_INT, status=_TEXT, error=_TEXT,
)  # fmt: skip
IMAGES = _schema(
    "experiment variant site step task control seed sample dice oracle_dice ap "
    "rmse oracle_rmse rmse_aligned spearman pearson "
    "rmse_object rmse_background spearman_residual attempt stage_hash",
    **_IDENTITY, sample=_INT,
)  # fmt: skip
EPOCHS = _schema(
    "experiment variant site step task control seed epoch train_loss val_loss attempt stage_hash",
    **_IDENTITY, epoch=_INT,
)  # fmt: skip
INTERVENTIONS = _schema(
    "experiment sample trial task control dx dy sites steps iterations lr edit_norm "
    "score_before score_after mirror_after original_after constant_after pearson_after "
    "area_before area_target area_after readout_before readout_after readout_spearman "
    "readout_least others_before others_after floor shift_share slope outside_label departure_before "
    "departure_after depth_wanted depth_before depth_after content_kept "
    "own_scale_before own_scale_after aligned_before aligned_after "
    "outside_change guidance direction scale gain seconds status error attempt stage_hash",
    experiment=_TEXT, sample=_INT, trial=_INT, task=_TEXT, control=_TEXT, sites=_TEXT, steps=_TEXT,
    iterations=_INT, direction=_TEXT, scale=_TEXT, status=_TEXT, error=_TEXT, attempt=_INT, stage_hash=_TEXT,
)  # fmt: skip
SAMPLES = _schema("sample prompt seed shard", sample=_INT, prompt=_TEXT, seed=_INT, shard=_INT)
CURATION = _schema("sample keep reason split", sample=_INT, keep=pa.bool_(), reason=_TEXT, split=_TEXT)

SCHEMAS = {"probes": PROBES, "images": IMAGES, "epochs": EPOCHS, "interventions": INTERVENTIONS}
_PROBE = ("experiment", "variant", "site", "step", "task", "control", "seed")
KEYS = {
    "probes": (*_PROBE, "stage_hash"),
    "images": (*_PROBE, "sample", "stage_hash"),
    "epochs": (*_PROBE, "epoch", "stage_hash"),
    "interventions": ("experiment", "sample", "trial", "task", "control", "sites", "steps",
                      "iterations", "lr", "guidance", "direction", "scale", "gain", "stage_hash"),
}  # fmt: skip
"""Columns that identify a row: among rows that agree in them, only the latest attempt counts."""
BEFORE = {"interventions": {"direction": "weights", "scale": "reading", "gain": 1.0}}
"""Values of columns that came later, in parts from before them: all edits were the paper's own."""


def rows_to_table(name: str, rows: Iterable[dict], schema: pa.Schema) -> pa.Table:
    """Rows as a table of the schema; absent columns become null. Raises ValueError for unknown columns."""
    rows = list(rows)
    for unknown in {column for row in rows for column in row} - set(schema.names):
        near = difflib.get_close_matches(unknown, schema.names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f": there are {', '.join(schema.names)}"
        raise ValueError(f"table {name}: no column {unknown!r}{hint}")
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ValueError(f"table {name}: a value does not fit its column: {error}") from None


MAGIC = b"PAR1"
_NAMED_CRC = re.compile(r"\d{20}-[0-9a-f]{8}-([0-9a-f]{8})\.parquet$")


def to_parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file whose pages have checksums; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def from_parquet(data: bytes, path: str) -> pa.Table:
    """The table in the bytes of a Parquet file, which are compared with the checksum in its name, if it has one.

    Raises CorruptFile if they differ, or a page's checksum does, or the bytes are no whole Parquet file. The reader
    may end the process on damaged metadata, which no page checksum covers.
    """
    named = _NAMED_CRC.search(path)
    if named and crc32c(data) != int(named[1], 16):
        raise CorruptFile(path, f"its crc32c is {crc32c(data):08x}, its name says {named[1]}")
    if not (len(data) > 3 * len(MAGIC) and data.startswith(MAGIC) and data.endswith(MAGIC)):
        raise CorruptFile(path, "no whole Parquet file")
    try:
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptFile(path, f"not a readable Parquet file: {error}") from None


@dataclass(frozen=True)
class TablePart:
    """One part of a results table."""

    table: pa.Table
    files: Mapping[str, Checksum]
    """Checksums of the files that its rows rest on."""

    @property
    def stage_hashes(self) -> set[str | None]:
        """Hashes of the settings that its rows were made with."""
        return set(pc.unique(self.table["stage_hash"]).to_pylist())


def latest(table: pa.Table, columns: Collection[str]) -> pa.Table:
    """Among rows equal in `columns` (null equals null), keep the one with the highest attempt, then the last."""
    if not table.num_rows:
        return table
    order = pc.sort_indices(pc.fill_null(table["attempt"], 0))
    ranked = table.select(list(columns)).take(order)  # the sort is stable: later parts stay later
    ranked = ranked.append_column("_rank", pa.array(range(table.num_rows), pa.int64()))
    wins = ranked.group_by(list(columns), use_threads=False).aggregate([("_rank", "max")])
    rows = order.take(wins["_rank_max"].combine_chunks())
    return table.take(rows.take(pc.sort_indices(rows)))


class Tables:
    """The Parquet files of a store."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._parts: dict[str, TablePart] = {}
        """Parts read so far; parts never change once written."""
        self._read: dict[tuple, tuple[list[str], pa.Table]] = {}
        """Paths of the parts, and table, of each earlier `read`; a stage asks the same again and again."""

    def append(
        self, name: str, rows: Iterable[dict], files: Mapping[str, Checksum], *, sync: bool
    ) -> tuple[str, Checksum]:
        """Write the rows as one new part that records the checksums of the files that they rest on.

        Returns its path, which sorts after all earlier ones, and its own checksum.
        """
        table = rows_to_table(name, rows, self._schema(name))
        if table.num_rows == 0:
            raise ValueError(f"table {name}: no rows to append")
        if files:
            table = table.replace_schema_metadata({FILES: encode_json(encode_checksums(files))})
        data = to_parquet(table)
        crc = crc32c(data)
        path = f"{keys.part_prefix(name)}{time.time_ns():020d}-{uuid.uuid4().hex[:8]}-{crc:08x}.parquet"
        self._files.put(path, [data], sync=sync)
        return path, (len(data), crc)

    def _schema(self, name: str) -> pa.Schema:
        if name not in SCHEMAS:
            raise ValueError(f"table {name!r}: there are {', '.join(SCHEMAS)}")
        return SCHEMAS[name]

    def read(self, name: str, stage_hash: str | Collection[str] | None,
             current: bool) -> pa.Table:  # fmt: skip
        """All rows, in the order of writing, filtered as in `Store.table`."""
        schema = self._schema(name)
        parts = self.parts(name)
        for part in parts.values():
            if isinstance(part, CorruptFile):
                raise part
        hashes = [stage_hash] if isinstance(stage_hash, str) else stage_hash
        question = (name, hashes and tuple(hashes), current)
        if (known := self._read.get(question)) and known[0] == list(parts):
            return known[1]
        tables = [part.table for part in parts.values() if isinstance(part, TablePart)]
        table = pa.concat_tables([schema.empty_table(), *tables])
        if hashes is not None:
            table = table.filter(pc.is_in(table["stage_hash"], pa.array(list(hashes), pa.string())))
        table = latest(table, KEYS[name]) if current else table
        self._read[question] = (list(parts), table)
        return table

    def parts(self, name: str) -> dict[str, TablePart | CorruptFile]:
        """Path -> part of a table in the order of writing, or the error if it is damaged."""
        paths = [p for p in self._files.list(keys.part_prefix(name)) if p.endswith(".parquet")]
        fresh = [path for path in paths if path not in self._parts]
        damaged: dict[str, CorruptFile] = {}
        with ThreadPoolExecutor(self._files.threads) as pool:
            for path, part in zip(fresh, pool.map(self._part, fresh), strict=True):
                if isinstance(part, TablePart):
                    self._parts[path] = part
                else:
                    damaged[path] = part
        return {path: damaged.get(path) or self._parts[path] for path in paths}

    def _part(self, path: str) -> TablePart | CorruptFile:
        name = path.split("/")[1]
        schema = self._schema(name)
        try:
            table = self.read_file(path)
            noted = (table.schema.metadata or {}).get(FILES.encode())
            files = decode_checksums(json.loads(noted)) if noted else {}
            for field in schema:  # parts of earlier versions lack columns, those of later ones have more
                if field.name not in table.column_names:
                    value = pa.scalar(BEFORE.get(name, {}).get(field.name), field.type)
                    table = table.append_column(field, pa.repeat(value, table.num_rows))
            return TablePart(table.select(schema.names).cast(schema), files)
        except CorruptFile as error:
            return error
        except (pa.ArrowException, ValueError) as error:
            return CorruptFile(path, f"not a part of this table: {error}")

    def read_file(self, path: str, recorded: Checksum | None = None) -> pa.Table:
        """One Parquet file. Raises CorruptFile if it is damaged, FileNotFoundError if it is absent."""
        data = self._files.get(path)
        if recorded is not None:
            check_recorded(data, path, recorded)
        return from_parquet(data, path)

    def write_samples(self, rows: Iterable[dict], layout: Layout, recorded: Checksum | None, *, sync: bool) -> Checksum:
        """Write the samples, ascending, if they are absent or damaged; return the file's checksum.

        Raises ValueError if other samples are stored already.
        """
        table = rows_to_table("samples", rows, SAMPLES).sort_by("sample")
        expected = [(sample, sample // layout.shard) for sample in range(layout.samples)]
        if list(zip(table["sample"].to_pylist(), table["shard"].to_pylist(), strict=True)) != expected:
            raise ValueError(
                f"{keys.SAMPLES}: samples must be 0..{layout.samples - 1}, each once, "
                f"sample i in shard i // {layout.shard}"
            )
        try:
            stored = self.read_file(keys.SAMPLES, recorded)
        except (CorruptFile, FileNotFoundError):
            data = to_parquet(table)
            self._files.put(keys.SAMPLES, [data], sync=sync)
            return checksum(data)
        if not table.equals(stored):
            raise ValueError(
                f"{keys.SAMPLES}: prompts or seeds differ from those already sampled: choose another output folder"
            )
        return checksum(self._files.get(keys.SAMPLES))

    def write_curation(self, rows: Iterable[dict], *, sync: bool) -> Checksum:
        """Write or replace the curation, sorted by sample; return the file's checksum."""
        table = rows_to_table("curation", rows, CURATION).sort_by("sample")
        samples = table["sample"].to_pylist()
        if len(set(samples)) < len(samples):
            raise ValueError(f"{keys.CURATION}: a sample has more than one row")
        data = to_parquet(table)
        self._files.put(keys.CURATION, [data], sync=sync)
        return checksum(data)
