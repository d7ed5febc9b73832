"""The trained model in this process: precision at several keep ratios, and pictures of what it sees."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader

from pipelines.demo.report import Example, RatioPoint
from sparse_detr.data.coco import read_coco
from sparse_detr.data.coco_index import CocoImage
from sparse_detr.data.dataset import DetectionDataset, collate
from sparse_detr.data.decode import decode_image
from sparse_detr.data.transforms import EvalTransform
from sparse_detr.detector import SparseDetr
from sparse_detr.evaluation.coco_ap import coco_results, evaluate_coco
from sparse_detr.evaluation.mode import evaluating
from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.records import Batch, Classes, ImageSize
from sparse_detr.storage.location import locate
from sparse_detr.visualize import Picture, draw_detections, enlarge, kept_tokens_overlay, saliency_overlay

_BATCH = 16
_SIDE = 480
_THRESHOLD = 0.4


class Inspection:
    """Validation images in memory, to look at the model from several sides."""

    def __init__(self, model: SparseDetr, annotations: str, images: str, *, side: int) -> None:
        self._model = model
        self._index = read_coco(annotations)
        self._images = locate(images)
        transform = EvalTransform(size=ImageSize(short_side=side, max_side=side))
        self._dataset = DetectionDataset(self._index, images, transform)
        self._batches: list[Batch] = list(DataLoader(self._dataset, batch_size=_BATCH, collate_fn=collate))

    def at_ratio(self, ratio: float) -> RatioPoint:
        """COCO's precision on all validation images, and the time of one image, with this keep ratio."""
        results = []
        classes = self._classes
        started = time.perf_counter()
        with evaluating(self._model):
            for batch in self._batches:
                found = postprocess(self._model(batch.images, keep_ratio=ratio), batch.original_sizes)
                results += list(zip(batch.image_ids, found, strict=True))
        seconds = time.perf_counter() - started
        rows = [row for image_id, detections in results for row in coco_results(image_id, detections, classes)]
        metrics = evaluate_coco(self._index.ground_truth(), rows)
        images = len(self._dataset)
        return RatioPoint(
            keep_ratio=ratio, ap=metrics.ap, ap50=metrics.ap50, milliseconds=1000 * seconds / images, images=images
        )

    def ratios(self, ratios: Sequence[float], on_progress: Callable[[int, int], None]) -> tuple[RatioPoint, ...]:
        """`at_ratio` for each, after a first pass that warms up and does not count."""
        with evaluating(self._model):
            self._model(self._batches[0].images)
        points = []
        for done, ratio in enumerate(sorted(set(ratios)), start=1):
            points.append(self.at_ratio(ratio))
            on_progress(done, len(set(ratios)))
        return tuple(points)

    def examples(self, count: int) -> Iterator[Example]:
        """Pictures of the first validation images that have several objects."""
        rich = [place for place, image in enumerate(self._index.images) if len(image.labels) >= 3]
        for place in (rich or list(range(len(self._index))))[:count]:
            yield self._example(place)

    @torch.no_grad()
    def _example(self, place: int) -> Example:
        image, example = self._index.images[place], self._dataset[place]
        picture = self._picture(image)
        with evaluating(self._model):
            output = self._model(collate([example]).images)
        (found,) = postprocess(output, [(image.height, image.width)])
        names = self._classes.names
        boxes = draw_detections(picture, found, names, threshold=_THRESHOLD, truth=example.targets, short_side=_SIDE)
        pictures = [("detections, and the truth dashed", boxes)]
        large = enlarge(picture, _SIDE)
        selection = output.selection
        if selection is not None:
            kept = selection.kept[0, : int(selection.counts[0])]
            pictures += [
                ("saliency", saliency_overlay(large, selection.saliency[0], output.shapes)),
                ("kept tokens, finest level", kept_tokens_overlay(large, kept, output.shapes, level=0)),
                ("kept tokens, all levels", kept_tokens_overlay(large, kept, output.shapes)),
            ]
        return Example(caption=image.file_name, pictures=tuple(pictures))

    def _picture(self, image: CocoImage) -> Picture:
        return decode_image(self._images.child(image.file_name).read_bytes(), name=image.file_name)

    @property
    def _classes(self) -> Classes:
        return self._model.classes or self._index.classes
