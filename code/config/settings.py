"""Settings of single parts, used by the experiment's schema and by the parts themselves."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from anomalygpt.errors import did_you_mean

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
UNKNOWN_KEYS = "unknown_keys"


class Settings(BaseModel):
    """Settings are read-only, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, values: Any) -> Any:
        """Reports unknown keys together with the known ones, which pydantic's own error does not list."""
        unknown = [key for key in values if key not in cls.model_fields] if isinstance(values, dict) else []
        if unknown:
            context = {"unknown": unknown, "known": list(cls.model_fields)}
            raise PydanticCustomError(UNKNOWN_KEYS, "unknown {unknown}; expected {known}", context)
        return values


def explain(error: ValidationError, renamed: Mapping[str, str | None]) -> list[str]:
    """One line per fault: the setting's dotted key, what was expected, and the value that was given.

    Args:
        renamed: dotted keys of earlier versions, with their new names; None for a setting that was removed.
    """
    lines = []
    for fault in error.errors():
        where = ".".join(map(str, fault["loc"]))
        if fault["type"] == UNKNOWN_KEYS:
            for key in fault["ctx"]["unknown"]:
                dotted = f"{where}.{key}" if where else str(key)
                hint = did_you_mean(str(key), fault["ctx"]["known"])
                if dotted in renamed:
                    hint = f"; it is now {renamed[dotted]!r}" if renamed[dotted] else "; it was removed, so delete it"
                lines.append(f"unknown key {dotted!r}{hint}")
        # Pydantic does not count invalid items, which have a line each.
        elif fault["type"] != "too_short" or len(fault["input"]) < fault["ctx"]["min_length"]:
            # A rule about several settings names them itself.
            got = f" (got {fault['input']!r:.80})" if fault["type"] != "value_error" else ""
            lines.append(f"{where or 'config'}: {fault['msg'].removeprefix('Value error, ')}{got}")
    return lines


class LoraSettings(Settings):
    """Low-rank adapters of the language model's attention."""

    rank: Positive = 32
    alpha: float = 32.0
    dropout: Share = 0.1
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class GenerationSettings(Settings):
    """How an answer is sampled. Temperature 0 always takes the likeliest token."""

    max_new_tokens: Positive = 512
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.01
    top_k: Positive = 50
    temperature: Annotated[float, Field(ge=0)] = 1.0
