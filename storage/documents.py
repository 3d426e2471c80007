"""Sealed documents: JSON objects that contain their own checksum, and those of files that count only with them."""

import json
from collections.abc import Mapping
from typing import Any

from storage.codec import Part, crc32c
from storage.errors import CorruptFile
from storage.format import encode_json

SEAL = "crc32c"
"""Key of a document's own checksum."""
FILES = "files"
"""Key of the checksums of files: path -> [size in bytes, crc32c]."""

Checksum = tuple[int, int]
"""Size in bytes and crc32c of a file."""


def checksum(data: Part) -> Checksum:
    """Size and crc32c of bytes."""
    return memoryview(data).nbytes, crc32c(data)


def encode_checksums(files: Mapping[str, Checksum]) -> dict[str, list[int | str]]:
    """Checksums by path as JSON holds them."""
    return {path: [size, f"{crc:08x}"] for path, (size, crc) in sorted(files.items())}


def decode_checksums(values: Any) -> dict[str, Checksum]:
    """The inverse of `encode_checksums`. Raises ValueError if the values are of another kind."""
    try:
        return {path: (int(size), int(crc, 16)) for path, (size, crc) in values.items()}
    except (TypeError, AttributeError):
        raise ValueError("no list of checksums") from None


def seal(document: Mapping[str, Any]) -> bytes:
    """Bytes of a JSON object with its checksum added; the order of keys stays, but does not enter the checksum."""
    sealed = {**document, SEAL: f"{crc32c(encode_json(document)):08x}"}
    return (json.dumps(sealed, indent=2, allow_nan=False) + "\n").encode()


def unseal(data: bytes, path: str) -> dict[str, Any]:
    """The object in the bytes of a file, without its checksum. Documents of earlier versions have none.

    Raises CorruptFile if the checksum is wrong or the bytes are no JSON object.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise CorruptFile(path, f"no JSON ({error})") from None
    if not isinstance(document, dict):
        raise CorruptFile(path, f"expected a JSON object, got {type(document).__name__}")
    stored = document.pop(SEAL, None)
    if stored is not None and stored != f"{crc32c(encode_json(document)):08x}":
        raise CorruptFile(path, f"its content does not match its checksum {stored}")
    return document


def check_recorded(data: Part, path: str, recorded: Checksum) -> None:
    """Raise CorruptFile if the bytes of a file are not those that were recorded."""
    size, crc = checksum(data)
    if (size, crc) != recorded:
        detail = f"{size} bytes with crc32c {crc:08x}, recorded are {recorded[0]} with {recorded[1]:08x}"
        raise CorruptFile(path, detail)
