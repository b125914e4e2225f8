"""Settings of single parts, used by the experiment's schema and by the parts themselves."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from anomalygpt.errors import did_you_mean

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Image sides, in multiples of the encoder's own.
Scales = Annotated[tuple[Annotated[int, Field(gt=0, le=8)], ...], Field(min_length=1)]


class Settings(BaseModel):
    """Settings are read-only, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, values: Any) -> Any:
        """Reports unknown keys with similar known ones, which pydantic's own error does not name."""
        unknown = [key for key in values if key not in cls.model_fields] if isinstance(values, dict) else []
        if unknown:
            lines = (f"unknown key {key!r}{did_you_mean(str(key), cls.model_fields)}" for key in unknown)
            raise ValueError("; ".join(lines))
        return values


def explain(error: ValidationError) -> list[str]:
    """One line per fault: the setting's dotted key, what was expected, and the value that was given."""
    lines = []
    for fault in error.errors():
        where = ".".join(map(str, fault["loc"]))
        # A rule about several settings names them itself.
        got = f" (got {fault['input']!r:.80})" if fault["type"] != "value_error" else ""
        lines.append(f"{where}{': ' if where else ''}{fault['msg'].removeprefix('Value error, ')}{got}")
    return lines


class PhotoSettings(Settings):
    """How photo files are read: references, and the photos that are compared with them (the table in data/README.md).

    Boxes and maps of a photo above ``max_side`` pixels refer to its reduced size.
    """

    bits: Annotated[int, Field(ge=8, le=32)] | None = None
    range: tuple[float, float] | None = None
    max_side: Annotated[int, Field(ge=64)] | None = None
    ignore: str | None = None

    @model_validator(mode="after")
    def _range_is_one(self) -> "PhotoSettings":
        if self.range and (self.bits or not self.range[0] < self.range[1]):
            raise ValueError(f"range {list(self.range)}: expected [black, white], the smaller first, without bits")
        return self

    @property
    def value_range(self) -> tuple[float, float] | None:
        """The numbers of black and of white that ``bits`` or ``range`` state."""
        return (0.0, 2.0**self.bits - 1) if self.bits else self.range


class LoraSettings(Settings):
    """Low-rank adapters of the language model's attention."""

    rank: Positive = 32
    alpha: float = 32.0
    dropout: Fraction = 0.1
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class GenerationSettings(Settings):
    """How an answer is sampled. Temperature 0 always takes the likeliest token."""

    max_new_tokens: Positive = 512
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.01
    top_k: Positive = 50
    temperature: Annotated[float, Field(ge=0)] = 1.0


# What each preset of the references changes in the paper's values. Chosen on five development classes (carpet,
# commutator, grid, screw, transistor): benchmarks/README.md.
_FAST: dict[str, Any] = {"augmentation": "auto", "camera_copies": True, "tap_weights": (1.0, 1.0, 2.0, 2.0)}
_FAST |= {"interpolation": "centred", "smoothing": 0.3, "top_share": 0.003, "contrast": 0.25}
REFERENCE_PRESETS: dict[str, dict[str, Any]] = {
    "official": {},
    # Its calibration is of scores without camera copies, and they would double its time.
    "best": {**_FAST, "camera_copies": False, "scales": (1, 2), "scale_weights": (1.0, 2.0)},
    "fast": _FAST,
    "custom": {},
}


class ReferenceSettings(Settings):
    """How reference photos are remembered and compared (docs/references.md); the defaults are the paper's.

    One that is not given, or given as None, takes the preset's value: ``official`` is the paper's comparison and takes
    no other value; ``best`` and ``fast`` are what measured best; ``custom`` starts at the paper's values.
    """

    preset: Literal["official", "best", "fast", "custom"] = "official"
    augmentation: Literal["none", "rotations", "auto"] = "none"
    camera_copies: bool = False
    scales: Scales = (1,)
    scale_weights: tuple[NotNegative, ...] = ()
    tap_weights: tuple[NotNegative, ...] = ()
    interpolation: Literal["aligned", "centred"] = "aligned"
    smoothing: NotNegative = 0.0
    top_share: Fraction = 0.0
    contrast: NotNegative = 0.0
    text_weight: Fraction = 0.0
    text_trusted_below: Fraction = 1.0

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = {name: value for name, value in values.items() if value is not None}
        return {**REFERENCE_PRESETS.get(str(given.get("preset")), {}), **given}

    @model_validator(mode="after")
    def _official_is_the_papers(self) -> "ReferenceSettings":
        paper = {name: field.default for name, field in type(self).model_fields.items()}
        changed = ", ".join(name for name, value in self.options.items() if value != paper[name])
        if self.preset == "official" and changed:
            raise ValueError(f"preset 'official' takes no other setting, but {changed} is set: name 'custom'")
        return self

    @property
    def unchanged_preset(self) -> str | None:
        """The preset whose images are compared in the same way but for the text map, if any."""
        own = {name: value for name, value in self.options.items() if not name.startswith("text_")}
        presets = (ReferenceSettings.model_validate({"preset": preset}) for preset in REFERENCE_PRESETS)
        return next((each.preset for each in presets if own.items() <= each.options.items()), None)

    @property
    def options(self) -> dict[str, Any]:
        """All settings but the preset's name: equal where photos are compared in the same way."""
        return {name: value for name, value in self if name != "preset"}


class PartsPrior(Settings):
    """What good photos of many parts score in maps of one preset, as logarithms; by ``benchmarks/verdict.py``.

    Attributes:
        references: the numbers of references that the next four are stated for, rising.
        centre: mean score of good photos, over parts.
        held_out: mean score of the photos that are held out of the references, over parts.
        weight: how much of a part's difference from ``held_out`` is found in its new photos again.
        error: standard deviation of a part's own centre about what follows from these.
        spread: standard deviation of the good photos of one part.
    """

    references: tuple[Positive, ...]
    centre: tuple[float, ...]
    held_out: tuple[float, ...]
    weight: tuple[float, ...]
    error: tuple[float, ...]
    spread: float

    def at(self, references: int) -> tuple[float, float, float, float]:
        """``centre``, ``held_out``, ``weight`` and ``error`` at a number of references, linear in its logarithm."""
        import numpy as np  # here, so that --help does not wait for it

        where = np.log(self.references)
        columns = (self.centre, self.held_out, self.weight, self.error)
        centre, held_out, weight, error = (float(np.interp(np.log(references), where, each)) for each in columns)
        return centre, held_out, weight, error
