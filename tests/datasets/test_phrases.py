"""The words for every class of the three official data sets, in both languages."""

import re

import pytest

from anomalygpt.datasets.class_info import class_table, describe, noun_phrase, spoken_name
from anomalygpt.datasets.dialogue import defect_sentence, detection_question

CLASSES = {
    "MVTec-AD": "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor "
    "wood zipper",
    "VisA": "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum",
    "MVTec LOCO AD": "breakfast_box juice_bottle pushpins screw_bag splicing_connectors",
}
KNOWN = [name for name in class_table()["names"] if name not in ("macaroni", "pcb")]
# The kinds of defect that VisA's image_anno.csv and LOCO's folders name.
KINDS = {
    "candle": "chunk of wax missing,damaged corner of packaging,different colour spot,extra wax in candle,foreign "
    "particals on candle,other,wax melded out of the candle,weird candle wick",
    "capsules": "bubble,discolor,scratch,leak,misshape",
    "cashew": "burnt,corner or edge breakage,different colour spot,middle breakage,same colour spot,small holes,small "
    "scratches,stuck together",
    "chewinggum": "chunk of gum missing,corner missing,scratches,similar colour spot,small cracks",
    "pcb1": "bent,melt,scratch,missing",
    "pcb4": "burnt,damage,dirt,extra,missing,scratch,wrong place",
    "juice_bottle": "logical_anomalies,structural_anomalies",
}


def test_the_classes_of_the_three_data_sets_are_known():
    assert [len(names.split()) for names in CLASSES.values()] == [15, 12, 5]
    assert {spoken_name(name) for names in CLASSES.values() for name in names.split()} <= set(KNOWN)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_class_has_a_name_and_a_description_of_its_own(language):
    texts = [describe(name, language) for name in KNOWN]
    assert len(set(texts)) == len(KNOWN) == 34
    assert describe("gearbox", language) == describe("object", language) not in texts
    assert describe("carpet_tiles", language) == describe("carpet", language)
    assert not any(text.endswith((".", "。")) for text in texts)
    for name in KNOWN:
        question = detection_question(name, language=language)
        assert noun_phrase(name, language) in question
        assert describe(name, language) in question


def test_the_chinese_words_are_chinese():
    for name in KNOWN:
        text = noun_phrase(name, "zh") + describe(name, "zh")
        assert not re.search(r"[A-Za-z]", text), name
        assert re.search(r"[一-鿿]", noun_phrase(name, "zh")), name


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("class_name", KINDS)
def test_each_kind_of_defect_has_a_sentence_and_not_the_rule(class_name, language):
    for kind in KINDS[class_name].split(","):
        sentence = defect_sentence(class_name, kind, language)
        if kind == "other":  # says no more than that there is one
            assert sentence is None
            continue
        assert sentence
        rule = defect_sentence(class_name, "xyzzy", language).replace("xyzzy", "{}")
        assert not re.fullmatch(re.escape(rule).replace(r"\{\}", ".*"), sentence), (kind, sentence)
