"""What a user says about a class: its name in sentences, what a good one looks like, how its defects are simulated.

    classes:
      gear:
        name: gear wheel                     # or {en: gear wheel, zh: 齿轮}
        description: round, with 24 whole teeth
        nsa: {half_height: [0.03, 0.2], background: [200, 60]}

Every key may be left out; what is not said is taken from the tables (phrases/*.yaml, nsa_classes.yaml).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from anomalygpt.datasets.dialogue import ClassWords, class_words, noun_phrase
from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.synthesis import NSASettings, nsa_settings
from anomalygpt.errors import did_you_mean

BASE_LANGUAGE = "en"


@dataclass(frozen=True)
class ClassCard:
    """One class as it is spoken of and simulated.

    names, descriptions: by language, where they differ from the phrases'. nsa_changes: what differs from the class's
    row of the table, in the table's own form.
    """

    class_name: str
    names: Mapping[str, str] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)
    nsa_changes: Mapping[str, Any] = field(default_factory=dict)

    def words(self, language: str) -> ClassWords:
        """The noun phrase and the description in a language."""
        known = class_words(self.class_name, language)
        name = self.names.get(language)
        return ClassWords(
            noun_phrase(name, language) if name else known.noun_phrase,
            self.descriptions.get(language, known.description),
        )

    def nsa(self) -> NSASettings:
        """How defects are simulated."""
        return nsa_settings(self.class_name, self.nsa_changes)


def card_of(class_name: str, cards: Mapping[str, ClassCard]) -> ClassCard:
    """The class's card, or a blank one."""
    return cards.get(class_name) or ClassCard(class_name)


# The form of the file. Its models are private: the rest of the code sees cards.


def _by_language(value: Any) -> Any:
    return {BASE_LANGUAGE: value} if isinstance(value, str) else value


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the first must not be larger than the second")
    return bounds


ShareOfSide = Annotated[float, Field(gt=0, le=0.5)]
ResizeFactor = Annotated[float, Field(gt=0)]
GreyLevel = Annotated[float, Field(ge=0, le=255)]
Languages = Annotated[dict[Literal["en", "zh"], Annotated[str, Field(min_length=1)]], BeforeValidator(_by_language)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Label(_Form):
    softness: Annotated[float, Field(gt=0)]
    midpoint: GreyLevel


class _Simulation(_Form):
    """A row of nsa_classes.yaml; only what is set counts."""

    half_height: Annotated[tuple[ShareOfSide, ShareOfSide], AfterValidator(_rising)] | None = None
    half_width: Annotated[tuple[ShareOfSide, ShareOfSide], AfterValidator(_rising)] | None = None
    resize: Annotated[tuple[ResizeFactor, ResizeFactor], AfterValidator(_rising)] | None = None
    label: _Label | None = None
    background: tuple[GreyLevel, GreyLevel] | None = None


class _Class(_Form):
    name: Languages = Field(default_factory=dict)
    description: Languages = Field(default_factory=dict)
    nsa: _Simulation = _Simulation()


class _File(_Form):
    classes: dict[str, _Class]


# The keys that each place of the file may have.
_KEYS_BELOW: dict[int, type[BaseModel]] = {0: _File, 2: _Class, 3: _Simulation, 4: _Label}


def read_cards(path: Path) -> dict[str, ClassCard]:
    """The cards of a YAML file, by class name.

    Raises:
        DatasetError: the file is not YAML, has an unknown key (the likely one is named), or a value out of its range.
    """
    try:
        form = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        raise DatasetError(f"{path}: {'; '.join(map(_explain, error.errors()))}") from error
    return {name: _card(name, entry) for name, entry in form.classes.items()}


def _card(name: str, entry: _Class) -> ClassCard:
    descriptions: dict[str, str] = {
        language: text.strip().rstrip(".。") for language, text in entry.description.items()
    }
    changes = entry.nsa.model_dump(exclude_unset=True)
    # `background: null` says that all is object; any other null says nothing.
    return ClassCard(
        name,
        {language: text.strip() for language, text in entry.name.items()},
        descriptions,
        {key: value for key, value in changes.items() if value is not None or key == "background"},
    )


def _explain(fault: Mapping[str, Any]) -> str:
    where = ".".join(map(str, fault["loc"])) or "the file"
    if fault["type"] != "extra_forbidden":
        return f"{where}: {fault['msg'].removeprefix('Value error, ')} (got {fault['input']!r:.60})"
    *place, key = fault["loc"]
    known = list(_KEYS_BELOW[len(place)].model_fields)
    return f"unknown key {where!r}{did_you_mean(str(key), known)}"
