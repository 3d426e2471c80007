"""Errors of reading and writing a store; all are ValueErrors with a message of one line."""


class StoreError(ValueError):
    """A store or its use is wrong; the message names what, where and the fix."""


class MissingChunk(StoreError):
    """A requested chunk is not in the store. Readers never return the fill value instead."""


class CorruptChunk(StoreError):
    """A chunk's size or crc32c checksum is wrong."""


class NonFinite(StoreError):
    """An array to be stored holds NaN or infinity; the format allows only finite values."""


class LeaseHeld(StoreError):
    """Another planner holds the lease of this store, or has taken it over."""
