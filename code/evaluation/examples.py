"""The best and worst cases of a class, kept as small pictures while its photos go by."""

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalygpt.datasets.transforms import to_rgb
from anomalygpt.inference.predictor import Look
from anomalygpt.inference.visualize import heat, overlay

Case = Literal["found", "missed", "calm", "false_alarm"]
CASES: dict[Case, str] = {
    "missed": "defects with the lowest scores",
    "false_alarm": "good photos with the highest scores",
    "found": "defects with the highest scores",
    "calm": "good photos with the lowest scores",
}
KEPT = 2  # of each case
TILE = 180  # the longer side of a picture, in pixels
TILES = ("photo", "mask", "map", "what the user is shown")
JPEG_QUALITY = 92


@dataclass(frozen=True, order=True)
class Example:
    """One case. ``rank`` orders the cases of a kind, the most telling first; the photo's name breaks ties.

    ``strip`` is a JPEG: the pictures of ``TILES`` side by side.
    """

    rank: float
    photo: str
    strip: bytes = field(compare=False)


@dataclass
class Examples:
    """At most ``KEPT`` examples of each case; which ones does not depend on the order in which they come."""

    cases: dict[Case, list[Example]] = field(default_factory=lambda: {case: [] for case in CASES})

    def offer(self, photo: str, is_anomalous: bool, image: Image.Image, mask: NDArray[np.bool_], look: Look) -> None:
        """Keeps a photo where it belongs to the best or worst so far.

        Args:
            mask: (H, W) of any size, True where anomalous.
        """
        ranks: dict[Case, float] = (
            {"found": -look.score, "missed": look.score}
            if is_anomalous
            else {"calm": look.score, "false_alarm": -look.score}
        )
        wanted = {case: rank for case, rank in ranks.items() if self._has_room(case, rank, photo)}
        strip = _strip(image, mask, look) if wanted else b""
        for case, rank in wanted.items():
            self._keep(case, [Example(rank, photo, strip)])

    def merge(self, other: "Examples") -> None:
        """Keeps the most telling of both."""
        for case, found in other.cases.items():
            self._keep(case, found)

    def _has_room(self, case: Case, rank: float, photo: str) -> bool:
        kept = self.cases[case]
        return len(kept) < KEPT or (rank, photo) < (kept[-1].rank, kept[-1].photo)

    def _keep(self, case: Case, more: Iterable[Example]) -> None:
        self.cases[case] = sorted([*self.cases[case], *more])[:KEPT]


def _strip(image: Image.Image, mask: NDArray[np.bool_], look: Look) -> bytes:
    upright = to_rgb(image)
    scale = TILE / max(upright.size)
    size = (max(1, round(upright.width * scale)), max(1, round(upright.height * scale)))
    tiles = [
        upright.resize(size, Image.Resampling.LANCZOS),
        Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).resize(size, Image.Resampling.BILINEAR),
        _coloured(look).resize(size, Image.Resampling.BILINEAR),
        overlay(upright, look.map, look.threshold, look.regions).resize(size, Image.Resampling.LANCZOS),
    ]
    strip = Image.new("RGB", (len(TILES) * TILE, TILE), "white")
    for number, tile in enumerate(tiles):
        place = (number * TILE + (TILE - size[0]) // 2, (TILE - size[1]) // 2)
        strip.paste(tile.convert("RGB"), place)
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _coloured(look: Look) -> Image.Image:
    """The whole map in colours, on the scale of every other picture: half way up is the threshold."""
    from matplotlib import colormaps

    return Image.fromarray((colormaps["turbo"](heat(look.map, look.threshold))[..., :3] * 255).astype(np.uint8))
