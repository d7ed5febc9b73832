"""A look at a few images: a picture for each, nothing replaced without leave, no Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pipelines.cli import main as cli
from pipelines.detect.predictor import Predictor
from pipelines.predict import draw as module
from pipelines.predict.config import PredictConfig
from pipelines.predict.draw import draw, picture_names
from sparse_detr.data.decode import decode_image
from sparse_detr.errors import ConfigError, OutputExistsError
from sparse_detr.storage.location import Location
from sparse_detr.visualize import draw_detections

if TYPE_CHECKING:
    from sparse_detr.detector import SparseDetr

Make = Callable[[int, int, int], bytes]
SIZE = {"short_side": 64, "max_side": 96}


@pytest.fixture
def config(model_folder: str, tmp_path: Path, make_picture: Make) -> PredictConfig:
    """Three sound images, two of one name, and a broken one."""
    files = {"a.jpg": make_picture(1, 96, 128), "one/b.jpg": make_picture(2, 64, 64),
             "two/b.jpg": make_picture(3, 64, 64), "text.jpg": b"<html>"}  # fmt: skip
    for name, data in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    return PredictConfig(
        model=model_folder, images=str(tmp_path / "in"), draw=str(tmp_path / "out"), score_threshold=0.2, **SIZE
    )


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_picture_of_every_sound_image(config: PredictConfig, tmp_path: Path, model: SparseDetr) -> None:
    moves: list[tuple[int, int]] = []
    drawn = draw(config, on_progress=lambda done, total: moves.append((done, total)))
    assert _files(tmp_path / "out") == {"a.png", "one/b.png", "two/b.png"}
    assert moves == [(4, 4)]
    (broken,) = (image for image in drawn if image.failure)
    assert (broken.picture, broken.failure.stage if broken.failure else "") == (None, "decode")
    assert broken.uri.endswith("in/text.jpg")

    first = next(image for image in drawn if image.uri.endswith("a.jpg"))
    (result,) = Predictor(model, config, score_threshold=0.2)([tmp_path / "in" / "a.jpg"])
    assert result.detections is not None
    assert model.classes is not None
    assert first.boxes == len(result.detections.scores) > 0
    assert first.best == (model.classes.names[int(result.detections.labels[0])], float(result.detections.scores[0]))
    pixels = decode_image((tmp_path / "in" / "a.jpg").read_bytes(), name="a.jpg")
    expected = draw_detections(pixels, result.detections, model.classes.names, threshold=0.2)
    picture = decode_image((tmp_path / "out" / "a.png").read_bytes(), name="a.png")
    np.testing.assert_array_equal(picture, expected)


def test_pictures_that_are_there_are_replaced_by_leave_alone(config: PredictConfig, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"draw: .*pictures of these names \(a\.png\).*set existing to overw"):
        draw(config)
    assert _files(tmp_path / "out") == {"a.png"}
    (tmp_path / "out" / "other.txt").touch()
    draw(replace(config, existing="overwrite"))
    assert _files(tmp_path / "out") == {"a.png", "one/b.png", "two/b.png", "other.txt"}
    assert (tmp_path / "out" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_an_image_is_never_replaced(config: PredictConfig, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "in" / "c.png")
    with pytest.raises(ConfigError, match=r"draw: .*in/c\.png would replace the image itself"):
        draw(replace(config, draw=config.images, existing="overwrite"))


def test_a_folder_among_the_images_is_not_drawn_again(config: PredictConfig, tmp_path: Path) -> None:
    inside = replace(config, draw=str(tmp_path / "in" / "drawn"))
    assert len(draw(inside)) == len(draw(replace(inside, existing="overwrite"))) == 4


def test_one_image_and_a_list_of_images(config: PredictConfig, tmp_path: Path) -> None:
    (only,) = draw(replace(config, images=str(tmp_path / "in" / "one" / "b.jpg"), draw=str(tmp_path / "single")))
    assert only.picture == str(tmp_path / "single" / "b.png")
    (tmp_path / "list.txt").write_text("in/one/b.jpg\nin/../in/two/b.jpg\nin/one/b.jpg\n")
    draw(replace(config, images=str(tmp_path / "list.txt"), draw=str(tmp_path / "listed")))
    assert _files(tmp_path / "listed") == {"one/b.png", "two/b.png"}


def test_store_to_store(config: PredictConfig, store: Location, tmp_path: Path) -> None:
    store.child("in").copy_tree_from(tmp_path / "in")
    draw(replace(config, images=store.child("in").uri, draw=store.child("out").uri))
    assert store.child("out").list(recursive=True) == ["a.png", "one/b.png", "two/b.png"]


def test_many_images_are_a_run(config: PredictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    with pytest.raises(ConfigError, match=r"draw: 4 images are more than the 3.*--limit 3 or --sample 3"):
        draw(config)
    assert len(draw(replace(config, sample=2))) == 2


def test_names_of_pictures_differ() -> None:
    assert picture_names(["a.jpg", "b/a.jpg", "c.d.jpg"]) == ["a.png", "b/a.png", "c.d.png"]
    assert picture_names(["a.jpg", "a.png", "a.jpg.png"]) == ["a.jpg.png", "a.png.png", "a.jpg.png.png"]


def test_the_command_shows_a_table(config: PredictConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", config.images, "--model", config.model, "--short-side", "64", "--max-side", "96",
             "--score-threshold", "0.2", "--draw", str(tmp_path / "out")]  # fmt: skip
    assert cli.main(words) == 0
    out = capsys.readouterr().out.replace("\n", "")
    assert all(text in out for text in ("a.jpg", "best class", "score", "Images with errors: 1", "text.jpg: decode"))
    assert cli.main(words) == 2
    assert "set existing to overwrite" in capsys.readouterr().err.replace("\n", " ")
    words[1] = str(tmp_path / "in" / "text.jpg")
    assert cli.main(words) == 1


def test_ray_is_not_imported(config: PredictConfig) -> None:
    fields = {name: getattr(config, name) for name in ("model", "images", "draw", "short_side", "max_side")}
    code = (
        "import json, sys; from pipelines.predict.config import PredictConfig; "
        "from pipelines.predict.command import predict_command; "
        f"code = predict_command(PredictConfig(**json.loads({json.dumps(fields)!r}))); "
        "assert 'ray' not in sys.modules; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
