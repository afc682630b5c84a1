"""Images as a processor hands them to a model: grids of patches, and what they show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sinkscope.hf.models import setting
from sinkscope.undo import Undo

SIDE = 96  # pixels of a thumbnail, both ways


class Grid(NamedTuple):
    """The patches of an image, or of the frames of a video.

    Attributes:
        frames: how many there are; 1 of an image.
        rows, columns: of patches in each.
        merged: how many patches along each side make one token of the text; None where the model does not say.
    """

    frames: int
    rows: int
    columns: int
    merged: int | None

    def tokens(self, count: int) -> tuple[int, int] | None:
        """Rows and columns of the tokens of one frame, `count` in all; None where they make no such grid."""
        patches = self.rows * self.columns
        side = self.merged or isqrt(patches // max(count, 1))
        fits = side and patches == count * side**2 and self.rows % side == self.columns % side == 0
        return (self.rows // side, self.columns // side) if fits else None


@contextmanager
def without_offsets(model: nn.Module) -> Iterator[None]:
    """Have a model forget by how much an image that it read before moves later positions, and know it again behind."""
    kept: list[tuple[Any, Any]] = [
        (each, vars(each)["rope_deltas"]) for each in model.modules() if "rope_deltas" in vars(each)
    ]
    with Undo() as undo:
        for module, offsets in kept:
            undo.callback(setattr, module, "rope_deltas", offsets)
            module.rope_deltas = None
        yield


def image_grids(model: Any, given: Mapping[str, Any]) -> list[Grid]:
    """The grids of the images that a model is called with, in their order; none where the arguments do not tell."""
    vision = setting(model, "vision_config")
    merged, patch = (getattr(vision, name, None) for name in ("spatial_merge_size", "patch_size"))
    for name in ("image_grid_thw", "video_grid_thw"):
        if isinstance(each := given.get(name), Tensor) and each.dim() == 2 and each.shape[1] == 3:
            other = given.get("video_grid_thw")
            if name == "image_grid_thw" and other is not None:  # images and videos stand in any order
                return []
            return [Grid(frames, rows, columns, merged) for frames, rows, columns in each.tolist()]
    if isinstance(each := given.get("spatial_shapes"), Tensor) and each.dim() == 2 and each.shape[1] == 2:
        return [Grid(1, rows, columns, None) for rows, columns in each.tolist()]
    if isinstance(each := given.get("image_position_ids"), Tensor) and each.dim() == 3 and each.shape[2] == 2:
        return [Grid(1, rows, columns, None) for columns, rows in (each.amax(1) + 1).tolist()]
    pixels = given.get("pixel_values")
    sides = patch if isinstance(patch, (list, tuple)) else (patch, patch)
    if not isinstance(pixels, Tensor) or pixels.dim() not in (4, 5) or not all(isinstance(side, int) for side in sides):
        return []
    if (sizes := image_sizes(pixels, given)) is None:
        sizes = [list(pixels.shape[-2:])] * pixels.shape[:-3].numel()
    return [Grid(1, height // sides[0], width // sides[1], None) for height, width in sizes]


def image_sizes(pixels: Tensor, given: Mapping[str, Any]) -> list[list[int]] | None:
    """Height and width of each image that stands alone in a row of `pixels`, in its upper left corner; None where that
    is not said."""
    sizes = given.get("image_sizes")
    if not isinstance(sizes, Tensor) or pixels.dim() != 4 or sizes.shape != (len(pixels), 2):
        return None
    fits = bool((sizes <= torch.tensor(pixels.shape[-2:], device=sizes.device)).all())
    return sizes.tolist() if fits else None


def thumbnails(model: Any, given: Mapping[str, Any]) -> Tensor | None:
    """Images that a model is called with, [image, row, column], grey in 0..1 and square; None where there are none."""
    pixels = given.get("pixel_values")
    if not isinstance(pixels, Tensor) or not pixels.is_floating_point():
        return None
    if pixels.dim() in (4, 5):
        pictures = list(pixels.flatten(0, -4).float())
    else:
        grids = image_grids(model, given)
        sizes = [grid.frames * grid.rows * grid.columns for grid in grids]
        if pixels.dim() != 2 or not grids or sum(sizes) != len(pixels) or any(grid.merged is None for grid in grids):
            return None
        packed = zip(pixels.float().split(sizes), grids, strict=True)
        pictures = [picture for patches, grid in packed for picture in _unpacked(model, patches, grid)]
    if not pictures or any(picture.shape[0] not in (1, 3) for picture in pictures):
        return None
    grey = [interpolate(picture.mean(0)[None, None], (SIDE, SIDE), mode="area")[0, 0].cpu() for picture in pictures]
    return torch.stack([_stretched(picture) for picture in grey])


def _stretched(picture: Tensor) -> Tensor:
    low, high = picture.aminmax()
    return (picture - low) / (high - low).clamp(min=1e-6)


def _unpacked(model: Any, patches: Tensor, grid: Grid) -> list[Tensor]:
    """Frames [colour, row, column] of patches that stand in blocks, those that make one token together."""
    patch = getattr(setting(model, "vision_config"), "patch_size", None)
    side = grid.merged or 1
    if not isinstance(patch, int) or patches.shape[1] % (3 * patch**2):
        return []
    blocks = (grid.frames, grid.rows // side, grid.columns // side, side, side, 3, -1, patch, patch)
    frames = patches.reshape(blocks)[..., 0, :, :]  # of the times that a patch covers the first
    frames = frames.permute(0, 5, 1, 3, 6, 2, 4, 7)
    return list(frames.reshape(grid.frames, 3, grid.rows * patch, grid.columns * patch))
