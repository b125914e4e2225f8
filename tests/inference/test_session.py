"""Conversations: what is encoded when, what is cached, and that users stay separate."""

import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anomalygpt.errors import UserError
from anomalygpt.inference import session
from anomalygpt.inference.results import ImageResult, Prediction, prediction
from anomalygpt.inference.session import (
    MAX_CACHED,
    MAX_REFERENCES,
    NO_ANSWER,
    Conversation,
    Exchange,
    Mark,
    SharedModel,
    conversation_about,
)
from tests.fake_predictor import FakePredictor, write_photos


class Users:
    """Asks a shared model, and keeps the predictors that it made."""

    def __init__(self, kind: type[FakePredictor] = FakePredictor, **options: Any) -> None:
        self.predictors: list[FakePredictor] = []
        self.model = SharedModel(lambda: self.predictors.append(kind(**options)) or self.predictors[-1])

    @property
    def inspected(self) -> list[str]:
        return [name for predictor in self.predictors for name in predictor.inspected]

    def ask(
        self,
        photo: str,
        question: str = "Is it fine?",
        references: Sequence[str] = (),
        class_name: str = "",
        current: Conversation | None = None,
    ) -> Conversation:
        conversation = conversation_about(photo, references, class_name, current)
        list(self.model.stream(conversation, question))
        return conversation


@pytest.fixture
def users() -> Users:
    return Users()


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return write_photos(tmp_path, 6)


def test_photo_is_encoded_once_however_often_it_is_asked_about(users: Users, photos: list[str]) -> None:
    first = users.ask(photos[0])
    assert users.ask(photos[0], "Where is it?", current=first) is first
    assert users.inspected == ["object"]
    assert users.predictors[0].asked[1] == ("Where is it?", [("Is it fine?", "Yes, object number 1.")])
    assert len(first.history) == 2


@pytest.mark.parametrize("change", ["photo", "references", "class", "over"])
def test_other_inputs_begin_another_conversation(users: Users, photos: list[str], change: str) -> None:
    first = users.ask(photos[0], references=[photos[1]], class_name="nut")
    first.is_over = change == "over"
    photo = photos[2] if change == "photo" else photos[0]
    references = photos[3:5] if change == "references" else [photos[1]]
    second = users.ask(photo, "And now?", references, "bolt" if change == "class" else "nut", first)
    assert users.predictors[-1].asked[-1] == ("And now?", [])
    assert len(users.inspected) == (1 if change == "over" else 2)
    assert len(second.history) == 1


def test_users_have_separate_references_and_only_new_ones_are_encoded(users: Users, photos: list[str]) -> None:
    first = users.ask(photos[0], references=photos[1:4])
    users.ask(photos[0], "Is it bent?", references=photos[4:5])
    users.ask(photos[0], "Is it whole?")
    users.ask(photos[0], "Where is it?", photos[1:4], current=first)
    users.ask(photos[5], "Is it flat?", photos[1:4])
    asked = [[question for question, _ in predictor.asked] for predictor in users.predictors]
    assert [len(predictor.references) for predictor in users.predictors] == [3, 1, 0]
    assert asked == [["Is it fine?", "Where is it?", "Is it flat?"], ["Is it bent?"], ["Is it whole?"]]


def test_conversations_at_the_same_time_take_turns(photos: list[str]) -> None:
    busy, overlaps = threading.Lock(), []

    class Slow(FakePredictor):
        def inspect(self, photo: Image.Image, class_name: str):
            overlaps.append(not busy.acquire(blocking=False))
            time.sleep(0.05)
            busy.release()
            return super().inspect(photo, class_name)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(Users(Slow).ask, photos[:4]))
    assert overlaps == [False] * 4
    assert [str(conversation.photo) for conversation in found] == photos[:4]
    assert all(len(conversation.history) == 1 for conversation in found)


def test_only_the_latest_photos_and_references_stay_encoded_and_users_notice_nothing(
    users: Users, photos: list[str], tmp_path: Path
) -> None:
    first = users.ask(photos[0], "Is it fine?", photos[1:3], "zipper")
    for number in range(MAX_CACHED):
        reference = tmp_path / f"reference_{number}.png"
        Image.new("RGB", (8, 8)).save(reference)
        users.ask(photos[3], references=[str(reference)])
    users.ask(photos[0], "Where is it?", photos[1:3], "zipper", current=first)
    assert len(users.predictors) == MAX_CACHED + 2
    assert users.predictors[-1].inspected == ["zipper"]
    assert users.predictors[-1].asked == [("Where is it?", [("Is it fine?", "Yes, zipper number 1.")])]
    assert users.model._photo.cache_info().currsize == users.model._predictor.cache_info().currsize == MAX_CACHED


@pytest.mark.parametrize(
    ("predictor", "note"),
    [
        (FakePredictor(word="Yes"), ""),
        (FakePredictor(word="No"), "contradicts"),
        (FakePredictor(source="corrected"), "corrected"),
        (FakePredictor(source="findings"), "findings"),
    ],
)
def test_note_says_whose_words_an_answer_is(photos: list[str], predictor: FakePredictor, note: str) -> None:
    model, conversation = SharedModel(lambda: predictor), conversation_about(photos[0], [], "")
    list(model.stream(conversation, "Is there any defect?"))
    assert [each.note for each in conversation.exchanges] == [note]


def test_answer_without_words_is_a_dash_with_a_note(photos: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(result: ImageResult, question: str, _: object) -> Generator[str, None, Prediction]:
        yield from ()
        return prediction(result, question, "")

    predictor = FakePredictor()
    monkeypatch.setattr(predictor, "stream", silent)
    model, conversation = SharedModel(lambda: predictor), conversation_about(photos[0], [], "")
    list(model.stream(conversation, "Is it fine?"))
    assert [(each.answer, each.note) for each in conversation.exchanges] == [("—", "empty")]


def test_without_a_language_model_the_answer_says_so(photos: list[str]) -> None:
    asked = Users(with_llm=False).ask(photos[0])
    assert asked.history == [("Is it fine?", NO_ANSWER)]


def test_part_is_learned_saved_and_loaded(users: Users, photos: list[str], tmp_path: Path) -> None:
    file, good = tmp_path / "nut.safetensors", tuple(map(Path, photos[1:4]))
    reports = users.model.learn(("", good, ()), file), users.model.learn(("", (file,), ()))
    assert [report.names for report in reports] == [("0.png", "1.png", "2.png")] * 2, "without the server's folders"
    users.ask(photos[0], references=[str(file)])
    assert [len(predictor.references) for predictor in users.predictors] == [3, 3]


@pytest.mark.parametrize("how", ["closed", "stopped", "over"])
def test_answer_that_ends_early_stays_in_the_conversation_as_far_as_it_was_shown(
    users: Users, photos: list[str], how: str
) -> None:
    conversation = conversation_about(photos[0], [], "")
    pieces = users.model.stream(conversation, "Is it fine?")
    assert next(pieces) == Exchange("Is it fine?", "Yes,")
    if how == "closed":
        pieces.close()
    else:
        conversation.is_stopped, conversation.is_over = how == "stopped", how == "over"
        assert list(pieces) == conversation.exchanges
    assert conversation.exchanges == [Exchange("Is it fine?", "Yes,", "stopped")]
    conversation.is_stopped = conversation.is_over = False
    users.ask(photos[0], "Where is it?", current=conversation)
    assert users.predictors[0].asked[1][1] == [("Is it fine?", "Yes,")]


def test_part_is_what_the_user_calls_it_whatever_a_question_names(users: Users, photos: list[str]) -> None:
    for class_name in ("", " nut  x "):
        users.ask(photos[0], "Is this zipper fine?", class_name=class_name)
    assert users.inspected == ["object", "nut x"]


def test_no_photo_and_too_many_references_are_refused(photos: list[str]) -> None:
    with pytest.raises(UserError, match="no photo yet"):
        conversation_about(None, [], "")
    with pytest.raises(UserError, match="201 good photos are too many: keep 200"):
        conversation_about(photos[0], photos[:1] * (MAX_REFERENCES + 1), "")


def test_marks_count_beside_the_references_of_their_own_user_only(users: Users, photos: list[str]) -> None:
    def look(*said: bool) -> FakePredictor:
        marks = tuple(Mark(Path(photos[0]), "", each) for each in said)
        conversation = conversation_about(photos[0], photos[1:3], "", marks=marks)
        list(users.model.stream(conversation, "Is it fine?"))
        return users.model._predictor(conversation.inputs[0])

    assert [look(*said).marked for said in ((True, False), (True,), ())] == [[True, False], [True], []]
    assert len(look(True).references) == 2


def test_another_model_is_loaded_in_place_of_the_one_before(photos: list[str]) -> None:
    loaded: list[str] = []

    def load(name: str) -> Any:
        if name == "broken":
            raise UserError("no weights")
        loaded.append(name)
        return lambda: FakePredictor(word=name)

    model = SharedModel(lambda: FakePredictor(word="first"), "first", load)

    def answer(name: str) -> str:
        conversation = conversation_about(photos[0], (), "", model=name)
        return list(model.stream(conversation, "Is it fine?"))[-1].answer.split(",")[0]

    assert [answer(name) for name in ("first", "second", "second")] == ["first", "second", "second"]
    with pytest.raises(UserError, match="no weights"):
        answer("broken")
    assert answer("first") == "first"
    assert loaded == ["second", "first"]


def test_answer_ends_with_its_time(users: Users, photos: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "ANSWER_SECONDS", -1)
    conversation = conversation_about(photos[0], (), "")
    *_, last = users.model.stream(conversation, "Is it fine?")
    assert last.note == "too_long"
    assert conversation.exchanges == [last]
