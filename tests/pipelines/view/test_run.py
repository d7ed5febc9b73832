"""The page: true to the table, complete in itself, safe with whatever names its data has."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.cli import main as cli
from pipelines.view.config import ViewConfig
from pipelines.view.run import ViewResult, view
from sparse_detr.errors import CheckpointError, ConfigError, OutputExistsError, StorageError
from sparse_detr.storage.location import Location, locate

WriteRun = Callable[..., None]
NAMES = ("disc", "</option><script>alert(1)</script>", "star")
HOSTILE = "\"><img src=x onerror='alert(1)'>&amp;.jpg"
ROWS: list[dict[str, Any]] = [
    {"key": "a.jpg", "boxes": [(2, 0.9, 5, 6, 50, 60), (0, 0.4, 70, 20, 90, 50)]},
    {"key": HOSTILE, "boxes": [(1, 0.6, 5, 6, 50, 60)]},
    {"key": "empty.jpg"},
    {"key": "gone.jpg", "boxes": [(0, 0.5, 1, 1, 9, 9)]},
    {"key": "other.jpg", "boxes": [(0, 0.3, 1, 1, 9, 9)]},
    {"key": "bad.jpg", "error": ("decode", "ImageError", "<b>not</b> & an image")},
    {"key": "worse.jpg", "error": ("fetch", "StorageError", "s3://user:hunter2hunter2@bucket/x refused")},
]


class _Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.text += " " if tag in ("td", "b", "span") else ""

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_picture: Callable[[int, int, int], bytes]) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, name in enumerate(["a.jpg", "empty.jpg", "onerror.jpg"]):
        (folder / name).write_bytes(make_picture(number, 96, 128))
    (folder / "other.jpg").write_bytes(make_picture(9, 40, 50))
    (folder / HOSTILE).write_bytes((folder / "onerror.jpg").read_bytes())
    return folder


@pytest.fixture(scope="module")
def run(images: Path, make_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> Location:
    output = locate(tmp_path_factory.mktemp("out"))
    make_run(output, str(images), ROWS, names=NAMES)
    return output


def _view(output: Location, folder: Path, **changes: Any) -> tuple[ViewResult, _Page, str]:
    page = folder / "view.html"
    result = view(ViewConfig(output=output.uri, page=str(page), existing="overwrite", **changes))
    text = page.read_text(encoding="utf-8")
    return result, _Page(text), text


def test_the_numbers_are_those_of_the_table(run: Location, tmp_path: Path) -> None:
    result, page, _ = _view(run, tmp_path)
    assert (result.images, result.total, result.boxes, result.errors) == (7, 7, 5, 2)
    assert (result.pictures, result.unreadable, result.finished) == (5, 2, True)
    assert "This run is not finished" not in page.text
    text = " ".join(page.text.split())
    assert "star 1 1" in text
    assert "disc 3 3" in text
    assert "decode ImageError 1" in text
    assert "1 images without a box" in text
    bars = re.findall(r"\d\.\d\d to (\d\.\d\d): (\d+) boxes", text)
    assert len(bars) == 20
    assert sum(int(count) for _, count in bars) == 5
    assert {end for end, count in bars if int(count)} <= {
        "0.35",
        "0.45",
        "0.50",
        "0.55",
        "0.60",
        "0.65",
        "0.90",
        "0.95",
    }
    assert "those below 0.25 were left out" in text


def test_boxes_carry_what_the_filter_asks_for(run: Location, tmp_path: Path) -> None:
    _, page, _ = _view(run, tmp_path)
    boxes = [(box["data-label"], box["data-score"]) for box in page.all("g")]
    assert sorted(boxes) == [("0", "0.3000"), ("0", "0.4000"), ("0", "0.5000"), ("1", "0.6000"), ("2", "0.9000")]
    assert [option["value"] for option in page.all("option")] == ["", "none", "0", "1", "2"]
    assert {link["href"] for link in page.all("a")} == {"#class=0", "#class=1", "#class=2"}
    (large,) = (one for one in page.all("rect") if (one.get("x"), one.get("y")) == ("70.0", "20.0"))
    assert (large["width"], large["height"]) == ("20.0", "30.0")
    # The best box is drawn last, on top.
    assert [score for label, score in boxes if (label, score) in (("0", "0.4000"), ("2", "0.9000"))] == [
        "0.4000", "0.9000",
    ]  # fmt: skip


def test_pictures_are_in_the_page_and_the_others_are_noted(run: Location, images: Path, tmp_path: Path) -> None:
    _, page, _ = _view(run, tmp_path)
    pictures = page.all("img")
    assert {picture["alt"] for picture in pictures} == {"a.jpg", HOSTILE, "empty.jpg"}
    (source,) = (picture["src"] for picture in pictures if picture["alt"] == "a.jpg")
    shown = Image.open(io.BytesIO(base64.b64decode(str(source).partition(",")[2])))
    difference = np.asarray(shown, np.int16) - np.asarray(Image.open(images / "a.jpg").convert("RGB"), np.int16)
    assert np.abs(difference).mean() < 5
    assert "cannot be read any more" in page.text
    assert "is another image now, of 50 x 40 in place of 128 x 96 pixels" in page.text


def test_nothing_is_loaded_from_outside(run: Location, tmp_path: Path) -> None:
    _, page, text = _view(run, tmp_path)
    assert all(str(picture["src"]).startswith("data:image/jpeg;base64,") for picture in page.all("img"))
    assert all(str(link["href"]).startswith("#") for link in page.all("a"))
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import|\bfetch\b\(|XMLHttp|import\(", text)
    assert all("src" not in script for script in page.all("script"))


def test_names_from_outside_stay_text(run: Location, tmp_path: Path) -> None:
    _, page, text = _view(run, tmp_path)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(page.all("script")) == 1
    (policy,) = (one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)
    assert NAMES[1] in page.text
    assert "<b>not</b> & an image" in page.text
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    captions = {caption["title"] for caption in page.all("figcaption")}
    assert any(str(caption).endswith(HOSTILE) for caption in captions)


def test_secrets_are_hidden(run: Location, tmp_path: Path) -> None:
    _, page, text = _view(run, tmp_path)
    assert "hunter2" not in text
    assert "s3://***@bucket/x refused" in page.text


def test_an_unfinished_run_is_shown_with_a_note(images: Path, make_run: WriteRun, tmp_path: Path) -> None:
    output = locate(tmp_path / "out")
    make_run(output, str(images), ROWS, names=NAMES, finished=False, total=28)
    result, page, _ = _view(output, tmp_path)
    assert (result.images, result.total, result.finished) == (7, 28, False)
    assert "7 of 28 images are done (25.0%)" in " ".join(page.text.split())


def test_a_run_that_has_done_nothing_yet(make_run: WriteRun, tmp_path: Path) -> None:
    make_run(locate(tmp_path / "out"), "/r", [], names=NAMES, finished=False, total=5)
    result, page, _ = _view(locate(tmp_path / "out"), tmp_path)
    assert (result.images, result.boxes, result.pictures) == (0, 0, 0)
    assert "0 of 5 images are done" in " ".join(page.text.split())
    assert not page.all("figure")
    assert not page.all("script")


def test_a_run_without_any_box(images: Path, make_run: WriteRun, tmp_path: Path) -> None:
    make_run(locate(tmp_path / "out"), str(images), [{"key": "a.jpg"}, {"key": "empty.jpg"}], names=NAMES)
    result, page, _ = _view(locate(tmp_path / "out"), tmp_path)
    assert (result.boxes, len(page.all("figure"))) == (0, 2)
    assert "What was found" not in page.text


def test_from_the_store_to_the_store(images: Path, make_run: WriteRun, store: Location) -> None:
    rows = [row for row in ROWS if row["key"] in ("a.jpg", "empty.jpg", "gone.jpg")]
    for name in ("a.jpg", "empty.jpg"):
        store.child("in", name).write_bytes((images / name).read_bytes())
    make_run(store.child("out"), store.child("in").uri, rows, names=NAMES)
    page = store.child("view.html")
    result = view(ViewConfig(output=store.child("out").uri, page=page.uri))
    assert (result.images, result.pictures, result.unreadable) == (3, 3, 1)
    found = _Page(page.read_bytes().decode())
    assert len(found.all("img")) == 2
    assert f"{store.uri}/in/a.jpg" in {caption["title"] for caption in found.all("figcaption")}
    with pytest.raises(OutputExistsError, match=r"page: .*exists"):
        view(ViewConfig(output=store.child("out").uri, page=page.uri))


def test_the_list_of_a_finished_run_is_trusted_and_not_the_folder(run: Location, tmp_path: Path) -> None:
    first = run.child("detections").list()[0]
    stray = "part-0000000090-0000000093.parquet"
    run.child("detections", stray).write_bytes(run.child("detections", first).read_bytes())
    try:
        assert _view(run, tmp_path)[0].images == 7
    finally:
        run.child("detections", stray).delete_file()
    moved = run.child("detections", first).read_bytes()
    run.child("detections", first).delete_file()
    try:
        with pytest.raises(StorageError, match=re.escape(first)):
            _view(run, tmp_path)
    finally:
        run.child("detections", first).write_bytes(moved)


def test_what_is_no_run_is_refused(tmp_path: Path, make_run: WriteRun) -> None:
    with pytest.raises(StorageError, match=r"holds no _run\.json; give the output folder of a predict run"):
        view(ViewConfig(output=str(tmp_path), page=str(tmp_path / "p.html")))
    make_run(locate(tmp_path / "out"), "/r", ROWS[:1], names=NAMES)
    (tmp_path / "out" / "_run.json").write_text('{"settings": {}}')
    with pytest.raises(CheckpointError, match="has no collection; it is of another version"):
        view(ViewConfig(output=str(tmp_path / "out"), page=str(tmp_path / "p.html")))
    (tmp_path / "out" / "_run.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        view(ViewConfig(output=str(tmp_path / "out"), page=str(tmp_path / "p.html")))


@pytest.mark.parametrize(
    ("field", "value"), [("output", ""), ("page", "view.txt"), ("pictures", -1), ("pictures", 1001), ("seed", -1)]
)
def test_field_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        ViewConfig(**{"output": "o", field: value})  # type: ignore[arg-type]


def test_the_command_says_where_the_page_is(run: Location, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "found.html"
    assert cli.main(["view", run.uri, "--page", str(page), "--pictures", "2"]) == 0
    assert "found.html" in re.sub(r"[│\s]", "", capsys.readouterr().out)
    assert len(_Page(page.read_text()).all("figure")) == 2
    assert cli.main(["view", run.uri, "--page", str(page)]) == 2
    assert "set existing to overwrite" in capsys.readouterr().err.replace("\n", " ")
