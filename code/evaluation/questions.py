"""Multiple-choice questions about photos: MMAD's file (Jiang et al., ICLR 2025) or a list of one's own."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from anomalygpt.datasets.records import first_offenders
from anomalygpt.errors import UserError
from anomalygpt.inference.answers import parse_verdict
from anomalygpt.model.anomalygpt import UNNAMED_CLASS

Templates = Literal["similar", "random"]
EXPECTED = (
    'expected MMAD\'s {"image path": {"conversation": [{"Question", "Options", "Answer", "type"}], '
    '"similar_templates", "random_templates"}}, or a list of {"image", "question", "options": {"A": …}, "answer"} with '
    'optional "task", "class" and "reference"'
)


@dataclass(frozen=True)
class Question:
    """One question about one photo.

    Attributes:
        key: the photo and the question's number.
        image: below the photos' folder, as the file has it.
        options: by letter.
        answer: the right letter.
        references: good photos, below the same folder, all that the file names.
    """

    key: str
    image: str
    question: str
    options: Mapping[str, str]
    answer: str
    task: str
    class_name: str
    references: tuple[str, ...] = ()

    @property
    def dataset(self) -> str:
        """The first folder of the photo's path, which is the data set in MMAD."""
        return Path(self.image).parts[0] if len(Path(self.image).parts) > 1 else ""

    @property
    def is_good(self) -> bool:
        """Whether the photo's path says that it shows a good part."""
        return wording()["good_folder"] in Path(self.image).parts


@cache
def wording() -> dict[str, Any]:
    """How questions are put, and what MMAD calls its tasks."""
    return yaml.safe_load(Path(__file__).with_name("questions.yaml").read_text(encoding="utf-8"))


def read_questions(path: Path, root: Path, templates: Templates = "similar", shots: int = 0) -> list[Question]:
    """All questions of a file.

    Args:
        root: the folder that the photos' paths start at.
        templates: which of MMAD's two lists of good photos are the references.
        shots: how many references each question must have.

    Raises:
        UserError: no such file, not of one of the two forms, a photo that is not there, or too few references.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as JSON ({error})") from error
    if isinstance(content, dict):
        found = [q for image, entry in content.items() for q in _mmad(path, image, entry, templates)]
    elif isinstance(content, list):
        found = [_own(path, number, entry) for number, entry in enumerate(content, start=1)]
    else:
        raise UserError(f"{path}: {EXPECTED}")
    if not found:
        raise UserError(f"{path}: no questions; {EXPECTED}")
    _require(path, root, found, shots)
    return found


def _mmad(path: Path, image: str, entry: Any, templates: Templates) -> list[Question]:
    where = f"{path}: {image}"
    talk = entry.get("conversation") if isinstance(entry, dict) else None
    if not isinstance(talk, list):
        raise UserError(f"{where}: no list 'conversation'; {EXPECTED}")
    parts = Path(image).parts
    class_name = parts[1] if len(parts) > 2 else UNNAMED_CLASS  # data set / class / …
    references = tuple(map(str, entry.get(f"{templates}_templates") or ()))
    return [
        _question(
            f"{where}, question {number}",
            {"image": image, "class": class_name, "references": references, "key": f"{image}#{number}"},
            asked,
            ("Question", "Options", "Answer", "type"),
        )
        for number, asked in enumerate(talk, start=1)
    ]


def _own(path: Path, number: int, entry: Any) -> Question:
    where = f"{path}: record {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise UserError(f"{where}: no 'image'; {EXPECTED}")
    named = next((entry[key] for key in ("reference", "references", "template", "templates") if key in entry), ())
    references = (named,) if isinstance(named, str) else tuple(map(str, named or ()))
    task_key = "task" if "task" in entry else "type"
    given = {
        "image": entry["image"],
        "class": str(entry.get("class", UNNAMED_CLASS)),
        "references": references,
        "key": f"{entry['image']}#{number}",
    }
    return _question(where, given, entry, ("question", "options", "answer", task_key))


def _question(where: str, given: dict[str, Any], asked: Any, keys: tuple[str, str, str, str]) -> Question:
    question, options, answer, task = (asked.get(key) if isinstance(asked, dict) else None for key in keys)
    if not isinstance(question, str) or not isinstance(options, dict) or len(options) < 2:
        raise UserError(f"{where}: needs '{keys[0]}' and two or more '{keys[1]}'; {EXPECTED}")
    if not all(re.fullmatch("[A-Z]", key) and isinstance(text, str) and text for key, text in options.items()):
        raise UserError(f"{where}: '{keys[1]}' must be texts by capital letter, found {', '.join(options)}")
    if not isinstance(answer, str) or answer not in options:
        raise UserError(f"{where}: the answer {answer!r} is none of the options {', '.join(options)}")
    name = str(task) if task else "questions"
    return Question(
        key=given["key"],
        image=given["image"],
        question=question.strip(),
        options=dict(options),
        answer=answer,
        task=wording()["tasks"].get(name, name),
        class_name=given["class"],
        references=given["references"],
    )


def _require(path: Path, root: Path, found: Sequence[Question], shots: int) -> None:
    few = dict.fromkeys(question.image for question in found if len(question.references) < shots)
    if few:
        raise UserError(f"{path}: {len(few)} photos have fewer than {shots} references: {first_offenders(few)}")
    named = dict.fromkeys(name for question in found for name in (question.image, *question.references[:shots]))
    absent = [name for name in named if not (root / name).is_file()]
    if absent:
        raise UserError(
            f"{root}: {len(absent)} of {len(named)} photos are not there: {first_offenders(absent)}; "
            "--data names the folder that paths start at"
        )


def with_options(question: Question) -> str:
    """A question with its options listed, and how to answer."""
    listed = [wording()["option"].format(letter=letter, text=text) for letter, text in question.options.items()]
    return wording()["with_options"].format(question=question.question, options="\n".join(listed))


def parse_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer chooses; None where it names no option, or several.

    In this order: a letter that the answer begins with or names (``B.``, ``(B)``, ``the answer is B``), one option
    whose text occurs in it, the one option that says the same yes or no. The article in "A scratch" is no letter.
    """
    letters = "".join(options)
    text = " ".join(answer.split())
    patterns = (
        rf"^\W*([{letters}])(?=$|[.):,;]|\s*$)",
        rf"(?i:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([{letters}])\b(?!\w)",
        rf"\(([{letters}])\)",
    )
    for pattern in patterns:
        named = re.search(pattern, text)
        if named:
            return named.group(1)
    lower = text.lower()
    held = [
        letter
        for letter, option in options.items()
        if re.search(rf"(?<!\w){re.escape(option.lower().strip(' .'))}(?!\w)", lower)
    ]
    if len(held) > 1:  # "top left" also holds "left"
        longest = max(len(options[letter]) for letter in held)
        inside = [letter for letter in held if len(options[letter]) == longest]
        others = [options[letter].lower().strip(" .") for letter in held if letter not in inside]
        covered = len(inside) == 1 and all(other in options[inside[0]].lower() for other in others)
        held = inside if covered else []
    if held:
        return held[0]
    said = parse_verdict(answer)
    same = [letter for letter, option in options.items() if said is not None and parse_verdict(option) == said]
    return same[0] if len(same) == 1 else None
