"""`sparse-detr convert`: the authors' checkpoints into model folders, and back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import Literal

from pipelines.convert.config import ConvertConfig
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import StorageError, require
from sparse_detr.storage.download import parse_address
from sparse_detr.storage.location import locate
from sparse_detr.storage.output import checked_file, checked_folder, require_apart
from sparse_detr.weights.authors.convert import ConversionReport, convert_original, original_file, original_report
from sparse_detr.weights.model_folder import CONFIG, MANIFEST, WEIGHTS, save_model


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCount:
    """Size of one part of a model."""

    tensors: int
    """Parameters and buffers."""
    aliases: int
    """Further keys that the authors' checkpoint has for them."""
    numbers: int
    """Elements of the tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertResult:
    """Result of a conversion."""

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
        _refuse_options_of_theirs(config)
        output = checked_file(config.output, config.existing, inputs={"source": config.source})
        model = SparseDetr.from_pretrained(config.source)
        report = original_report(model)
        output.write_bytes(original_file(model, ignore_scoring_mean=config.ignore_scoring_mean))
        return ConvertResult(direction="to the authors'", output=output.uri, report=report, parts=_parts(model, report))
    require(
        not config.ignore_scoring_mean,
        f"ignore_scoring_mean: True; it tells about models of ours, but {parse_address(config.source)} is a checkpoint "
        "of the authors, leave it out",
    )
    output = checked_folder(config.output, config.existing, MANIFEST)
    require_apart(output, (WEIGHTS, CONFIG, MANIFEST), {"source": config.source})
    model, report = convert_original(SparseDetr, config.source, config.keep_ratio, config.hints)
    save_model(output.uri, model)
    return ConvertResult(direction="to ours", output=output.uri, report=report, parts=_parts(model, report))


def _refuse_options_of_theirs(config: ConvertConfig) -> None:
    given = {"keep_ratio": config.keep_ratio}
    given |= {f"hints.{entry.name}": getattr(config.hints, entry.name) for entry in fields(config.hints)}
    for name, value in given.items():
        require(
            value is None,
            f"{name}: {value}; it tells about the authors' checkpoints, but {config.source} is a model folder of "
            "ours, leave it out",
        )


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
