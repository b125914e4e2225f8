"""Which photos are references, and what is measured of maps and answers that are known."""

import numpy as np
import pytest
from PIL import Image

from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.datasets.mvtec import index_mvtec
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.evaluation.protocol import ProtocolError, evaluate_category, map_mask, reference_records


def numbers(records: list[ImageRecord]) -> list[int]:
    return [int(record.image.stem) for record in records]


@pytest.mark.parametrize(
    ("shots", "round_", "expected"),
    [
        (0, 0, []),
        (1, 0, [0]),
        (4, 0, [0, 1, 2, 3]),
        (1, 1, [4]),
        (2, 2, [8, 9]),
        (4, 1, [4, 5, 6, 7]),
        (5, 1, [5, 6, 7, 8, 9]),
    ],
)
def test_a_round_starts_four_good_photos_further_on(tree, shots, round_, expected):
    assert numbers(reference_records(index_mvtec(tree), shots, round_)) == expected


def test_references_are_sorted_good_training_photos_whatever_the_order_of_the_records(tree):
    chosen = reference_records(index_mvtec(tree)[::-1], 4)
    assert numbers(chosen) == [0, 1, 2, 3]
    assert all(record.split == "train" and not record.is_anomalous for record in chosen)


def test_too_few_good_photos_are_told(tree):
    with pytest.raises(ProtocolError, match="4 references in round 2 need 12 good training photos, there are 10"):
        reference_records(index_mvtec(tree), 4, 2)


def test_a_map_of_the_defect_is_perfect(tree, fake_predictor):
    result = evaluate_category(fake_predictor(), index_mvtec(tree), 0, "bottle")
    assert (result.image_auroc, result.pixel_auroc) == (1, pytest.approx(1))
    assert (result.answer_accuracy, result.verdict_accuracy, result.no_verdict) == (1, 1, 0)


def test_an_inverted_map_is_as_wrong_as_can_be(tree, fake_predictor):
    def inverted(dark):
        return (1 - dark) * (1 - dark.max())  # the darker the darkest pixel, the lower the photo's score

    result = evaluate_category(fake_predictor(inverted), index_mvtec(tree), 0, "bottle")
    assert result.image_auroc == 0
    pixels = evaluate_category(fake_predictor(lambda dark: 1 - dark), index_mvtec(tree), 0, "bottle")
    assert pixels.pixel_auroc == pytest.approx(0)


def test_the_references_of_the_round_reach_the_predictor(tree, fake_predictor):
    predictor = fake_predictor()
    result = evaluate_category(predictor, index_mvtec(tree), 2, "bottle", round=1)
    assert result.references == ("good/004.png", "good/005.png")
    expected = [Image.open(tree / "bottle" / "train" / "good" / f"00{n}.png") for n in (4, 5)]
    assert all(np.array_equal(a, b) for a, b in zip(predictor.references, expected, strict=True))


def test_zero_shot_takes_earlier_references_away(tree, fake_predictor):
    predictor = fake_predictor()
    predictor.set_references(["of an earlier class"])
    evaluate_category(predictor, index_mvtec(tree), 0, "bottle")
    assert predictor.references == []


def test_the_question_is_the_one_that_users_are_given(tree, fake_predictor):
    predictor = fake_predictor()
    result = evaluate_category(predictor, index_mvtec(tree), 0, "bottle")
    assert set(predictor.questions) == {result.question} == {detection_question("bottle", with_description=False)}


def test_a_silent_answer_is_wrong_but_leaves_the_verdict_to_the_map(tree, fake_predictor):
    predictor = fake_predictor(words=lambda is_dark: "Nothing comes to mind.")
    result = evaluate_category(predictor, index_mvtec(tree), 0, "bottle")
    assert (result.answer_accuracy, result.no_verdict, result.verdict_accuracy) == (0, 4, 1)


def test_without_chat_nothing_is_asked(tree, fake_predictor):
    predictor = fake_predictor()
    result = evaluate_category(predictor, index_mvtec(tree), 0, "bottle", chat=False)
    assert predictor.questions == [] and result.answer_accuracy is None
    assert (result.image_auroc, result.verdict_accuracy) == (1, 1)


def test_a_defect_without_a_mask_counts_for_the_image_only(tree, fake_predictor):
    records = [
        ImageRecord(r.image, r.class_name, r.split, r.is_anomalous, r.defect, None)
        if r.image.match("hole/001.png")
        else r
        for r in index_mvtec(tree)
    ]
    result = evaluate_category(fake_predictor(), records, 0, "bottle")
    assert (len(result.photos), result.masked_photos) == (4, 3)
    assert result.pixel_auroc == pytest.approx(1)


def test_a_class_without_test_photos_is_told(tree, fake_predictor):
    with pytest.raises(ProtocolError, match="screw: no test photos"):
        evaluate_category(fake_predictor(), index_mvtec(tree), 0, "screw")


def test_every_photo_is_reported_as_it_is_done(tree, fake_predictor):
    done = []
    evaluate_category(fake_predictor(), index_mvtec(tree), 0, "bottle", on_photo=lambda: done.append(1))
    assert len(done) == 4


def test_a_mask_follows_its_photo_and_the_official_one_is_squashed():
    mask = Image.new("L", (64, 32))
    mask.paste(255, (0, 0, 16, 32))  # the left quarter, which a centre crop cuts off
    cropped = ImageTransform(16, (0.0,) * 3, (1.0,) * 3, "crop")
    assert not map_mask(mask, cropped, 32, "as_seen").any()
    assert map_mask(mask, cropped, 32, "official")[:, :8].all()
    assert not map_mask(mask, cropped, 32, "official")[:, 9:].any()
