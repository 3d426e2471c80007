"""Chunks as bytes: an optional compressor, then crc32c, the same bytes that zarr-python writes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import google_crc32c
import numpy as np

from storage.errors import NonFinite

Part = Any
"""Contiguous bytes: bytes, memoryview or a numpy array. Python 3.11 has no type for buffers."""

CODECS = ("none", "zstd", "blosc-lz4", "blosc-zstd", "pcodec")
CRC_BYTES = 4
Document = dict[str, object]
CHECKSUM: Document = {"name": "crc32c"}
_FINITE_BLOCK = 1 << 20
"""Values per block: few enough for the cache, enough to release the GIL rarely."""


def crc32c(data: Part, before: int = 0) -> int:
    """CRC-32C (Castagnoli) of contiguous bytes, appended to bytes whose checksum is `before`.

    It holds the GIL, but at 15 GB/s and more a second thread hardly notices.
    """
    return google_crc32c.extend(before, data)


@dataclass(frozen=True)
class Codec:
    """How arrays of one dtype become chunk files: a body, then its crc32c, little-endian."""

    documents: list[Document] = field(hash=False)
    """The `codecs` list of zarr.json."""
    compress: Callable[[np.ndarray], bytes] | None
    """None: the body is the array's own bytes."""
    decompress: Callable[[np.ndarray, np.ndarray], object] | None
    """(body, out): fills `out` or raises."""

    def encode(self, values: np.ndarray) -> tuple[list[Part], int, int]:
        """C-contiguous little-endian values -> (parts of the file, its size, its crc32c)."""
        body: Part = as_bytes(values) if self.compress is None else self.compress(values)
        return self._with_crc(body, crc32c(body))

    def encode_finite(self, values: np.ndarray) -> tuple[list[Part], int, int]:
        """The same. Raises NonFinite if a float is NaN or infinite."""
        if self.compress is None:
            return self._with_crc(as_bytes(values), _scanned(values))
        refuse_nonfinite(values)
        return self.encode(values)

    def _with_crc(self, body: Part, crc: int) -> tuple[list[Part], int, int]:
        return [body, crc.to_bytes(CRC_BYTES, "little")], memoryview(body).nbytes + CRC_BYTES, crc


def refuse_nonfinite(values: np.ndarray) -> None:
    """Raise NonFinite if a float array holds NaN or infinity."""
    if not all_finite(values):
        raise NonFinite("NaN or infinity among the values")


def _scanned(values: np.ndarray) -> int:
    """crc32c of the values; each block is checked for non-finite values while it is in the cache."""
    flat = values.reshape(-1)
    crc = 0
    for start in range(0, flat.size, _FINITE_BLOCK):
        block = flat[start : start + _FINITE_BLOCK]
        refuse_nonfinite(block)
        crc = crc32c(as_bytes(block), crc)
    return crc


def as_bytes(values: np.ndarray) -> np.ndarray:
    """A flat uint8 view of a C-contiguous array, without a copy."""
    return values.reshape(-1).view(np.uint8)


@cache
def codec_for(name: str, dtype: str) -> Codec:
    """The codec `name` for arrays of `dtype`; pcodec uses zstd for bytes."""
    itemsize = np.dtype(dtype).itemsize
    plain: Document = {"name": "bytes"}
    if itemsize > 1:
        plain["configuration"] = {"endian": "little"}
    if name == "none":
        return Codec([plain, CHECKSUM], None, None)
    if name in ("blosc-lz4", "blosc-zstd"):
        return _blosc(name.removeprefix("blosc-"), itemsize, plain)
    if name == "pcodec" and itemsize > 1:
        return _pcodec()
    assert name in ("zstd", "pcodec"), name
    from numcodecs.zstd import Zstd

    coder = Zstd(level=1)
    document: Document = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    return Codec([plain, document, CHECKSUM], coder.encode, coder.decode)


def _blosc(cname: str, itemsize: int, plain: Document) -> Codec:
    from numcodecs import blosc

    blosc.use_threads = False  # chunks are already encoded in parallel
    shuffle = blosc.SHUFFLE if itemsize > 1 else blosc.BITSHUFFLE
    coder = blosc.Blosc(cname=cname, clevel=1, shuffle=shuffle, typesize=itemsize)
    configuration: dict[str, object] = {
        "typesize": itemsize,
        "cname": cname,
        "clevel": 1,
        "shuffle": "shuffle" if itemsize > 1 else "bitshuffle",
        "blocksize": 0,
    }
    # zarr-python passes flat bytes to blosc, which takes their item size from `typesize`.
    return Codec(
        [plain, {"name": "blosc", "configuration": configuration}, CHECKSUM],
        lambda values: coder.encode(as_bytes(values)),
        coder.decode,
    )


def _pcodec() -> Codec:
    try:
        from numcodecs.pcodec import PCodec
    except ImportError:
        raise ValueError(
            "codec 'pcodec' needs a package that is not installed: "
            "pip install 'numcodecs[pcodec]', or choose codec=none"
        ) from None
    coder = PCodec(level=4)
    configuration = {k: v for k, v in coder.get_config().items() if k != "id"}
    return Codec([{"name": "numcodecs.pcodec", "configuration": configuration}, CHECKSUM], coder.encode, coder.decode)


def all_finite(values: np.ndarray) -> bool:
    """Whether a float array has neither NaN nor infinity.

    Reads the bits as integers: as int and as uint, every non-finite value exceeds every finite
    one of its sign, so two maxima without temporaries suffice. Several times faster than isfinite.
    """
    if values.dtype.kind != "f":
        return True
    bits = values.dtype.itemsize * 8
    infinity = int(np.array(np.inf, values.dtype).view(f"u{bits // 8}"))
    sign = 1 << (bits - 1)
    flat = np.ascontiguousarray(values).reshape(-1)
    for start in range(0, flat.size, _FINITE_BLOCK):
        block = flat[start : start + _FINITE_BLOCK]
        if int(block.view(f"i{bits // 8}").max()) >= infinity:
            return False
        if int(block.view(f"u{bits // 8}").max()) >= infinity | sign:
            return False
    return True
