"""A map and its ground truth on the same pixels, by a rule that is printed with the numbers (specification 2)."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from anomalygpt.datasets import loco, masks, transforms
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.regions import Region
from anomalygpt.datasets.transforms import MVTEC_THRESHOLD, ImageTransform
from anomalygpt.inference.results import ImageResult

Resolution = Literal["map", "photo"]
MaskRule = Literal["official_mvtec", "official_visa", "as_photo", "photo"]
MASK_RULES: dict[MaskRule, str] = {
    "official_mvtec": (
        f"complete mask squashed to the map's size, bilinear, > {MVTEC_THRESHOLD} (the paper's rule for MVTec-AD)"
    ),
    "official_visa": (
        "mask's short side resized to the map's size, centre crop, bilinear, > "
        f"{transforms.VISA_SHARE_OF_MAXIMUM:.0%} of its maximum (the paper's rule for VisA)"
    ),
    "as_photo": f"mask resized and cropped as its photo was, bilinear, > {MVTEC_THRESHOLD}",
    "photo": (
        f"map resized to the photo's own pixels, bilinear, and the mask as it is, > {MVTEC_THRESHOLD}; "
        "pixels outside a centre crop score 0"
    ),
}
CONNECTED = "a defect is a connected part of a mask, corners touching; all weigh alike"
SATURATED = (
    "each of LOCO's masks, logical or structural, is one defect; its overlap saturates at the threshold of its kind "
    "(saturated PRO)"
)


def choose_mask_rule(kind: str, official: bool, resolution: Resolution) -> MaskRule:
    """The rule for masks of a kind of data set; ``official`` selects the released code's geometry."""
    if resolution == "photo":
        return "photo"
    if official and kind == "mvtec":
        return "official_mvtec"
    return "official_visa" if official and kind == "visa" else "as_photo"


def describe_rule(rule: MaskRule, transform: ImageTransform, side: int) -> str:
    """How photos, maps of ``side`` pixels, and masks are brought to the same pixels, in words."""
    pixels = "" if rule == "photo" else f", measured at {side} x {side}"
    return f"photos: {transform.geometry}{pixels}; {MASK_RULES[rule]}"


def on_map(mask: Image.Image, transform: ImageTransform, side: int, rule: MaskRule) -> NDArray[np.bool_]:
    """A mask on the map's pixels, (side, side) bool; ``transform`` is that of its photo."""
    if rule == "official_mvtec":
        return transforms.official_mvtec_mask(mask, side)[0].numpy()
    if rule == "official_visa":
        return transforms.official_visa_mask(mask, side)[0].numpy()
    at_map_size = ImageTransform(side, transform.mean, transform.std, transform.geometry)
    return (at_map_size.mask(mask)[0] > MVTEC_THRESHOLD).numpy()


class GroundTruth(NamedTuple):
    """A photo's map and marked defects."""

    scores: NDArray[np.float32]  # (H, W), the map
    mask: NDArray[np.bool_]  # (H, W), True where anomalous
    regions: list[Region] | None  # the defects; None for the mask's connected regions
    model_mask: NDArray[np.bool_]  # (S, S), the mask of what the model was shown, on the pixels of its map
    coding: str = ""  # how the mask was read; empty of a good photo


def ground_truth(
    record: ImageRecord, result: ImageResult, transform: ImageTransform, rule: MaskRule, saturated: bool = False
) -> GroundTruth:
    """A photo's map and mask on the same pixels; raises DatasetError where the mask can't be read.

    ``saturated``: each of LOCO's masks is one region, with the saturation threshold of its kind.
    """
    side = result.model_map.shape[-1]
    scores = result.map if rule == "photo" else result.model_map[0, 0].to("cpu", torch.float32).numpy()
    if not record.masks:
        return GroundTruth(scores, np.zeros(scores.shape, dtype=bool), None, np.zeros((side, side), dtype=bool))

    def placed(mask: Image.Image) -> NDArray[np.bool_]:
        if rule == "photo":
            return transforms.mask_on_photo(mask, result.map.shape[::-1])
        return on_map(mask, transform, side, rule)

    image, coding = masks.read_mask(record)
    mask = placed(masks.own_values(record, image) if rule == "official_visa" else image)
    regions: list[Region] | None = None
    if saturated:
        regions = []
        for defect in loco.regions(record):
            pixels = placed(transforms.binary_image(defect.pixels))
            if pixels.any():
                needed = defect.needed / np.count_nonzero(defect.pixels) * np.count_nonzero(pixels)
                regions.append(Region(pixels & mask, float(needed)))
    model_mask = mask if rule == "as_photo" else on_map(image, transform, side, "as_photo")
    return GroundTruth(scores, mask, regions, model_mask, coding)
