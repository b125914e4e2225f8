"""Photos and masks to tensors, and anomaly maps back to the photo's own pixels: one geometry for all."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anomalygpt.datasets.photos import to_rgb

Geometry = Literal["squash", "crop"]


class ImageTransform:
    """Resizes photos and masks to a square of ``size`` pixels, normalises them, and maps results back to the photo.

    ``squash`` resizes both sides, ``crop`` (of the paper's evaluation) the short one, and takes the centre.
    """

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], geometry: Geometry = "squash") -> None:
        self.size, self.mean, self.std, self.geometry = size, mean, std, geometry

    def enlarged(self, scale: int) -> "ImageTransform":
        """The same transform with a side that is ``scale`` times as long."""
        return ImageTransform(scale * self.size, self.mean, self.std, self.geometry)

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image of any mode and size -> (3, size, size) float32, normalised."""
        return self.normalise(np.asarray(self.shown(image)))

    def shown(self, image: Image.Image) -> Image.Image:
        """The exact pixels that the model sees: RGB, size x size (PIL bicubic)."""
        return self._resize(to_rgb(image), Image.Resampling.BICUBIC)

    def normalise(self, pixels: np.ndarray) -> Tensor:
        """Pixels as :meth:`shown` gives them, uint8 (size, size, 3) -> (3, size, size) float32, normalised."""
        chw = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return ((chw - mean) / std).contiguous()

    def mask(self, mask: Image.Image) -> Tensor:
        """PIL mask of mode L and any size -> (1, size, size) float32 in 0..1, in the photo's geometry (bilinear)."""
        return torch.from_numpy(np.array(self._resize(mask, Image.Resampling.BILINEAR), dtype=np.float32))[None] / 255

    def to_photo(self, map: Tensor, photo_size: tuple[int, int], fill: float = 0.0) -> Tensor:
        """A map (S, S) on the pixels of an upright photo (width, height), bilinear, with ``fill`` outside the crop."""
        x, y = (self._model_coordinates(side, min(photo_size)).to(map.device) for side in photo_size)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) * 2 - 1  # (height, width, 2)
        source = map[None, None].to(torch.float32)
        photo = F.grid_sample(source, grid[None], mode="bilinear", padding_mode="border", align_corners=False)
        inside = ((x >= 0) & (x <= 1))[None, :] & ((y >= 0) & (y <= 1))[:, None]  # (height, width)
        return torch.where(inside, photo[0, 0], torch.full((), fill, device=map.device)).to(map.dtype)

    def _model_coordinates(self, side: int, short: int) -> Tensor:
        """Where each pixel along a photo's ``side`` is in the model's input: (side,) float32, 0..1 inside it."""
        resized = self._resized(side, short)
        offset = round((resized - self.size) / 2)
        return ((torch.arange(side) + 0.5) * (resized / side) - offset) / self.size

    def _resize(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """The resized photo's centre square; rounds as torchvision's Resize and CenterCrop do."""
        width, height = (self._resized(side, min(image.size)) for side in image.size)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.resize((width, height), resample).crop((left, top, left + self.size, top + self.size))

    def _resized(self, side: int, short: int) -> int:
        return self.size if self.geometry == "squash" or side == short else int(self.size * side / short)
