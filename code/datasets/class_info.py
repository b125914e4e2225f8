"""What is known of a class by its name: its words in each language, and what a folder's ``dataset.yaml`` adds.

    classes:
      gear:
        name: gear wheel                     # or {en: gear wheel, zh: 齿轮}
        description: round, with 24 whole teeth
        nsa: {half_height: [0.03, 0.2], background: [200, 60]}

Every key may be left out: the defaults are in phrases/*.yaml and nsa_classes.yaml.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.synthesis import NSALabel, NSASettings
from anomalygpt.errors import did_you_mean

PHRASES = Path(__file__).with_name("phrases")
LANGUAGES = ("en", "zh")


@cache
def phrase_table(language: str) -> dict[str, Any]:
    """The contents of ``phrases/<language>.yaml``."""
    return yaml.safe_load((PHRASES / f"{language}.yaml").read_text(encoding="utf-8"))


@cache
def class_table() -> dict[str, Any]:
    """The contents of ``phrases/classes.yaml``: the known classes, their aliases, plurals and numbers of parts."""
    return yaml.safe_load((PHRASES / "classes.yaml").read_text(encoding="utf-8"))


def _for_english(value: Any) -> Any:
    return {"en": value} if isinstance(value, str) else value


Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
ByLanguage = Annotated[dict[Literal["en", "zh"], Words], BeforeValidator(_for_english)]


class ClassInfo(BaseModel):
    """What a ``dataset.yaml`` says about one class.

    Attributes:
        name: in sentences, by language.
        description: what a normal part looks like, by language.
        nsa: the fields that are set replace those of the class's row in nsa_classes.yaml.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ByLanguage = Field(default_factory=dict)
    description: ByLanguage = Field(default_factory=dict)
    nsa: NSASettings = NSASettings()


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    classes: dict[str, ClassInfo]


# The models of the file's mappings, by depth.
_MODELS: dict[int, type[BaseModel]] = {0: _File, 2: ClassInfo, 3: NSASettings, 4: NSALabel}


def read_class_infos(path: Path) -> dict[str, ClassInfo]:
    """The entries of a ``dataset.yaml``, by class name.

    Raises:
        DatasetError: the file is not YAML, has an unknown key (a similar one is suggested), or a value out of range.
    """
    try:
        return dict(_File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))).classes)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        raise DatasetError(f"{path}: {'; '.join(map(_explain, error.errors()))}") from error


def _explain(error: Mapping[str, Any]) -> str:
    where = ".".join(map(str, error["loc"])) or "the file"
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r:.60})"
    *place, key = error["loc"]
    known = list(_MODELS[len(place)].model_fields)
    return f"unknown key {where!r}{did_you_mean(str(key), known)}"


def spoken_name(class_name: str) -> str:
    """The class as sentences name it: ``metal_nut`` -> ``metal nut``; an alias -> its class."""
    name = " ".join(class_name.replace("_", " ").split())
    return class_table()["aliases"].get(name.lower(), name)


def noun_phrase(class_name: str, language: str = "en", info: ClassInfo | None = None) -> str:
    """The class with its article: ``a bottle``, ``an object``, ``capsules``; without one in Chinese."""
    own: Mapping[Any, str] = info.name if info else {}
    name = spoken_name(own.get(language, class_name))
    translated = phrase_table(language).get("class_names")
    if translated is not None:
        return translated.get(name.lower(), name)
    return name if name.lower() in class_table()["plural"] else with_article(name)


def with_article(noun: str) -> str:
    """``a screw``, ``an object``."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def describe(class_name: str, language: str = "en", info: ClassInfo | None = None) -> str:
    """What a normal part looks like: a clause that completes "…, which should be"; a general one for other classes."""
    if info and language in info.description:
        return info.description[language].rstrip(".。")
    descriptions = phrase_table(language)["descriptions"]
    return descriptions.get(spoken_name(class_name).lower(), descriptions["general"])


def parts_shown(class_name: str) -> int | None:
    """How many parts a photo of the class shows: 0 for a surface, None where the number varies."""
    return class_table()["parts_shown"].get(spoken_name(class_name).lower(), 1)
