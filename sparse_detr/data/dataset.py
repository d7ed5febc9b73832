"""A detection data set for torch: annotations from an index, images from any store, kept in memory once read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from sparse_detr.data.coco_index import CocoImage, CocoIndex
from sparse_detr.data.decode import decode_image
from sparse_detr.data.sampler import Draw
from sparse_detr.data.transforms import Transform
from sparse_detr.errors import AnnotationError, ImageError
from sparse_detr.records import Batch, BrokenImage, Example, ImageBatch
from sparse_detr.storage.location import locate

Cache = Literal["none", "bytes", "pixels"]


class DetectionDataset(Dataset[Example]):
    """The images of an index with their objects, crowd regions left out.

    Pickles to DataLoader workers without what it has read.
    """

    def __init__(
        self,
        index: CocoIndex,
        images_uri: str | Path,
        transform: Transform,
        *,
        cache: Cache = "bytes",
        cache_limit: int = 2 << 30,
        stand_ins: int = 0,
    ) -> None:
        """Nothing is read yet.

        Args:
            index: images and boxes.
            images_uri: the folder of the images, in any store.
            transform: from decoded pixels to what the network takes.
            cache: what stays in memory after the first read: nothing, files, or, for small ones, decoded images.
            cache_limit: bytes that the cache of one process may take; what is beyond is read every time.
            stand_ins: where an image is broken, one of so many that follow it in the index may stand in.

        Raises:
            AnnotationError: the index has no images.
            StorageError: `images_uri` is not a path or URI that we know.
        """
        if len(index) == 0:
            raise AnnotationError(f"{index.source}: has no images; give annotations with at least one")
        self.index = index
        self.transform = transform
        self._folder = locate(images_uri)
        self._cache = cache
        self._cache_limit = cache_limit
        self._stand_ins = min(stand_ins, len(index) - 1)
        self._clear()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int | Draw) -> Example:
        """One example, by its number; of a `Draw` augmented as that says, whichever process does it, and when.

        Which image stands in for a broken one follows from the index and the files alone: the next that is sound, with
        the augmentation that the broken one would have had. The number of ranks and of processes has no say in it.

        Raises:
            ImageError: the image is broken, and so are its stand-ins; the message names the file.
            AnnotationError: likewise, where it has another size than its annotations say.
            StorageError: the image cannot be read.
        """
        first = item.item if isinstance(item, Draw) else item
        broken: list[BrokenImage] = []
        for place in range(first, first + 1 + self._stand_ins):
            number = place % len(self)
            try:
                example = self._example(number, item.generator() if isinstance(item, Draw) else None)
            except (ImageError, AnnotationError) as error:
                if self._stand_ins == 0:
                    raise
                broken.append(self._explained(number, error))
            else:
                return replace(example, instead_of=tuple(broken)) if broken else example
        raise ImageError(f"{broken[0].file}: {broken[0].reason}; and {len(broken) - 1} images behind it are broken too")

    def _example(self, number: int, rng: np.random.Generator | None) -> Example:
        image = self.index.images[number]
        wanted = ~image.crowd
        pixels, targets = self.transform(self.pixels(number), image.boxes[wanted], image.labels[wanted], rng)
        return Example(image_id=image.id, pixels=pixels, targets=targets, original_size=(image.height, image.width))

    def pixels(self, item: int) -> np.ndarray:
        """The decoded image, uint8 [H, W, 3]; errors as in `__getitem__`. Do not write into it."""
        if item in self._pixels:
            return self._pixels[item]
        image = self.index.images[item]
        found = decode_image(self._file(item), name=self._folder.child(image.file_name).uri)
        self._check_size(image, found)
        if self._cache == "pixels" and self._room(found.nbytes):
            self._pixels[item] = found
        return found

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__.copy()
        for name in ("_bytes", "_pixels", "_held"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._clear()

    def _clear(self) -> None:
        self._bytes: dict[int, bytes] = {}
        self._pixels: dict[int, np.ndarray] = {}
        self._held = 0

    def _file(self, item: int) -> bytes:
        if item in self._bytes:
            return self._bytes[item]
        data = self._folder.child(self.index.images[item].file_name).read_bytes()
        if self._cache == "bytes" and self._room(len(data)):
            self._bytes[item] = data
        return data

    def _explained(self, number: int, error: Exception) -> BrokenImage:
        file = self._folder.child(self.index.images[number].file_name).uri
        return BrokenImage(file=file, reason=str(error).removeprefix(f"{file}: "))

    def _room(self, size: int) -> bool:
        fits = self._held + size <= self._cache_limit
        self._held += size if fits else 0
        return fits

    def _check_size(self, image: CocoImage, pixels: np.ndarray) -> None:
        if pixels.shape[:2] != (image.height, image.width):
            raise AnnotationError(
                f"{self._folder.child(image.file_name).uri}: is {pixels.shape[1]}x{pixels.shape[0]}, but "
                f"{self.index.source} says {image.width}x{image.height}; correct the annotations or the image"
            )


def collate(examples: Sequence[Example]) -> Batch:
    """Pad examples to one size."""
    return Batch(
        images=ImageBatch.from_list([example.pixels for example in examples]),
        targets=tuple(example.targets for example in examples),
        image_ids=tuple(example.image_id for example in examples),
        original_sizes=tuple(example.original_size for example in examples),
        broken=tuple(image for example in examples for image in example.instead_of),
    )
