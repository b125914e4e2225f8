"""How references are remembered and compared: the options, and the presets that were measured."""

from dataclasses import dataclass, replace
from typing import Literal

from anomalygpt.config.schema import ReferencesConfig

Augmentation = Literal["none", "rotations", "flips", "auto"]


@dataclass(frozen=True)
class ReferenceSettings:
    """The defaults are the paper's (section 3.2, eq. 2; specification 4).

    Attributes:
        augmentation: which further views of a reference are remembered; ``auto`` is decided by the references.
        scales: the sides at which photos are compared, in multiples of the encoder's own.
        scale_weights: one a scale; none at all weighs them alike.
        tiling: whether a larger side is cut into tiles of the encoder's own; encoders of one size always tile.
        tap_weights: one a tap; none at all weighs them alike.
        neighbourhood: patches a side that are averaged before they are compared; odd.
        distance: 1 - ``cosine``, or ``euclid``, the length of the difference of the unit patches.
        normalise: whether a tap counts in units of what is usual between the references.
        foreground: ``auto`` quietens the background where the references have a plain one.
        coreset_share: share of the patches that is remembered, for memories above ``coreset_from`` patches.
        interpolation: ``aligned`` puts the outer patches' centres on the map's border, as the paper does; ``centred``
            where they are.
        smoothing: standard deviation of the map's Gaussian blur, in patches of the encoder's own grid.
        top_share: the image score is the mean of this share of the map's pixels, the highest; 0 is its maximum.
        text_weight: of the text map, 0..1, against the references' map; for encoders with learned or spoken states.
        text_trusted_below: the text map has its weight only where its mean score on the references is not above this,
            and none where it calls good photos anomalous: it knows nothing of such a part. 1 always trusts it.
    """

    augmentation: Augmentation = "none"
    scales: tuple[int, ...] = (1,)
    scale_weights: tuple[float, ...] = ()
    tiling: bool = False
    tap_weights: tuple[float, ...] = ()
    neighbourhood: int = 1
    distance: Literal["cosine", "euclid"] = "cosine"
    normalise: bool = False
    foreground: Literal["off", "auto"] = "off"
    coreset_share: float = 1.0
    coreset_from: int = 0
    interpolation: Literal["aligned", "centred"] = "aligned"
    smoothing: float = 0.0
    top_share: float = 0.0
    text_weight: float = 0.0
    text_trusted_below: float = 1.0


OFFICIAL = ReferenceSettings()
# Chosen on five development classes (carpet, commutator, grid, screw, transistor): benchmarks/README.md.
FAST = ReferenceSettings(
    augmentation="auto", tap_weights=(1, 1, 2, 2), interpolation="centred", smoothing=0.3, top_share=0.001
)
BEST = replace(FAST, scales=(1, 2), scale_weights=(1.0, 2.0))
PRESETS = {"official": OFFICIAL, "best": BEST, "fast": FAST, "custom": OFFICIAL}


def reference_settings(config: ReferencesConfig) -> ReferenceSettings:
    """The preset of a config, with whatever else it names."""
    named = config.model_dump(exclude={"preset"}, exclude_none=True)
    return replace(PRESETS[config.preset], **named)
