"""Errors that a reader or writer of a store can meet; all are ValueErrors with one clear line."""


class StoreError(ValueError):
    """Something about a store or its use is wrong; the message names what, where and the cure."""


class MissingChunk(StoreError):
    """A chunk that was asked for is not in the store (never answered with the fill value)."""


class CorruptChunk(StoreError):
    """A chunk's size or crc32c checksum is not what the format demands."""


class NonFinite(StoreError):
    """An array holds NaN or infinity where the format allows only finite values."""


class LeaseHeld(StoreError):
    """Another planner holds the lease of this store."""
