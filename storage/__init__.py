"""What is on disk: the format, arrays, completion records, tables, audit and budget of a sweep.

    import storage
    store = storage.open("OUT")                     # a path, s3://, gs://, az://, file://, memory://
    acts = store.read_activations("trained", "mid.0", step=3)       # float16 (n, T, C)
    rows = store.table("probes").to_pylist()

The normative text is FORMAT.md beside this file.
"""

from storage import audit, budget
from storage.errors import CorruptChunk, LeaseHeld, MissingChunk, NonFinite, StoreError
from storage.format import FORMAT_VERSION, Layout, SiteShape
from storage.keys import probe_path
from storage.records import Record
from storage.store import Store

open = Store.open

__all__ = [
    "FORMAT_VERSION", "CorruptChunk", "Layout", "LeaseHeld", "MissingChunk", "NonFinite", "Record",
    "SiteShape", "Store", "StoreError", "audit", "budget", "open", "probe_path",
]  # fmt: skip
