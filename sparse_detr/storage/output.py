"""The one file that a verb writes where its user says: found to be writable, and free, before any work."""

from __future__ import annotations

from sparse_detr.errors import OutputExistsError
from sparse_detr.storage.location import Location, check_access, locate


def checked_file(uri: str, *, overwrite: bool, field: str = "output") -> Location:
    """Where the file will go.

    Args:
        uri: a path, `file:` or `s3://` URI.
        overwrite: a file that is there already may be replaced.
        field: names the setting in messages.

    Raises:
        OutputExistsError: there is a folder, or a file and `overwrite` is False.
        StorageError: the folder cannot be written to.
    """
    output = locate(uri)
    folder = locate(output.uri.rpartition("/")[0] or "/")
    check_access(folder, writable=True)
    if output.is_dir():
        raise OutputExistsError(f"{field}: {output.uri} is a folder; name a file in it")
    if output.exists() and not overwrite:
        raise OutputExistsError(f"{field}: {output.uri} exists; choose another file, or give overwrite to replace it")
    return output


def checked_folder(uri: str, *, overwrite: bool) -> Location:
    """Where the model folder will go, found to be writable and free before any work."""
    output = locate(uri)
    check_access(locate(output.uri.rpartition("/")[0] or "/"), writable=True)
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"output: {output.uri} is a file; name a folder for the model")
    if output.exists() and output.list() and not overwrite:
        raise OutputExistsError(
            f"output: {output.uri} exists and is not empty; choose another folder, or give overwrite to replace the "
            "model in it"
        )
    return output
