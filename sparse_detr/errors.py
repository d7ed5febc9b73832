"""User errors, as one small tree of exceptions.

    ValueError
      SparseDetrError          a user error; exit code 2 on the command line
        ConfigError            a field, or a combination of fields, that cannot work
        AnnotationError        an annotation file that cannot be read as what it claims to be
        ImageError             one image that cannot be decoded
        CheckpointError        a checkpoint that is cut short, foreign or unsafe
        StorageError           a path, bucket or store that cannot be reached
          StoreUnavailableError  the store fails in a way that passes by itself: busy, restarting, cut off
          StoreRefusedError      the store refuses the credentials, or the bucket is gone: true of every key
        OutputExistsError      results of another run stand where these would go
        IncompleteError        a job ended before all was done; the same command goes on
        ErrorBudgetError       more images of a collection failed than were allowed to
        DeviceError            the GPU failed, and fails for the rest of the process
        NotFiniteError         numbers that became NaN or infinite, mostly by diverged training

Every message names the field or file, the value found, and the remedy.
"""

from __future__ import annotations


class SparseDetrError(ValueError):
    """Root of the user errors: what is wrong, and what the user can do about it."""


class ConfigError(SparseDetrError):
    """A configuration field, or a combination of fields, that cannot work."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


class AnnotationError(SparseDetrError):
    """An annotation file that cannot be read as what it claims to be."""


class ImageError(SparseDetrError):
    """One image that cannot be turned into RGB pixels."""


class CheckpointError(SparseDetrError):
    """A checkpoint that is cut short, of another model, or unsafe to load."""


class StorageError(SparseDetrError):
    """A path, bucket or object store that cannot be reached or read."""


class StoreUnavailableError(StorageError):
    """The store fails in a way that passes by itself (5xx, 429, a connection cut or silent): try again later."""


class StoreRefusedError(StorageError):
    """The store refuses the credentials themselves, or the bucket is not there: no other key will fare better."""


class OutputExistsError(SparseDetrError):
    """Results of another run stand where this run would write."""


class NotFiniteError(SparseDetrError):
    """Predictions or targets that are NaN or infinite: training diverged, or an input was not finite."""


class IncompleteError(SparseDetrError):
    """A job ended before all of its work was done, and nothing of what was done is lost: the same command goes on."""


class ErrorBudgetError(SparseDetrError):
    """More images of a collection failed than were allowed to."""


class DeviceError(SparseDetrError):
    """The GPU failed, and whatever this process asks of it from now on fails too."""

    def __init__(self, message: str, image: int | None = None) -> None:
        """With the row in the manifest of the image that it had; None where there were several, or none is to blame."""
        super().__init__(message)
        self.image = image
