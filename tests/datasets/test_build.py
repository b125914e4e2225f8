"""From a config to data."""

import logging

import pytest

from anomalygpt.config.schema import DataConfig
from anomalygpt.datasets.build import build_pairs, build_records
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


def config_of(*sources, **settings):
    return DataConfig(sources=[{"kind": kind, "root": str(root)} for kind, root in sources], **settings)


@pytest.fixture
def roots(parts, mvtec_tree, visa_tree, loco_tree, crack_tree):
    table = parts.parent / "parts.csv"
    table.write_text("path,split,label,mask,class\nparts/gear/good/0.png,train,normal,,gear\n")
    trees = {"mvtec": mvtec_tree, "visa": visa_tree, "loco": loco_tree}
    return {**trees, "crack_forest": crack_tree, "folder": parts, "csv": table}


def test_every_kind_of_source_is_read(roots):
    assert [len(build_records(config_of(source))) for source in roots.items()] == [10, 8, 8, 3, 10, 1]
    assert len(build_records(config_of(*roots.items()))) == 40


@pytest.mark.parametrize("kind", ["mvtec", "visa", "loco", "crack_forest", "folder", "csv"])
def test_an_unknown_class_is_an_error_in_every_kind(kind, roots):
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
    assert train.wording.infos["gear"].nsa.half_width == (0.3, 0.4)


def test_real_defects_are_trained_on_where_the_config_says_so(parts, transform, caplog):
    with caplog.at_level(logging.WARNING):
        train, validation = build_pairs(config_of(("folder", parts), defects="real", validation_share=0), transform, 0)
    assert validation is None and len(train) == 2
    assert "2 defect photos without a mask are left out" in caplog.text
    assert train.wording.infos.keys() == {"gear"}
    assert build_pairs(config_of(("folder", parts)), transform, 0)[0].records


def test_real_defects_without_photos_to_hold_back_of_both_kinds(parts, tmp_path, write_photo, transform, caplog):
    write_photo(tmp_path / "single" / "gear" / "good" / "0.png", seed=0)
    for number in range(2):
        write_photo(tmp_path / "single" / "gear" / "rust" / f"{number}.png", seed=number)
        write_photo(tmp_path / "single" / "gear" / "masks" / f"{number}.png", value=255)
    roots = {parts: (2, "the 2 held-back photos hold no defect"), parts.parent / "single": (1, "hold no normal ones")}
    for root, (count, words) in roots.items():
        train, validation = build_pairs(config_of(("folder", root), defects="real"), transform, seed=0)
        assert validation is None and len(train) == count
        assert words in caplog.messages[-1]


def test_photos_that_can_not_be_read_are_left_out_or_refused(mvtec_tree, transform, caplog):
    broken = mvtec_tree / "screw" / "train" / "good" / "001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    settings = {"sources": [{"kind": "mvtec", "root": str(mvtec_tree)}], "validation_share": 0}
    assert len(build_pairs(DataConfig(**settings), transform, 0)[0]) == 6, "a dry run reads no photo"
    train, _ = build_pairs(DataConfig(**settings), transform, 0, decode_all=True)
    assert len(train) == 5 and broken not in [record.image for record in train.records]
    assert f"1 photos can't be read: {broken}: cannot be read as an image" in caplog.text
    with pytest.raises(DatasetError, match="1 photos can't be read"):
        build_pairs(DataConfig(**settings, unreadable="refuse"), transform, 0, decode_all=True)
