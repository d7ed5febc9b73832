"""Output of a command: found to be writable and free before any work, and claimed in one way by all commands.

A claim has two steps, so that nothing is deleted before everything else was checked: `claim_folder` looks and may
refuse, `Claim.clear` deletes what `existing: overwrite` replaces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sparse_detr.errors import OutputExistsError, require
from sparse_detr.storage.location import Location, check_access, locate

Existing = Literal["refuse", "overwrite", "resume"]
"""The word of all commands for results that are there already."""

Replace = Literal["refuse", "overwrite"]
"""The same for a command that cannot continue what is there."""


def require_known(existing: str, *, resumable: bool = False) -> None:
    """Refuse a word that the command does not know: Python, unlike the command line, lets every text through.

    Raises:
        ConfigError: names the words to choose from.
    """
    if not resumable:
        require(
            existing != "resume",
            "existing: 'resume' continues a training or a prediction alone so far; choose refuse or overwrite",
        )
    known = ("refuse", "overwrite", "resume") if resumable else ("refuse", "overwrite")
    words = "refuse, overwrite or resume" if resumable else "refuse or overwrite"
    require(existing in known, f"existing: {existing!r} is not known; choose {words}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A folder that a command may write to, and what is there of an earlier run."""

    output: Location
    found: tuple[str, ...]
    """Names of results that are there, in the order in which they are deleted."""
    existing: Existing

    @property
    def resumes(self) -> bool:
        """Whether the command goes on with what is there."""
        return self.existing == "resume" and bool(self.found)

    def clear(self) -> None:
        """Delete what `overwrite` replaces: the results that were found, never the folder or anything else in it."""
        if self.existing != "overwrite":
            return
        for name in self.found:
            location = self.output.child(name)
            if location.is_dir():
                location.delete_dir()
            else:
                location.delete_file()


def claim_folder(
    output: Location,
    existing: Existing,
    results: tuple[str, ...],
    *,
    field: str = "output",
    holds: Callable[[], str] = lambda: "the results of another run",
    resumable: bool = False,
) -> Claim:
    """Look whether a run may write to the folder; changes nothing.

    Args:
        output: the folder; it need not exist.
        existing: what to do where results are there.
        results: names of what a run leaves there. They are deleted in this order, so the file that says that the run
            is complete comes first: what a deletion cut short leaves behind is then not taken for a result.
        field: names the setting in messages.
        holds: says whose results they are; asked only when they are refused.
        resumable: the message offers `resume` too.

    Raises:
        OutputExistsError: results are there and `existing` is `refuse`, or `output` is a file.
    """
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"{field}: {output.uri} is a file; name a folder")
    found = tuple(name for name in results if output.child(name).exists())
    if found and existing == "refuse":
        remedy = "overwrite or resume" if resumable else "overwrite"
        setting = f"{field.removesuffix('output')}existing"
        raise OutputExistsError(
            f"{field}: {output.uri} holds {holds()} ({', '.join(found)}); choose another output, "
            f"or set {setting} to {remedy}"
        )
    return Claim(output=output, found=found, existing=existing)


def require_marked(folder: Location, mark: str, *, field: str, writer: str) -> None:
    """Let a command replace a whole folder only where it carries the mark of the command, or holds nothing.

    Raises:
        OutputExistsError: there is a file, or a folder of something else.
    """
    if folder.exists() and not folder.child(mark).exists() and (not folder.is_dir() or folder.list()):
        raise OutputExistsError(f"{field}: {folder.uri} holds something that no {writer} wrote; choose another {field}")


def checked_file(uri: str, existing: Existing, *, field: str = "output") -> Location:
    """The one file that a command writes where its user says.

    Args:
        uri: a path, `file:` or `s3://` URI.
        existing: `overwrite` lets a file that is there be replaced.
        field: names the setting in messages.

    Raises:
        OutputExistsError: there is a folder, or a file and `existing` is not `overwrite`.
        StorageError: the folder cannot be written to.
    """
    output = _writable(uri)
    if output.is_dir():
        raise OutputExistsError(f"{field}: {output.uri} is a folder; name a file in it")
    if output.exists() and existing != "overwrite":
        raise OutputExistsError(
            f"{field}: {output.uri} exists; choose another file, or set existing to overwrite to replace it"
        )
    return output


def checked_folder(uri: str, existing: Existing) -> Location:
    """The model folder that a command writes.

    Raises:
        OutputExistsError: there is a file, or a folder that is not empty and `existing` is not `overwrite`.
        StorageError: the folder cannot be written to.
    """
    output = _writable(uri)
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"output: {output.uri} is a file; name a folder for the model")
    if output.exists() and output.list() and existing != "overwrite":
        raise OutputExistsError(
            f"output: {output.uri} exists and is not empty; choose another folder, or set existing to overwrite to "
            "replace the model in it"
        )
    return output


def _writable(uri: str) -> Location:
    output = locate(uri)
    check_access(output.parent(), writable=True)
    return output
