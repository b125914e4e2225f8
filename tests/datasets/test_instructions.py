"""Conversations in PandaGPT's, LLaVA's and ms-swift's form."""

import json

import pytest

from anomalygpt.datasets.dialogue import Turn
from anomalygpt.datasets.instructions import InstructionBatch, Instructions
from anomalygpt.datasets.records import DatasetError


def talk(*texts):
    return [{"from": "gpt" if at % 2 else "human", "value": text} for at, text in enumerate(texts)]


ENTRIES = [
    {"image_name": "a.jpg", "conversation": talk("<image>\nWhat is it?", "A 猫.", "Sure?", "Yes.", "Really?")},
    {"image_name": "gone.jpg", "conversation": talk("Where?", "There.")},
    {"image": "b.jpg", "conversations": talk("Who?", "Nobody \ud83d\ude00.")},
]


@pytest.fixture
def data(tmp_path, write_photo):
    write_photo(tmp_path / "images" / "a.jpg", seed=1)
    write_photo(tmp_path / "images" / "b.jpg", seed=2)

    def write(entries):
        path = tmp_path / "talk.json"
        path.write_text(entries if isinstance(entries, str) else json.dumps(entries), encoding="utf-8")
        return path, tmp_path / "images"

    return write


def test_the_first_question_and_answer_are_taken(data, transform, caplog):
    dataset = Instructions(*data(ENTRIES), transform)
    assert len(dataset) == 2 and caplog.messages[0].startswith("1 of 3 photos are missing in ")
    image, said = dataset[0]
    assert image.shape == (3, 64, 64)
    assert said == (Turn("human", "What is it?"), Turn("assistant", "A 猫."))
    assert [turn.text for turn in dataset[1][1]] == ["Who?", "Nobody 😀."]
    batch = InstructionBatch.of([dataset[0], dataset[1]]).to("cpu")
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.conversations == [dataset[0][1], dataset[1][1]]


def test_llavas_and_ms_swifts_entries_are_the_same_conversations(data, transform, caplog):
    images = data([])[1]
    turns = [Turn("human", "What is it?"), Turn("assistant", "A cup.")]
    llava = [
        {"id": "1", "image": "a.jpg", "conversations": talk("<image>\nWhat is it?", "A cup.")},
        {"id": "2", "conversations": talk("Who wrote it?", "Nobody.")},
    ]
    (images / "llava.json").write_text(json.dumps(llava))
    messages = [("system", "Be brief."), ("user", "<image>What is it?"), ("assistant", "A cup.")]
    messages = [{"role": role, "content": text} for role, text in messages]
    photos = (["a.jpg"], ["a.jpg", "b.jpg"], [str(images / "b.jpg")])
    swift = [json.dumps({"messages": messages, "images": own}) for own in photos]
    (images / "swift.jsonl").write_text("\n".join(swift) + "\n")
    for name, expected in (("llava.json", 1), ("swift.jsonl", 2)):
        dataset = Instructions(images / name, images, transform)
        assert [list(dataset[at][1]) for at in range(len(dataset))] == [turns] * expected
        assert caplog.messages[-1].endswith("1 conversations are about no photo, or several; left out")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([ENTRIES[0], "x"], r"entry 2 is not of the form \{\"image_name\""),
        ([ENTRIES[0], {"image": "a.jpg", "text": "q"}], "entry 2 is not of the form"),
        ([{"image_name": "a.jpg", "conversation": talk("q")}], r"entry 1 \(a\.jpg\) is not of the form"),
        ([{"image_name": "a.jpg", "conversation": talk("q", "a")[::-1]}], r"entry 1 \(a\.jpg\) is not of the form"),
        ([{"image_name": "a.jpg", "conversation": talk("q", 3)}], r"entry 1 \(a\.jpg\) is not of the form"),
        ([{"image_name": "a.jpg", "conversation": talk("<image>", "a")}], r"entry 1 \(a\.jpg\) is not of the form"),
        ('{"a": 1}', r"cannot be read as a list .*\(found a dict\)"),
        (json.dumps(ENTRIES)[:-30], "cannot be read as a list .*line 1 column"),
        ('[{"image_name": "a.jpg",}]', "cannot be read as a list"),
        ("[]", "none names one"),
        ([ENTRIES[1]], r"1 photos are missing, the first is gone\.jpg"),
    ],
)
def test_a_wrong_file_is_explained(data, transform, entries, message):
    with pytest.raises(DatasetError, match=message):
        Instructions(*data(entries), transform)


def test_wrong_paths_are_explained(data, transform, tmp_path):
    path, images = data(ENTRIES)
    with pytest.raises(DatasetError, match=r"no\.json: no such file"):
        Instructions(tmp_path / "no.json", images, transform)
    with pytest.raises(DatasetError, match="photos: no such folder"):
        Instructions(path, tmp_path / "photos", transform)
