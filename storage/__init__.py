"""A sweep on disk: format, arrays, completion records, tables, audit and size estimates.

    import storage
    store = storage.open("OUT")                     # a path, s3://, gs://, az://, file://, memory://
    acts = store.read_activations("trained", "mid.0", step=3)       # float16 (n, T, C)
    acts = store.to_xarray("trained", "mid.0")                      # the same for all steps, with coordinates
    frame = store.scores()                                          # pandas; `SCORES` explains the columns
    rows = store.table("probes").to_pylist()

The names below are the entrance, together with the schemas in `tables` and the names of files in
`keys`. Every other package may import this one, which imports none of them. FORMAT.md beside this
file is the normative text.
"""

from storage import audit, budget
from storage.errors import CorruptChunk, CorruptFile, LeaseHeld, MissingChunk, NonFinite, StoreError, Unavailable
from storage.format import FORMAT_VERSION, Layout, SiteShape
from storage.keys import probe_path
from storage.lease import hold
from storage.reading import SCORES
from storage.records import Record
from storage.store import Store

open = Store.open

__all__ = [
    "FORMAT_VERSION", "SCORES", "CorruptChunk", "CorruptFile", "Layout", "LeaseHeld", "MissingChunk", "NonFinite",
    "Record", "SiteShape", "Store", "StoreError", "Unavailable", "audit", "budget", "hold", "open", "probe_path",
]  # fmt: skip
