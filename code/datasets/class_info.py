"""What is known of a class by its name: its words in each language, and what a folder's ``dataset.yaml`` adds."""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError

from anomalygpt.config.settings import Settings, explain
from anomalygpt.datasets.records import DatasetError, choose_classes
from anomalygpt.datasets.synthesis import NSASettings
from anomalygpt.datasets.tree import class_folders
from anomalygpt.files import read_yaml


@cache
def phrase_table(language: str) -> dict[str, Any]:
    """The contents of ``phrases/<language>.yaml``."""
    return read_yaml(Path(__file__).parent / "phrases" / f"{language}.yaml")


class_table = partial(phrase_table, "classes")  # the known classes, their aliases, plurals and numbers of parts
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
AsEnglish = BeforeValidator(lambda value: {"en": value} if isinstance(value, str) else value)
ByLanguage = Annotated[dict[Literal["en", "zh"], Words], AsEnglish]


class ClassInfo(Settings):
    """The entry of one class in a ``dataset.yaml``. Set fields of ``nsa`` replace those of its nsa_classes.yaml row."""

    name: ByLanguage = Field(default_factory=dict)
    description: ByLanguage = Field(default_factory=dict)
    nsa: NSASettings = NSASettings()


class _File(Settings):
    classes: dict[str, ClassInfo]


def folder_infos(root: Path) -> dict[str, ClassInfo]:
    """The entries of ``dataset.yaml`` in ``root``, by class name; none without it. Raises UserError for a wrong one."""
    path = root / "dataset.yaml"
    if not path.is_file():
        return {}
    try:
        infos = _File.model_validate(read_yaml(path) or {}).classes
    except ValidationError as error:
        raise DatasetError(f"{path}: {'; '.join(explain(error))}") from error
    choose_classes(path, list(class_folders(root)), list(infos))
    return infos


def spoken_name(class_name: str) -> str:
    """The class as sentences name it: ``metal_nut`` -> ``metal nut``; an alias -> its class."""
    name = " ".join(class_name.replace("_", " ").split())
    return class_table()["aliases"].get(name.lower(), name)


def noun_phrase(class_name: str, language: str = "en", info: ClassInfo | None = None) -> str:
    """The class with its article: ``a bottle``, ``an object``, ``capsules``; without one in Chinese."""
    own: Mapping[Any, str] = info.name if info else {}
    name = spoken_name(own.get(language, class_name))
    if translated := phrase_table(language).get("class_names"):
        return translated.get(name.lower(), name)
    if name.lower() in class_table()["plural"]:
        return name
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def describe(class_name: str, language: str = "en", info: ClassInfo | None = None) -> str:
    """What a normal part looks like: a clause that completes "…, which should be"; a general one for other classes."""
    if info and language in info.description:
        return info.description[language].rstrip(".。")
    descriptions = phrase_table(language)["descriptions"]
    return descriptions.get(spoken_name(class_name).lower(), descriptions["general"])


def parts_shown(class_name: str) -> int | None:
    """How many parts a photo of the class shows: 0 for a surface, None where the number varies."""
    return class_table()["parts_shown"].get(spoken_name(class_name).lower(), 1)
