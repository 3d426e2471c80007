"""Errors with a message of one line: of reading and writing a store (ValueErrors), and of the world around it."""

REMAKE = "`scenesweep run` with the settings of the run makes it again"
"""What mends a damaged file."""


class StoreError(ValueError):
    """A store or its use is wrong; the message names what, where and the fix."""


class Unavailable(OSError):
    """An object store, a cluster or a device does not do its part; the message names what, where and the fix.

    Libraries raise many kinds for this, which are mapped to this one where they are called.
    """


class MissingChunk(StoreError):
    """A requested chunk is not in the store. Readers never return the fill value instead."""


class CorruptChunk(StoreError):
    """A chunk's size or crc32c checksum is wrong."""


class CorruptFile(StoreError):
    """A small file's content is not what was recorded, or can't be read."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}: {REMAKE}")
        self.path, self.detail = path, detail

    def __reduce__(self) -> tuple:
        return CorruptFile, (self.path, self.detail)


class NonFinite(StoreError):
    """An array to be stored holds NaN or infinity; the format allows only finite values."""


class LeaseHeld(StoreError):
    """Another planner holds the lease of this store, or has taken it over."""
