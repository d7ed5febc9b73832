from __future__ import annotations

import pytest
import torch

from sparse_detr.errors import ConfigError
from sparse_detr.records import Batch, Classes, ImageBatch, ImageSize, Targets


def test_images_are_padded_at_the_right_and_the_bottom() -> None:
    wide, high = torch.full((3, 2, 5), 7.0), torch.full((3, 4, 3), -1.0)
    batch = ImageBatch.from_list([wide, high])

    assert len(batch) == 2
    assert batch.pixels.shape == (2, 3, 4, 5)
    assert torch.equal(batch.pixels[0, :, :2], wide)
    assert torch.equal(batch.pixels[1, :, :, :3], high)
    # What is not an image is zero and marked, and nothing else is.
    assert batch.pixels.ne(0).sum() == wide.numel() + high.numel()
    assert (~batch.padding[0]).nonzero().tolist() == [[y, x] for y in range(2) for x in range(5)]
    assert (~batch.padding[1]).nonzero().tolist() == [[y, x] for y in range(4) for x in range(3)]


def test_one_image_is_not_padded_and_keeps_its_type() -> None:
    image = torch.rand(3, 6, 4, dtype=torch.float64)
    batch = ImageBatch.from_list([image])

    assert torch.equal(batch.pixels[0], image)
    assert batch.pixels.dtype == torch.float64
    assert not batch.padding.any()


def test_a_batch_holds_copies() -> None:
    image = torch.ones(3, 2, 2)
    batch = ImageBatch.from_list([image])
    image.zero_()

    assert batch.pixels.eq(1).all()


def test_no_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="images: the list is empty"):
        ImageBatch.from_list([])


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 4, 4),
        torch.zeros(4, 4),
        torch.zeros(1, 3, 4, 4),
        torch.zeros(3, 0, 4),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
    ],
    ids=["two channels", "no channels", "a batch already", "no rows", "bytes"],
)
def test_what_is_no_image_is_refused_by_its_place(wrong: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"images\[1\]: shape \(.*give float tensors of shape \[3, H, W\]"):
        ImageBatch.from_list([torch.zeros(3, 4, 4), wrong])


def test_a_batch_moves_with_all_that_it_holds() -> None:
    batch = Batch(
        images=ImageBatch.from_list([torch.zeros(3, 4, 4)]),
        targets=(Targets(labels=torch.tensor([1]), boxes=torch.rand(1, 4)),),
        image_ids=(9,),
        original_sizes=((8, 8),),
    ).to("meta")

    tensors = (batch.images.pixels, batch.images.padding, batch.targets[0].labels, batch.targets[0].boxes)
    assert all(tensor.is_meta for tensor in tensors)
    assert (batch.image_ids, batch.original_sizes) == ((9,), ((8, 8),))


def test_classes_that_do_not_fit_together_are_refused() -> None:
    assert len(Classes(names=("cat", "dog"), category_ids=(17, 18))) == 2
    with pytest.raises(ConfigError, match="2 names but 1 category ids"):
        Classes(names=("cat", "dog"), category_ids=(17,))
    with pytest.raises(ConfigError, match=r"\(17, 17\) has an id twice"):
        Classes(names=("cat", "dog"), category_ids=(17, 17))


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="short_side: 0"):
        ImageSize(short_side=0, max_side=10)
    with pytest.raises(ConfigError, match="max_side: 9 is less than short_side: 10"):
        ImageSize(short_side=10, max_side=9)
