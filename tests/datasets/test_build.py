"""From a config to data."""

import json
import logging

import pytest

from anomalygpt.config.schema import DataConfig
from anomalygpt.datasets.build import (
    build_cards,
    build_instructions,
    build_pairs,
    build_records,
)
from anomalygpt.datasets.records import DatasetError


@pytest.fixture
def parts(tmp_path, write_photo):
    for name in ("gear", "axle"):
        for number in range(3):
            write_photo(tmp_path / "parts" / name / "good" / f"{number}.png", seed=number)
        write_photo(tmp_path / "parts" / name / "rust" / "bad.png", seed=7)
        write_photo(tmp_path / "parts" / name / "rust" / "unmarked.png", seed=8)
        write_photo(tmp_path / "parts" / name / "masks" / "bad.png", value=255)
    text = "classes: {gear: {name: gear wheel, description: round, nsa: {half_width: [0.3, 0.4]}}}"
    (tmp_path / "parts" / "dataset.yaml").write_text(text)
    return tmp_path / "parts"


@pytest.fixture
def table(parts):
    path = parts.parent / "parts.csv"
    path.write_text("path,split,label,mask,class\nparts/gear/good/0.png,train,normal,,gear\n")
    return path


def config_of(*sources, **settings):
    return DataConfig(sources=[{"kind": kind, "root": str(root)} for kind, root in sources], **settings)


def test_every_kind_of_source_is_read(parts, mvtec_tree, visa_tree, loco_tree, crack_tree, table):
    sources = [("mvtec", mvtec_tree), ("visa", visa_tree), ("loco", loco_tree)]
    sources += [("crack_forest", crack_tree), ("folder", parts), ("csv", table)]
    assert [len(build_records(config_of(source))) for source in sources] == [10, 8, 8, 3, 10, 1]
    assert len(build_records(config_of(*sources))) == 40


@pytest.mark.parametrize("kind", ["mvtec", "visa", "loco", "crack_forest", "folder", "csv"])
def test_an_unknown_class_is_an_error_in_every_kind(kind, parts, mvtec_tree, visa_tree, loco_tree, crack_tree, table):
    trees = {"mvtec": mvtec_tree, "visa": visa_tree, "loco": loco_tree, "crack_forest": crack_tree}
    roots = {**trees, "folder": parts, "csv": table}
    classes = sorted({record.class_name for record in build_records(config_of((kind, roots[kind])))})
    source = {"kind": kind, "root": str(roots[kind]), "classes": ["flywheel"]}
    with pytest.raises(DatasetError, match=f"no class flywheel; the classes here are {', '.join(classes)}"):
        build_records(DataConfig(sources=[source]))


def test_a_folders_own_words_reach_the_questions(parts, transform):
    config = config_of(("folder", parts), description_share=1.0, validation_share=0)
    train, validation = build_pairs(config, transform, seed=0)
    assert validation is None
    said = {turn.text for index in range(len(train)) for turn in train[index].normal.turns if turn.role == "human"}
    assert any("a gear wheel for anomaly detection, which should be round." in text for text in said)
    assert train.nsa_changes == {"gear": {"half_width": (0.3, 0.4)}}


def test_two_files_about_one_class_are_an_error(parts):
    with pytest.raises(DatasetError, match=r"another folder's dataset\.yaml describes gear, too"):
        build_cards(config_of(("folder", parts), ("folder", parts)))


def test_locos_own_validation_photos_are_validated_on(loco_tree, transform):
    train, validation = build_pairs(config_of(("loco", loco_tree)), transform, seed=0)
    assert {record.split for record in train.records} == {"train"} and len(train) == 2
    assert {record.split for record in validation.records} == {"validation"}


def test_real_defects_are_trained_on_where_the_config_says_so(parts, transform, caplog):
    with caplog.at_level(logging.WARNING):
        train, validation = build_pairs(config_of(("folder", parts), defects="real", validation_share=0), transform, 0)
    assert validation is None and len(train) == 2
    assert "2 defect photos without a mask are left out" in caplog.text
    assert train.wording.infos.keys() == {"gear"}
    assert build_pairs(config_of(("folder", parts)), transform, 0)[0].records


def test_where_no_defect_is_held_back_real_defects_are_trained_on_without_validation(parts, transform, caplog):
    with caplog.at_level(logging.WARNING):
        train, validation = build_pairs(config_of(("folder", parts), defects="real"), transform, seed=0)
    assert validation is None and len(train) == 2  # the only defect of each class
    assert "nothing is validated: the 2 held-back photos hold no defect" in caplog.text


def test_where_no_normal_photo_is_held_back_real_defects_are_trained_on_without_validation(
    tmp_path, write_photo, transform, caplog
):
    write_photo(tmp_path / "gear" / "good" / "0.png", seed=0)
    for number in range(2):
        write_photo(tmp_path / "gear" / "rust" / f"{number}.png", seed=number)
        write_photo(tmp_path / "gear" / "masks" / f"{number}.png", value=255)
    with caplog.at_level(logging.WARNING):
        train, validation = build_pairs(config_of(("folder", tmp_path), defects="real"), transform, seed=0)
    assert validation is None and len(train) == 1
    assert "the 1 held-back photos hold no normal ones" in caplog.text


def test_instructions_are_built_where_the_config_names_them(parts, transform, tmp_path):
    assert build_instructions(DataConfig(), transform) is None
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A gear."}]
    (tmp_path / "talk.json").write_text(json.dumps([{"image_name": "0.png", "conversation": turns}]))
    source = {"conversations": str(tmp_path / "talk.json"), "images": str(parts / "gear" / "good")}
    dataset = build_instructions(DataConfig(instructions=source), transform)
    assert [turn.text for turn in dataset[0].turns] == ["What?", "A gear."]
