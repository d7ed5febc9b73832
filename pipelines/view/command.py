"""`sparse-detr view`: writes the page and says where it is."""

from __future__ import annotations

from rich.console import Console

from pipelines.cli.console import progress_bar, values_table
from pipelines.view.config import ViewConfig
from pipelines.view.run import view


def view_command(config: ViewConfig) -> int:
    """Write the page, and show its counts and its place."""
    with progress_bar("Counting") as move:
        found = view(config, on_progress=move)
    facts: dict[str, object] = {
        "images": found.images if found.finished else f"{found.images} of {found.total}, the run is not finished",
        "boxes": found.boxes,
        "images with errors": found.errors,
        "pictures": found.pictures,
        **({"unreadable pictures": found.unreadable} if found.unreadable else {}),
        "page": found.page,
    }
    Console().print(values_table("View", facts))
    return 0
