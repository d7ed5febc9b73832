"""One offline page of what a prediction found: `sparse-detr view`."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from pipelines.view.config import ViewConfig
from pipelines.view.pictures import Shown, show
from pipelines.view.results import Results, open_results
from pipelines.view.tally import BINS, Tally
from sparse_detr.redaction import without_secrets
from sparse_detr.storage.access import check_access
from sparse_detr.storage.location import locate
from sparse_detr.storage.output import checked_file
from sparse_detr.visualize import class_colour

TEMPLATE = "page.html.jinja"
SCRIPT = "filter.js"


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewResult:
    """A page, and what it shows."""

    page: str
    """URI."""
    images: int
    """Images that were done."""
    total: int
    """Images of the run."""
    boxes: int
    errors: int
    pictures: int
    unreadable: int
    """Pictures that are noted alone, as their images cannot be read any more."""
    finished: bool


def view(config: ViewConfig, *, on_progress: Callable[[int, int], None] | None = None) -> ViewResult:
    """Read the rows of a run once, and write a page of counts, scores, errors and some of the images with boxes.

    Args:
        config: the run, and where its page goes.
        on_progress: called with (images counted, images that are done).

    Raises:
        StorageError: there is no run, or a part of it cannot be read.
        CheckpointError: the run is of another version.
        OutputExistsError: there is a file at `page` and `existing` is `refuse`.
    """
    output = locate(config.output)
    check_access(output)
    page = checked_file(config.page, config.existing, field="page")
    results = open_results(output)
    done = sum(last - first + 1 for first, last in results.spans)
    tally = Tally(config.pictures, config.seed)
    for first, table in results.tables():
        tally.add(first, table)
        if on_progress is not None:
            on_progress(tally.images, done)
    shown = show(tally.sample())
    page.write_bytes(render(results, tally, shown).encode())
    return ViewResult(
        page=page.uri,
        images=tally.images,
        total=results.total,
        boxes=tally.boxes,
        errors=tally.errors,
        pictures=len(shown),
        unreadable=sum(picture.jpeg is None for picture in shown),
        finished=results.success is not None,
    )


def render(results: Results, tally: Tally, shown: list[Shown]) -> str:
    """The page as HTML: every text in it is escaped, and free of secrets."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("pipelines.view", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: without_secrets(value) if type(value) is str else value,
    )
    environment.filters["colour"] = lambda label: "#{:02x}{:02x}{:02x}".format(*class_colour(label))
    # Our own text, and base64: nothing to escape in them, and megabytes to search for secrets.
    environment.filters["picture"] = Markup
    script = files("pipelines.view").joinpath(SCRIPT).read_text(encoding="utf-8")
    return environment.get_template(TEMPLATE).render(
        results=results,
        tally=tally,
        shown=shown,
        bars=_bars(tally),
        settings=_settings(results),
        script=Markup(script),
        # The browser runs this script and no other, whatever a file's name smuggles in.
        script_hash=Markup(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
    )


def _bars(tally: Tally) -> list[tuple[float, float, int]]:
    """Start and end of each bin of scores, and its boxes."""
    return [(number / BINS, (number + 1) / BINS, int(count)) for number, count in enumerate(tally.histogram)]


def _settings(results: Results) -> Mapping[str, Any]:
    settings, collection = results.record["settings"], results.record["collection"]
    given = {
        "images": collection["images"],
        "model": results.record.get("model"),
        "results": results.output.uri,
        "keep ratio": settings["keep_ratio"],
        "image size": f"{settings['short_side']}, at most {settings['max_side']} pixels",
        "score threshold": settings["score_threshold"],
        "tiles": settings.get("tile"),
        "fingerprint": results.record["fingerprint"],
        "started": results.record.get("started"),
    }
    return {name: value for name, value in given.items() if value is not None}
