"""Settings of single parts, used by the experiment's schema and by the parts themselves."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Settings are read-only, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
