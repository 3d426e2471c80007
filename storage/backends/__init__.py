"""Named bytes with atomic replacement: the interface and local disks in `files`, object stores in `objects`.

The entrance is `open_files`, for `storage` and for the check of a shared output in `cluster.resources`.
"""

from storage.backends.files import Files, LocalFiles

SCHEMES = ("s3", "gs", "az", "memory")


def open_files(url: str) -> Files:
    """Files at a path or URL: `/path`, `file://`, `s3://`, `gs://`, `az://`, `memory://`."""
    scheme, separator, rest = str(url).partition("://")
    if not separator:
        return LocalFiles(url)
    if scheme == "file":
        return LocalFiles("/" + rest.lstrip("/"))
    if scheme not in SCHEMES:
        schemes = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"{url}: scheme {scheme!r} is not known: use a path or {schemes}")
    from storage.backends.objects import ObjectFiles  # obstore is imported only if it is needed

    return ObjectFiles(url.rstrip("/"))
