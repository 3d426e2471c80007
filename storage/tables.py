"""Results as append-only Parquet parts: schemas and keys. The latest of several attempts counts."""

import difflib
import io
import json
import re
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
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


def from_parquet(data: bytes, path: str, encoded: bool = False, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file, which are compared with the checksum in its name, if it has one.

    encoded: whether text columns become dictionaries. columns: those that are wanted, if the name has a checksum.
    Raises CorruptFile if the checksums differ, or a page's checksum does, or the bytes are no whole Parquet file. The
    reader may end the process on damaged metadata, which no page checksum covers.
    """
    named = _NAMED_CRC.search(path)
    if named and crc32c(data) != int(named[1], 16):
        raise CorruptFile(path, f"its crc32c is {crc32c(data):08x}, its name says {named[1]}")
    if not (len(data) > 3 * len(MAGIC) and data.startswith(MAGIC) and data.endswith(MAGIC)):
        raise CorruptFile(path, "no whole Parquet file")
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        if encoded:
            text = [column.name for column in file.schema_arrow if pa.types.is_string(column.type)]
            file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, read_dictionary=text)
        return file.read(columns if named else None, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptFile(path, f"not a readable Parquet file: {error}") from None


@dataclass(frozen=True)
class TablePart:
    """One part of a results table, without its rows."""

    files: Mapping[str, Checksum]
    """Checksums of the files that its rows rest on."""
    origins: Sequence[tuple[str | None, str | None]]
    """Experiments and stage hashes of its rows, in the order in which they come first."""

    @property
    def stage_hashes(self) -> set[str | None]:
        """Hashes of the settings that its rows were made with."""
        return {stage_hash for _, stage_hash in self.origins}


def latest(table: pa.Table, columns: Collection[str]) -> pa.Table:
    """Among rows equal in `columns` (null equals null), keep the one with the highest attempt, then the last."""
    if not table.num_rows:
        return table
    codes = np.zeros(table.num_rows, np.int64)
    for name in columns:
        number, different = _numbered(table[name])
        if int(codes.max(initial=0)) >= (1 << 62) // different:
            codes = np.unique(codes, return_inverse=True)[1]
        codes = codes * different + number
    ordered = np.sort(codes)
    if (ordered[1:] != ordered[:-1]).all():
        return table  # as nearly always, without a copy
    del ordered
    attempts = pc.fill_null(pc.cast(table["attempt"], pa.int64()), 0).to_numpy()
    order = np.lexsort((attempts, codes))  # stable: later parts stay later
    codes = codes[order]
    return table.take(np.sort(order[np.append(codes[1:] != codes[:-1], True)]))


def _numbered(column: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """Numbers of a column's values, equal for equal values and for nulls; and one more than the largest."""
    coded = column.combine_chunks()
    coded = coded if pa.types.is_dictionary(coded.type) else coded.dictionary_encode()
    null = len(coded.dictionary)
    return coded.indices.fill_null(null).to_numpy(zero_copy_only=False).astype(np.int64), null + 1


def _narrow(field: pa.Field) -> pa.Field:
    """The narrow type of a column of keys."""
    if field.type == pa.string():
        return field.with_type(pa.dictionary(pa.int16(), pa.string()))
    return field.with_type(pa.int32()) if field.name in ("sample", "step", "attempt") else field


def _by_task(table: pa.Table) -> pa.Table:
    """The rows task by task. No task has the scores of another: these columns then take no memory."""
    pieces = []
    for task in pc.unique(table["task"]):
        rows = table.filter(pc.is_in(table["task"], pa.array([task.as_py()], pa.string())))
        for number, column in enumerate(rows.columns):
            if rows.num_rows and column.null_count == rows.num_rows and not pa.types.is_dictionary(column.type):
                rows = rows.set_column(number, rows.schema.field(number), _nulls(column.type, rows.num_rows))
        pieces.append(rows)
    return pa.concat_tables(pieces) if pieces else table


_NULLS: dict[pa.DataType, pa.Array] = {}


def _nulls(kind: pa.DataType, count: int) -> pa.Array:
    """So many nulls, as a part of an array that all callers share."""
    if kind not in _NULLS or len(_NULLS[kind]) < count:
        _NULLS[kind] = pa.nulls(count, kind)
    return _NULLS[kind].slice(0, count)


ORIGIN = ("experiment", "stage_hash")
LARGE = ("images",)
"""Tables of which no rows are kept in memory between two readings: one row for each probe and image."""


class Tables:
    """The Parquet files of a store."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._parts: dict[str, TablePart] = {}
        """Parts read so far; parts never change once written."""
        self._rows: dict[str, pa.Table] = {}
        """Rows of the same parts, but for those of LARGE tables."""
        self._answers: dict[tuple, tuple[list[str], pa.Table]] = {}
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

    def read(
        self, name: str, stage_hash: str | Collection[str] | None, current: bool, encoded: bool = False
    ) -> pa.Table:
        """All rows, in the order of writing, filtered as in `Store.table`."""
        schema = self._schema(name)
        paths = self._paths(name)
        hashes = [stage_hash] if isinstance(stage_hash, str) else stage_hash
        question = (name, hashes and tuple(hashes), current, encoded)
        if (known := self._answers.get(question)) and known[0] == paths:
            return known[1]
        tables = []
        for part, rows in self._loaded(paths, encoded):
            if isinstance(part, CorruptFile):
                raise part
            if hashes is None or not part.stage_hashes.isdisjoint(hashes):
                tables.append(rows)
        table = pa.concat_tables(tables) if tables else schema.empty_table()
        if encoded:
            table = table.unify_dictionaries()
        if hashes is not None:
            table = table.filter(pc.is_in(table["stage_hash"], pa.array(list(hashes), pa.string())))
        table = latest(table, KEYS[name]) if current else table
        if name in LARGE:
            pa.default_memory_pool().release_unused()  # what reading took; numpy cannot use it
        else:
            self._answers[question] = (paths, table)
        return table

    def _paths(self, name: str) -> list[str]:
        return [path for path in self._files.list(keys.part_prefix(name)) if path.endswith(".parquet")]

    def parts(self, name: str) -> dict[str, TablePart | CorruptFile]:
        """Path -> part of a table in the order of writing, or the error if it is damaged."""
        self._schema(name)
        paths = self._paths(name)
        fresh = [path for path in paths if path not in self._parts]
        columns = ORIGIN if name in LARGE else None
        found = {path: part for path, (part, _) in zip(fresh, self._loaded(fresh, columns=columns), strict=True)}
        return {path: self._parts[path] if path in self._parts else found[path] for path in paths}

    def _loaded(
        self, paths: Sequence[str], encoded: bool = False, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[TablePart | CorruptFile, pa.Table]]:
        """Each part with its rows, of which those of LARGE tables are held no longer than the caller holds them."""
        left = iter(paths)
        with ThreadPoolExecutor(self._files.threads) as pool:
            while batch := list(islice(left, 2 * self._files.threads)):
                yield from pool.map(lambda path: self._part(path, encoded, columns), batch)

    def _part(
        self, path: str, encoded: bool, columns: Sequence[str] | None
    ) -> tuple[TablePart | CorruptFile, pa.Table]:
        if path in self._rows and not encoded:
            return self._parts[path], self._rows[path]
        name = path.split("/")[1]
        schema = self._schema(name)
        narrow = [_narrow(field) if encoded and field.name in (*KEYS[name], "attempt") else field for field in schema]
        wanted = pa.schema([field for field in narrow if columns is None or field.name in columns])
        try:
            table = from_parquet(self._files.get(path), path, encoded, columns)
            noted = (table.schema.metadata or {}).get(FILES.encode())
            files = decode_checksums(json.loads(noted)) if noted else {}
            for field in wanted:  # parts of earlier versions lack columns, those of later ones have more
                if field.name not in table.column_names:
                    value = pa.scalar(BEFORE.get(name, {}).get(field.name), schema.field(field.name).type)
                    table = table.append_column(field.name, pa.repeat(value, table.num_rows))
            table = table.select(wanted.names).cast(wanted)
            table = _by_task(table) if encoded and "task" in wanted.names else table
        except CorruptFile as error:
            return error, wanted.empty_table()
        except (pa.ArrowException, ValueError) as error:
            return CorruptFile(path, f"not a part of this table: {error}"), wanted.empty_table()
        if path not in self._parts:
            pairs = table.select(ORIGIN).group_by(ORIGIN, use_threads=False).aggregate([]).to_pylist()
            self._parts[path] = TablePart(files, [(pair["experiment"], pair["stage_hash"]) for pair in pairs])
        if name not in LARGE and not encoded:
            self._rows[path] = table
        return self._parts[path], table

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
