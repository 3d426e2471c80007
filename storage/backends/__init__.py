"""Named bytes with atomic replacement: the interface and local disks in `files`, object stores in `objects`.

The entrance is `open_files`, for `storage` and for the check of a shared output in `cluster.resources`; `paths` reads
every path that a user gives.
"""

from storage.backends.files import Files, LocalFiles
from storage.backends.paths import local_folder, local_path, without_slash

__all__ = ["Files", "LocalFiles", "local_folder", "local_path", "open_files", "without_slash"]

SCHEMES = ("s3", "gs", "az", "memory")


def open_files(url: str) -> Files:
    """Files at a path or URL: `/path`, `file://`, `s3://`, `gs://`, `az://`, `memory://`."""
    folder = local_folder(url)
    if folder is not None:
        return LocalFiles(folder)
    scheme = str(url).partition("://")[0]
    if scheme not in SCHEMES:
        schemes = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"{url}: scheme {scheme!r} is not known: use a path or {schemes}")
    from storage.backends.objects import ObjectFiles  # obstore is imported only if it is needed

    return ObjectFiles(without_slash(url))
