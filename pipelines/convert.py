"""`sparse-detr convert`: the authors' checkpoints into model folders, and back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Literal

from rich.console import Console

from pipelines.console import listing, rows_table, values_table
from pipelines.output_file import checked_file
from sparse_detr.config_dict import to_dict
from sparse_detr.download import parse_address
from sparse_detr.errors import OutputExistsError, StorageError, require
from sparse_detr.model.checkpoint import load_model, save_model
from sparse_detr.model.original_config import Hints
from sparse_detr.model.pretrained import ConversionReport, convert_original, original_file, original_report
from sparse_detr.model.sparse_detr import SparseDetr
from sparse_detr.storage import Location, check_access, locate


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertConfig:
    """What to convert, and where to. A folder is a model of ours, anything else a checkpoint of the authors."""

    source: str
    """The authors' .pth file: a path, `s3://` or `https://` address, which may end in #sha256=<hex digits> (on the web
    a must); or our model folder: a path or `s3://` URI."""
    output: str
    """Our model folder, or the .pth file where the source is one of ours: a path or `s3://` URI."""
    keep_ratio: float | None = None
    """Of the authors' checkpoint: the share of tokens it was trained with, in (0, 1). It wins over what the file says;
    files without arguments say nothing."""
    hints: Hints = field(default_factory=Hints)
    """Of the authors' checkpoint: what neither its tensors nor its arguments show."""
    ignore_scoring_mean: bool = False
    """Of our model: give it to the authors' code although its scoring network leaves padding out of its mean. In
    batches with padding that code then chooses other tokens."""
    overwrite: bool = False
    """Replace what is at `output`."""

    def __post_init__(self) -> None:
        for name in ("source", "output"):
            require(bool(getattr(self, name)), f"{name}: it is empty; give a path or an s3:// URI")
        ratio = self.keep_ratio
        require(ratio is None or 0.0 < ratio <= 1.0, f"keep_ratio: {ratio}; give a number in (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCount:
    """How much of a model lies in one of its parts."""

    tensors: int
    """Parameters and buffers."""
    aliases: int
    """Further keys that the authors' checkpoint has for them."""
    numbers: int
    """Elements of the tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertResult:
    """What was converted."""

    direction: Literal["to ours", "to the authors'"]
    output: str
    """URI of what was written."""
    report: ConversionReport
    parts: dict[str, PartCount]
    """By the name of the model's part."""


def convert(config: ConvertConfig) -> ConvertResult:
    """Read all of the source, then write all of the output.

    Raises:
        CheckpointError: the source is unsafe, damaged or of another family.
        ConfigError: an option that is lacking or does not go with the source, or a model that the authors' code
            cannot hold.
        OutputExistsError: there is something at `output`.
        StorageError: source or output cannot be reached.
    """
    if _is_ours(config.source):
        unused = {"keep_ratio": config.keep_ratio}
        unused |= {f"hints.{entry.name}": getattr(config.hints, entry.name) for entry in fields(config.hints)}
        for name, value in unused.items():
            require(
                value is None,
                f"{name}: {value}; it tells about the authors' checkpoints, but {config.source} is a model folder of "
                "ours, leave it out",
            )
        output = checked_file(config.output, overwrite=config.overwrite)
        model = load_model(config.source)
        report = original_report(model)
        output.write_bytes(original_file(model, ignore_scoring_mean=config.ignore_scoring_mean))
        return ConvertResult(direction="to the authors'", output=output.uri, report=report, parts=_parts(model, report))
    output = _checked_folder(config.output, overwrite=config.overwrite)
    model, report = convert_original(config.source, config.keep_ratio, config.hints)
    save_model(output.uri, model)
    return ConvertResult(direction="to ours", output=output.uri, report=report, parts=_parts(model, report))


def convert_verb(config: ConvertConfig) -> int:
    """Convert, and show the configuration and what was mapped."""
    result = convert(config)
    console, report = Console(), result.report
    console.print(values_table("Configuration", _flat(to_dict(report.config))))
    columns = ("tensors", "aliases", "numbers")
    rows = [
        {"part": part} | {name: f"{getattr(count, name):,}" for name in columns} for part, count in result.parts.items()
    ]
    sums = {name: f"{sum(getattr(count, name) for count in result.parts.values()):,}" for name in columns}
    console.print(rows_table("Mapped", [*rows, {"part": "all"} | sums]))
    for title, lines in (
        ("Keys without weights, left out", report.ignored),
        ("Taken to be as usual, as the checkpoint does not say", report.assumed),
    ):
        if lines:
            console.print(listing(title, lines), markup=False, highlight=False)
    kind = "Our model folder" if result.direction == "to ours" else "A checkpoint for the authors' code"
    console.print(f"{kind}: {result.output}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _is_ours(source: str) -> bool:
    address = parse_address(source)
    if address.on_web:
        return False
    location = locate(address.uri)
    if not location.exists():
        raise StorageError(
            f"source: {location.uri} does not exist; give the authors' .pth file, or a model folder of ours"
        )
    return location.is_dir()


def _checked_folder(uri: str, *, overwrite: bool) -> Location:
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


def _parts(model: SparseDetr, report: ConversionReport) -> dict[str, PartCount]:
    copies = Counter(_part(report.mapped[key]) for key in report.aliases.values())
    tensors, numbers = Counter[str](), Counter[str]()
    for name, tensor in model.state_dict().items():
        tensors[_part(name)] += 1
        numbers[_part(name)] += tensor.numel()
    return {
        part: PartCount(tensors=count, aliases=copies[part], numbers=numbers[part]) for part, count in tensors.items()
    }


def _part(name: str) -> str:
    return name.partition(".")[0].replace("_", " ")


def _flat(values: dict[str, object], before: str = "") -> dict[str, object]:
    rows: dict[str, object] = {}
    for name, value in values.items():
        rows |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return rows
