"""The commands of data sets: what they write, what they refuse, what they list."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from pipelines.cli import main as cli


def test_import_voc_lists_the_boxes_that_it_drops(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "train.json"
    arguments = ["data", "import-voc", "--root", str(shared / "data" / "bccd"), "--split", "train",
                 "--output", str(target)]  # fmt: skip
    assert cli.main(arguments) == 0
    written = json.loads(target.read_text())
    out = capsys.readouterr().out
    assert str(len(written["images"])) in out
    assert {category["name"] for category in written["categories"]} == {"RBC", "WBC", "Platelets"}
    assert cli.main(arguments) == 2
    assert "existing to overwrite" in capsys.readouterr().err
    assert cli.main([*arguments, "--existing", "overwrite"]) == 0


def test_shapes_are_made_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shapes"
    make = ["data", "shapes", "--output", str(folder), "--train", "3", "--val", "2"]
    assert cli.main(make) == 0
    assert len(list((folder / "train").glob("*.jpg"))) == 3
    assert len(list((folder / "val").glob("*.jpg"))) == 2
    assert cli.main(make) == 2
    capsys.readouterr()
    check = ["data", "check", "--annotations", str(folder / "train.json"), "--images", str(folder / "train")]
    assert cli.main(check) == 0
    boxes = len(json.loads((folder / "train.json").read_text())["annotations"])
    assert str(boxes) in capsys.readouterr().out
    first = next((folder / "train").glob("*.jpg"))
    first.write_bytes(first.read_bytes()[:100])
    assert cli.main(check) == 1
    assert first.name in capsys.readouterr().out
    assert cli.main([*check, "--no-decode"]) == 0
    first.unlink()
    assert cli.main(check) == 2
    assert first.name in capsys.readouterr().err


def test_shapes_replace_a_generated_set_as_a_whole_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shapes"
    folder.mkdir()
    make = ["data", "shapes", "--output", str(folder), "--train", "3", "--val", "2"]
    (folder / "val.json").write_text("precious")
    for words in ([], ["--existing", "overwrite"]):
        assert cli.main([*make, *words]) == 2
        assert "holds val.json that no run of ours wrote" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in folder.iterdir()] == ["val.json"]
    (folder / "val.json").unlink()
    assert cli.main(make) == 0
    (folder / "train.json").unlink()
    assert cli.main(make) == 2
    (folder / "notes.txt").write_text("the user's own")
    assert cli.main([*make[:-4], "--train", "1", "--val", "1", "--existing", "overwrite"]) == 0
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == [
        "notes.txt", "shapes.json", "train.json", "train/000000.jpg", "val.json", "val/000000.jpg",
    ]  # fmt: skip


def test_check_lists_bad_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    boxes = [[1, 1, 5, 5], [1, 1, 0, 5], [float("nan"), 1, 5, 5]]
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
        "categories": [{"id": 7, "name": "cell"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 7, "bbox": box} for i, box in enumerate(boxes)],
    }
    (tmp_path / "a.json").write_text(json.dumps(coco))
    assert cli.main(["data", "check", "--annotations", str(tmp_path / "a.json"), "--images", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Boxes left out: 2" in out
    assert "annotation 1" in out
    assert "annotation 2" in out
