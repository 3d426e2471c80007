"""Paths and URLs that users give: one reading for every setting and argument that names a file or folder."""

import os
import re
from pathlib import Path

LONGEST_NAME = 255
"""Bytes of one part of a path that every common file system can hold."""
LONGEST_PATH = 4000
"""Bytes of a whole path; Linux takes 4096, and names inside a store come on top."""

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that no text of a user may hold: control characters, line ends, bytes that are not UTF-8."""

_VARIABLE = re.compile(r"\$(\w+|\{)")


def local_path(text: str | Path, key: str = "path") -> Path:
    """The path of a file or folder, with `~` as the home folder; every other character stands for itself.

    Raises ValueError, naming `key`, for text that can't be a path: empty, too long, with control characters, or with
    an environment variable, which only a shell expands.
    """
    path = str(text)
    if not path:
        raise ValueError(f"{key} is empty; give a path")
    if CONTROL.search(path):
        raise ValueError(f"{key}={path!r}: a path has no line breaks or other control characters")
    if variable := _VARIABLE.search(path):
        raise ValueError(f"{key}={path}: {variable[0]} is not expanded here; let the shell do it, or write the path")
    if len(os.fsencode(path)) > LONGEST_PATH or any(len(os.fsencode(p)) > LONGEST_NAME for p in path.split("/")):
        raise ValueError(
            f"{key}={path[:60]}...: too long; a path has at most {LONGEST_PATH} bytes, each part {LONGEST_NAME}"
        )
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~NAME of an unknown user
        raise ValueError(f"{key}={path}: {error}") from error


def local_folder(url: str | Path, key: str = "output") -> Path | None:
    """The folder at a path or `file://` URL; None for an object store. Raises ValueError as `local_path` does."""
    scheme, separator, rest = str(url).partition("://")
    if not separator:
        return local_path(url, key)
    return local_path("/" + rest.lstrip("/"), key) if scheme == "file" else None


def without_slash(url: str) -> str:
    """A path or URL without trailing slashes, so that OUT/ and OUT are the same output."""
    stripped = url.rstrip("/")
    return url if not stripped or stripped.endswith(":") else stripped
