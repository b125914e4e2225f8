"""Photos and masks to tensors, and anomaly maps back to the photo's own pixels: one geometry for all."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from anomalygpt.datasets.records import DatasetError, ImageRecord

Geometry = Literal["squash", "crop"]

TRAINING_THRESHOLD = 0.3
MVTEC_THRESHOLD = 0.1
VISA_SHARE_OF_MAXIMUM = 0.01
DEFECT_INDICES = 30  # 8-bit masks hold grey levels, or small numbers that name the kind of defect
WHITE = (255, 255, 255)


def load_image(path: Path) -> Image.Image:
    """The photo at ``path``, upright 8-bit RGB. Raises :class:`DatasetError` if missing, truncated or no image."""
    return to_rgb(open_image(Path(path)))


def load_mask(record: ImageRecord) -> Image.Image:
    """A record's mask on its photo's own pixels, in any mode that :meth:`ImageTransform.mask` takes.

    Raises:
        DatasetError: the record has no mask, or it is missing, truncated or no image.
    """
    if record.mask is None:
        raise DatasetError(f"{record.image}: has no mask")
    return (record.mask_reader or open_image)(record.mask)


def open_image(path: Path) -> Image.Image:
    """An upright image in its own mode. Raises :class:`DatasetError` if it is missing, truncated or no image."""
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{path}: cannot be read as an image ({reason})") from error


def binary_image(flags: NDArray[np.bool_]) -> Image.Image:
    """(H, W) bool -> mode L, 0 and 255."""
    return Image.fromarray(np.where(flags, np.uint8(255), np.uint8(0)))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as upright 8-bit RGB: grey is repeated, transparency is put on white, 16 bits are divided by 257.

    Mode I is taken as 8-bit when no value exceeds 255, mode F as 0..1 when none exceeds 1.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey_8bit(image)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        front = image.convert("RGBA")
        back = Image.new("RGBA", front.size, (*WHITE, 255))
        return Image.alpha_composite(back, front).convert("RGB")
    return image.convert("RGB")


def _grey_8bit(image: Image.Image) -> np.ndarray:
    """A 16-bit, 32-bit or float image (mode I;16*, I, F) as uint8 (H, W)."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        scaled = values * 255 if values.max(initial=0) <= 1 else values
    else:
        scaled = values / 257 if image.mode != "I" or values.max(initial=0) > 255 else values
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def mask_8bit(mask: Image.Image) -> Image.Image:
    """Any mask as mode L with its own values: palette indices stay indices, 16 bits are scaled to 8."""
    mask = ImageOps.exif_transpose(mask)
    if mask.mode == "P":
        return Image.fromarray(np.asarray(mask))
    if mask.mode.startswith("I") or mask.mode == "F":
        values = np.asarray(mask)
        small = mask.mode != "F" and values.max(initial=0) <= 255
        return Image.fromarray(values.astype(np.uint8) if small else _grey_8bit(mask))
    return mask if mask.mode == "L" else mask.convert("L")


def _full_scale(mask: Image.Image) -> Image.Image:
    """Any mask as mode L over 0..255: where the largest value is 1 to 29, each of those indices counts as 255."""
    grey = mask_8bit(mask)
    values = np.asarray(grey)
    return binary_image(values > 0) if values.max(initial=0) < DEFECT_INDICES else grey


def mask_on_photo(mask: Image.Image, photo_size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask of any mode on its photo's own pixels, ``> 0.1``; one of another size is resized, bilinear.

    Args:
        photo_size: (width, height) of the upright photo.

    Returns:
        (height, width) bool.
    """
    grey = _full_scale(mask)
    if grey.size != photo_size:
        grey = grey.resize(photo_size, Image.Resampling.BILINEAR)
    return np.asarray(grey, dtype=np.float32) / 255 > MVTEC_THRESHOLD


class ImageTransform:
    """Resizes and normalises photos and masks, and maps results back to the photo.

    Args:
        size: the side of the square that the model sees, in pixels.
        mean, std: per channel, on the 0..1 scale.
        geometry: ``squash`` resizes both sides to ``size`` (training and demo of the paper's code); ``crop`` resizes
            the short side to ``size`` and takes the centre (its evaluation and its few-shot references).
    """

    def __init__(
        self, size: int, mean: tuple[float, ...], std: tuple[float, ...], geometry: Geometry = "squash"
    ) -> None:
        self.size = size
        self.mean = mean
        self.std = std
        self.geometry = geometry

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
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return ((chw - mean) / std).contiguous()

    def mask(self, mask: Image.Image) -> Tensor:
        """PIL mask of any mode and size -> (1, size, size) float32 in 0..1, in the photo's geometry (bilinear).

        A mask whose largest value is 1 to 29 holds defect indices: each of them counts as 1.
        """
        return _unit_tensor(self._resize(_full_scale(mask), Image.Resampling.BILINEAR))

    def to_photo(self, map: Tensor, photo_size: tuple[int, int], fill: float = 0.0) -> Tensor:
        """An anomaly map on the photo's own pixels, bilinear.

        Args:
            map: (S, S) float of any S, over what the model saw.
            photo_size: (width, height) of the upright photo in pixels.
            fill: the value of pixels outside the crop.

        Returns:
            (height, width), of the map's dtype.
        """
        side = map.shape[-1]
        width, height = photo_size
        x = self._seen(width, min(photo_size)).to(map.device)  # (width,) 0..1 across what the model saw
        y = self._seen(height, min(photo_size)).to(map.device)  # (height,)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) * 2 - 1  # (height, width, 2)
        source = map.reshape(1, 1, side, side).to(torch.float32)
        photo = F.grid_sample(source, grid[None], mode="bilinear", padding_mode="border", align_corners=False)
        inside = ((x >= 0) & (x <= 1))[None, :] & ((y >= 0) & (y <= 1))[:, None]  # (height, width)
        return torch.where(inside, photo[0, 0], torch.full((), fill, device=map.device)).to(map.dtype)

    def _seen(self, side: int, short: int) -> Tensor:
        """Where each pixel along a photo's ``side`` is on the seen square: (side,) float32, 0..1 inside it."""
        resized = self.size if self.geometry == "squash" else _scaled(side, short, self.size)
        offset = round((resized - self.size) / 2)
        return ((torch.arange(side) + 0.5) * (resized / side) - offset) / self.size

    def _resize(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        if self.geometry == "squash":
            return image.resize((self.size, self.size), resample)
        return _short_side_crop(image, self.size, resample)


def _short_side_crop(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """The short side resized to ``size``, then the centre square; rounds as torchvision's Resize and CenterCrop do."""
    width, height = (_scaled(side, min(image.size), size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), resample).crop((left, top, left + size, top + size))


def _scaled(side: int, short: int, size: int) -> int:
    return size if side == short else int(size * side / short)


def _unit_tensor(grey: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(grey, dtype=np.float32))[None] / 255


def official_mvtec_mask(mask: Image.Image, size: int) -> Tensor:
    """MVTec AD's evaluation mask as the paper's code makes it: squash, bilinear, ``> 0.1``. (1, size, size) bool."""
    return _unit_tensor(mask_8bit(mask).resize((size, size), Image.Resampling.BILINEAR)) > MVTEC_THRESHOLD


def official_visa_mask(mask: Image.Image, size: int) -> Tensor:
    """VisA's evaluation mask as the paper's code makes it: short side, crop, ``> max / 100``. (1, size, size) bool."""
    values = _unit_tensor(_short_side_crop(mask_8bit(mask), size, Image.Resampling.BILINEAR))
    return values > values.max() * VISA_SHARE_OF_MAXIMUM
