"""Output of a command: found to be writable and free before any work, and claimed in one way by all commands.

A claim has two steps, so that nothing is deleted before everything else was checked: `claim_folder` looks and may
refuse, `Claim.clear` deletes what `existing: overwrite` replaces.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparse_detr.errors import OutputExistsError, require
from sparse_detr.storage.access import check_access
from sparse_detr.storage.download import parse_address
from sparse_detr.storage.location import Location, locate

Existing = Literal["refuse", "overwrite", "resume"]
"""The word of all commands for results that are there already."""

Replace = Literal["refuse", "overwrite"]
"""The same for a command that cannot continue what is there."""

CLEARING = ".overwriting"
"""File that is there while `overwrite` deletes. What a deletion cut short leaves may be overwritten, never resumed."""


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
        if self.existing != "overwrite" or not self.found:
            return
        self.output.child(CLEARING).write_bytes(b"Results of an earlier run are being deleted.\n")
        for name in (*self.found, CLEARING):
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
    marks: tuple[str, ...] = (),
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
        marks: names that a run alone leaves. Without any of them, files of these names are somebody else's, and are
            left alone whatever `existing` says.
        field: names the setting in messages.
        holds: says whose results they are; asked only when they are refused.
        resumable: the message offers `resume` too.

    Raises:
        OutputExistsError: results are there and `existing` is `refuse`, nobody knows whose they are, there is too
            little left of them to resume, or `output` is a file.
    """
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"{field}: {output.uri} is a file; name a folder")
    found = tuple(name for name in (*results, CLEARING) if output.child(name).exists())
    if found and marks and not any(output.child(mark).exists() for mark in (*marks, CLEARING)):
        raise OutputExistsError(
            f"{field}: {output.uri} holds {', '.join(found)} that no run of ours wrote; choose another {field}"
        )
    if CLEARING in found and existing == "resume":
        raise OutputExistsError(
            f"{field}: {output.uri} holds the rest of a run that was being deleted; set existing to overwrite"
        )
    if found and existing == "refuse":
        remedy = "overwrite or resume" if resumable else "overwrite"
        setting = f"{field.removesuffix('output')}existing" if field.endswith("output") else "existing"
        raise OutputExistsError(
            f"{field}: {output.uri} holds {holds()} ({_few(found)}); choose another output, "
            f"or set {setting} to {remedy}"
        )
    return Claim(output=output, found=found, existing=existing)


def _few(names: tuple[str, ...]) -> str:
    """The first names: a folder of pictures has hundreds."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def require_marked(folder: Location, mark: str, *, field: str, writer: str) -> None:
    """Let a command replace a whole folder only where it carries the mark of the command, or holds nothing.

    Raises:
        OutputExistsError: there is a file, or a folder of something else.
    """
    if folder.exists() and not folder.child(mark).exists() and (not folder.is_dir() or folder.list()):
        raise OutputExistsError(f"{field}: {folder.uri} holds something that no {writer} wrote; choose another {field}")


def require_apart(
    output: Location, results: tuple[str, ...], inputs: Mapping[str, str | None], *, field: str = "output"
) -> None:
    """Refuse to replace results of an earlier run that this run reads.

    Args:
        output: the folder of the results.
        results: names of what would be replaced.
        inputs: a path, URI or address by the name of its field; None is passed over.
        field: names the setting of `output` in messages.

    Raises:
        OutputExistsError: an input is one of the results, is in one, or holds one.
    """
    for name in results:
        require_file_apart(output.child(name), inputs, field=field)


def require_file_apart(file: Location, inputs: Mapping[str, str | None], *, field: str = "output") -> None:
    """The same for one file."""
    mine = _parts(file)
    for name, address in inputs.items():
        parsed = parse_address(address) if address else None
        if parsed is None or parsed.on_web:
            continue
        source = locate(parsed.uri)
        theirs = _parts(source)
        if theirs == mine:
            relation = "is what"
        elif theirs[: len(mine)] == mine:
            relation = f"is in {file.uri}, which"
        elif mine[: len(theirs)] == theirs:
            relation = f"holds {file.uri}, which"
        else:
            continue
        raise OutputExistsError(f"{name}: {source.uri} {relation} {field} would replace; choose another {field}")


def _parts(location: Location) -> tuple[str, ...]:
    """Names on the way to a location, links followed, after one for its store."""
    if location.is_local:
        return Path(os.path.realpath(location.path)).parts
    return ("s3:", *location.path.strip("/").split("/"))


def checked_file(
    uri: str, existing: Existing, *, inputs: Mapping[str, str | None] | None = None, field: str = "output"
) -> Location:
    """The one file that a command writes where its user says.

    Args:
        uri: a path, `file:` or `s3://` URI.
        existing: `overwrite` lets a file that is there be replaced.
        inputs: what the command reads, by the name of its field: a file there is not replaced.
        field: names the setting in messages.

    Raises:
        OutputExistsError: there is a folder, or a file and `existing` is not `overwrite`, or one of the inputs.
        StorageError: the folder cannot be written to.
    """
    output = _writable(uri)
    if output.is_dir():
        raise OutputExistsError(f"{field}: {output.uri} is a folder; name a file in it")
    if output.exists():
        require_file_apart(output, inputs or {}, field=field)
    if output.exists() and existing != "overwrite":
        raise OutputExistsError(
            f"{field}: {output.uri} exists; choose another file, or set existing to overwrite to replace it"
        )
    return output


def checked_folder(uri: str, existing: Existing, mark: str) -> Location:
    """The model folder that a command writes.

    Args:
        uri: a path, `file:` or `s3://` URI.
        existing: `overwrite` lets a model that is there be replaced.
        mark: name of a file that every whole model has.

    Raises:
        OutputExistsError: there is a file, a folder of something else, or a model and `existing` is not `overwrite`.
        StorageError: the folder cannot be written to.
    """
    output = _writable(uri)
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"output: {output.uri} is a file; name a folder for the model")
    require_marked(output, mark, field="output", writer="finished conversion")
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
