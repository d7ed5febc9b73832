"""An untrained model and collections of images, sound and broken."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

if TYPE_CHECKING:
    # Our packages are imported inside the fixtures: this file may be read before jaxtyping's import hook is in place.
    from sparse_detr.detector import SparseDetr


def encode(image: Image.Image, form: str = "JPEG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def picture(seed: int, height: int = 96, width: int = 128) -> Image.Image:
    """Smooth noise, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def tiny_model() -> SparseDetr:
    """Untrained, with class heads wide enough that no two scores tie."""
    from sparse_detr.detector import SparseDetr
    from sparse_detr.model.config import BackboneConfig, ModelConfig
    from sparse_detr.records import Classes

    torch.manual_seed(0)
    backbone = BackboneConfig(name="resnet_tiny", norm="group_norm", frozen_stages=0)
    model = SparseDetr(
        ModelConfig(
            num_classes=3,
            backbone=backbone,
            channels=64,
            heads=4,
            encoder_layers=1,
            decoder_layers=1,
            feedforward_channels=64,
            queries=20,
            keep_ratio=0.3,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.shape[0] == 3:
                parameter.normal_(std=0.5)
    model.classes = Classes(names=("disc", "square", "star"), category_ids=(2, 5, 9))
    return model.eval()


@pytest.fixture(scope="session")
def model() -> SparseDetr:
    return tiny_model()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, model: SparseDetr) -> str:
    """The model as training would leave it."""
    from sparse_detr.weights.model_folder import save_model

    folder = tmp_path_factory.mktemp("model")
    save_model(str(folder / "model"), model)
    return str(folder / "model")


@pytest.fixture(scope="session")
def sound() -> dict[str, bytes]:
    """Images of several sizes and kinds that all can be used."""
    sizes = [(96, 128), (128, 96), (96, 128), (64, 64), (100, 150), (96, 128), (128, 96), (96, 128)]
    files = {f"{i:02d}.jpg": encode(picture(i, *size)) for i, size in enumerate(sizes)}
    files["cmyk.jpg"] = encode(picture(20).convert("CMYK"))
    files["grey.png"] = encode(picture(21).convert("L"), "PNG")
    files["deep/alpha.png"] = encode(picture(22).convert("RGBA"), "PNG")
    grey = np.asarray(picture(23).convert("L"), np.uint16) * 257
    files["sixteen.png"] = encode(Image.fromarray(grey), "PNG")
    return files


@pytest.fixture(scope="session")
def broken() -> dict[str, bytes]:
    """Every kind of file that looks like an image by its name and is none."""
    whole = encode(picture(30))
    return {
        "empty.jpg": b"",
        "truncated.jpg": whole[: len(whole) // 2],
        "text.jpg": b"<html>404 Not Found</html>",
        "bomb.png": encode(Image.new("1", (20_000, 20_000)), "PNG"),
    }


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write the files below the folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory, sound: dict[str, bytes], broken: dict[str, bytes]) -> Path:
    """A folder with the sound and the broken images."""
    return write_files(tmp_path_factory.mktemp("images"), sound | broken)


@pytest.fixture(scope="session")
def make_picture() -> Callable[[int, int, int], bytes]:
    """The bytes of a JPEG by seed, height and width."""
    return lambda seed, height, width: encode(picture(seed, height, width))
