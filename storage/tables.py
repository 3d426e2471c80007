"""Results as append-only Parquet parts: schemas and keys. The latest of several attempts counts."""

import difflib
import io
import time
import uuid
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage import keys
from storage.backends.files import Files
from storage.format import Layout


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


def to_parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


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
        self._parts: dict[str, pa.Table] = {}
        """Parts read so far; parts never change once written."""

    def append(self, name: str, rows: Iterable[dict], *, sync: bool) -> str:
        """Write the rows as one new part and return its path, which sorts after all earlier ones."""
        table = rows_to_table(name, rows, self._schema(name))
        if table.num_rows == 0:
            raise ValueError(f"table {name}: no rows to append")
        path = f"{keys.part_prefix(name)}{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        self._files.put(path, [to_parquet(table)], sync=sync)
        return path

    def _schema(self, name: str) -> pa.Schema:
        if name not in SCHEMAS:
            raise ValueError(f"table {name!r}: there are {', '.join(SCHEMAS)}")
        return SCHEMAS[name]

    def read(self, name: str, stage_hash: str | Collection[str] | None,
             current: bool) -> pa.Table:  # fmt: skip
        """All rows, in the order of writing, filtered as in `Store.table`."""
        schema = self._schema(name)
        table = pa.concat_tables([schema.empty_table(), *self._read_parts(name, schema)])
        if stage_hash is not None:
            hashes = [stage_hash] if isinstance(stage_hash, str) else list(stage_hash)
            table = table.filter(pc.is_in(table["stage_hash"], pa.array(hashes, pa.string())))
        return latest(table, KEYS[name]) if current else table

    def _read_parts(self, name: str, schema: pa.Schema) -> list[pa.Table]:
        paths = [p for p in self._files.list(keys.part_prefix(name)) if p.endswith(".parquet")]
        fresh = [path for path in paths if path not in self._parts]
        with ThreadPoolExecutor(self._files.threads) as pool:
            for path, table in zip(fresh, pool.map(self.read_file, fresh), strict=True):
                for field in schema:  # parts of earlier versions lack columns, those of later ones have more
                    if field.name not in table.column_names:
                        value = pa.scalar(BEFORE.get(name, {}).get(field.name), field.type)
                        table = table.append_column(field, pa.repeat(value, table.num_rows))
                self._parts[path] = table.select(schema.names).cast(schema)
        return [self._parts[path] for path in paths]

    def read_file(self, path: str) -> pa.Table:
        """One Parquet file. Raises ValueError if it is unreadable, FileNotFoundError if it is absent."""
        data = self._files.get(path)
        try:
            return pq.read_table(pa.BufferReader(data))
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: not a readable Parquet file: {error}") from None

    def write_samples(self, rows: Iterable[dict], layout: Layout, *, sync: bool) -> None:
        """Write the samples, ascending. Raises ValueError if other samples are stored already."""
        table = rows_to_table("samples", rows, SAMPLES).sort_by("sample")
        expected = [(sample, sample // layout.shard) for sample in range(layout.samples)]
        if list(zip(table["sample"].to_pylist(), table["shard"].to_pylist(), strict=True)) != expected:
            raise ValueError(
                f"{keys.SAMPLES}: samples must be 0..{layout.samples - 1}, each once, "
                f"sample i in shard i // {layout.shard}"
            )
        if not self._files.sizes([keys.SAMPLES]):
            self._files.put(keys.SAMPLES, [to_parquet(table)], sync=sync)
        elif not table.equals(self.read_file(keys.SAMPLES)):
            raise ValueError(
                f"{keys.SAMPLES}: prompts or seeds differ from those already sampled: choose another output folder"
            )

    def write_curation(self, rows: Iterable[dict], *, sync: bool) -> None:
        """Write or replace the curation, sorted by sample."""
        table = rows_to_table("curation", rows, CURATION).sort_by("sample")
        samples = table["sample"].to_pylist()
        if len(set(samples)) < len(samples):
            raise ValueError(f"{keys.CURATION}: a sample has more than one row")
        self._files.put(keys.CURATION, [to_parquet(table)], sync=sync)
