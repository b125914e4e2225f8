"""The one path from a photo to an answer, on the compact model's real weights."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalygpt.inference.predictor import Look, Predictor, find_regions, prediction

pytestmark = pytest.mark.weights


@pytest.fixture
def encodings(predictor: Predictor) -> Iterator[list[int]]:
    """How many images each call of the encoder was given."""
    seen: list[int] = []
    hook = predictor.model.encoder.vit.patch_embed.register_forward_hook(
        lambda _, inputs, __: seen.append(len(inputs[0]))
    )
    yield seen
    hook.remove()


# -- the map on the photo's own pixels --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(224, 224), (321, 120), (90, 400)])
def test_map_has_the_photos_own_size(predictor: Predictor, photo, size: tuple[int, int]) -> None:
    look = predictor.look(photo(size))
    assert look.map.shape == (size[1], size[0])
    assert look.map.dtype == np.float32
    assert look.model_map.shape == (1, 1, 224, 224)
    assert look.score == pytest.approx(float(look.model_map.max()))


def test_defect_is_found_where_it_lies_on_a_photo_that_is_not_square(predictor: Predictor, photo) -> None:
    predictor.set_references([photo((480, 240), seed=seed) for seed in range(3)])
    look = predictor.look(photo((480, 240), scratch=(0.75, 0.25), seed=9))
    row, column = np.unravel_index(look.map.argmax(), look.map.shape)
    assert abs(column / 480 - 0.75) < 0.1
    assert abs(row / 240 - 0.25) < 0.1
    assert look.regions[0].position == "top right"
    left, top, right, bottom = look.regions[0].box
    assert left <= column < right
    assert top <= row < bottom


def test_exif_orientation_is_respected(predictor: Predictor, photo) -> None:
    """A camera held upright stores the photo on its side; the map belongs to what a person sees."""
    upright = photo((120, 240), scratch=(0.25, 0.2))
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise by a quarter
    buffer = io.BytesIO()
    stored.save(buffer, format="PNG", exif=exif)
    turned = predictor.look(Image.open(buffer))
    assert turned.map.shape == (240, 120)
    assert np.allclose(turned.map, predictor.look(upright).map, atol=1e-5)


def as_16_bit(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    "change",
    [lambda image: image.convert("L"), lambda image: image.convert("RGBA"), as_16_bit],
    ids=["grey", "transparent", "16 bits"],
)
def test_photos_of_any_mode_are_seen_alike(predictor: Predictor, photo, change) -> None:
    image = photo((200, 150), scratch=(0.5, 0.5))
    assert np.allclose(predictor.look(change(image)).map, predictor.look(image).map, atol=1e-4)


def test_official_geometry_crops_beside_references_and_nowhere_else(compact_predictor: Predictor, photo) -> None:
    official = Predictor(compact_predictor.model, geometry="official")
    assert official.transform.geometry == "squash"
    official.set_references([photo((400, 200))])
    assert official.transform.geometry == "crop"
    look = official.look(photo((400, 200), seed=1))
    assert look.map.shape == (200, 400)
    assert not look.map[:, :99].any()  # outside the centre square nothing was seen
    official.set_references([])
    assert official.transform.geometry == "squash"


# -- references -------------------------------------------------------------------------------------------------------


def test_references_are_set_replaced_and_cleared(predictor: Predictor, photo) -> None:
    query = photo(scratch=(0.3, 0.3))
    text = predictor.look(query)
    assert not predictor.has_references
    predictor.set_references([query])
    assert predictor.has_references
    assert predictor.look(query).score < 1e-3
    predictor.set_references([photo()])
    assert predictor.look(query).score > 0.1
    predictor.set_references([])
    assert not predictor.has_references
    again = predictor.look(query)
    assert np.array_equal(again.map, text.map)
    assert again.threshold == text.threshold == predictor.map_threshold


@pytest.mark.parametrize("shots", [1, 4])
def test_normal_reference_lies_below_the_threshold_and_a_defect_above(predictor: Predictor, photo, shots: int) -> None:
    references = [photo(seed=seed) for seed in range(shots)]
    predictor.set_references(references)
    normal, defect = predictor.look(references[0]), predictor.look(photo(scratch=(0.5, 0.5), seed=9))
    assert 0 < normal.threshold == defect.threshold
    assert normal.score < normal.threshold < defect.score
    assert normal.regions == ()
    assert defect.regions[0].position == "center"


def test_same_reference_twice_still_gives_a_usable_threshold(predictor: Predictor, photo) -> None:
    predictor.set_references([photo(), photo()])
    look = predictor.look(photo())
    assert look.score < look.threshold


# -- encode once, ask often -------------------------------------------------------------------------------------------


def test_photo_is_encoded_once_however_often_it_is_asked_about(predictor: Predictor, photo, encodings) -> None:
    look = predictor.look(photo())
    first = predictor.answer(look, "Is there any anomaly in the image?")
    predictor.answer(look, "Where is it?", [("Is there any anomaly in the image?", first)])
    assert encodings == [1]


def test_references_are_encoded_once_for_all_photos(predictor: Predictor, photo, encodings) -> None:
    predictor.set_references([photo(seed=seed) for seed in range(3)])
    for seed in range(2):
        predictor.look(photo(seed=10 + seed))
    assert encodings == [1] * 5


# -- answers ----------------------------------------------------------------------------------------------------------


def test_prediction_says_what_was_asked_and_found(predictor: Predictor, photo) -> None:
    found = predictor.predict(photo((100, 60)), class_name="metal_nut")
    assert found.question == "This is a photo of a metal nut for anomaly detection. Is there any anomaly in the image?"
    assert found.class_name == "metal_nut"
    assert found.map.shape == (60, 100)
    assert isinstance(found.answer, str)
    assert found.is_anomalous in (True, False)


def test_class_is_the_one_that_the_question_names(predictor: Predictor, photo) -> None:
    assert predictor.predict(photo(), "Is the toothbrush broken?").class_name == "toothbrush"
    assert predictor.predict(photo()).class_name == "object"


def test_answer_is_the_same_each_time(predictor: Predictor, photo) -> None:
    answers = {predictor.predict(photo(), "Is there any anomaly in the image?").answer for _ in range(2)}
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("answer", "anomalous", "source"),
    [
        ("Yes, at the top.", True, "answer"),
        ("No.", False, "answer"),
        ("None that I can see.", True, "score"),
        ("", True, "score"),
    ],
)
def test_verdict_is_the_answers_and_else_the_scores(
    predictor: Predictor, photo, answer: str, anomalous: bool, source: str
) -> None:
    predictor.set_references([photo()])
    look: Look = predictor.look(photo(scratch=(0.5, 0.5)))
    assert look.regions
    found = prediction(look, "Is it good?", answer)
    assert (found.is_anomalous, found.verdict_from) == (anomalous, source)
    assert found.answer_agrees == anomalous, "the score says yes, so only a no contradicts it"


# -- regions ----------------------------------------------------------------------------------------------------------


def test_regions_of_a_map_made_by_hand() -> None:
    map_ = np.zeros((100, 200), dtype=np.float32)
    map_[10:20, 150:190] = 0.6
    map_[15, 160] = 0.9
    map_[80:100, 0:30] = 0.8
    map_[50, 100] = 1.0  # a speck: one pixel of 20 000
    small, large = find_regions(map_, 0.5)[::-1]
    assert (large.box, large.position) == ((0, 80, 30, 100), "bottom left")
    assert large.area == pytest.approx(600 / 20_000)
    assert large.peak == pytest.approx(0.8)
    assert (small.box, small.position) == ((150, 10, 190, 20), "top right")
    assert small.peak == pytest.approx(0.9)


def test_region_is_what_lies_strictly_above_the_threshold() -> None:
    assert find_regions(np.full((10, 10), 0.5, dtype=np.float32), 0.5) == ()
    (whole,) = find_regions(np.full((10, 10), 0.51, dtype=np.float32), 0.5)
    assert (whole.box, whole.area, whole.position) == ((0, 0, 10, 10), 1.0, "center")


def test_peak_of_a_region_is_not_its_neighbours() -> None:
    """A region inside the hollow of another one, and so inside its box."""
    map_ = np.zeros((60, 60), dtype=np.float32)
    map_[5:55, 5:55] = 0.9
    map_[10:50, 10:50] = 0.0
    map_[25:35, 25:35] = 0.6
    ring, inner = find_regions(map_, 0.5)
    assert (ring.peak, inner.peak) == (pytest.approx(0.9), pytest.approx(0.6))


# -- real photos ------------------------------------------------------------------------------------------------------


def test_four_references_rank_defective_bottles_above_good_ones(predictor: Predictor, bottle_folder: Path) -> None:
    def some(folder: Path, count: int) -> list[Path]:
        return sorted(folder.glob("*.png"))[:count]

    references = [Image.open(path) for path in some(bottle_folder / "train" / "good", 4)]
    good = some(bottle_folder / "test" / "good", 8)
    bad = [path for kind in sorted((bottle_folder / "test").iterdir()) if kind.name != "good" for path in some(kind, 4)]
    assert len(good) >= 6
    assert len(bad) >= 9
    predictor.set_references(references)
    scores = {path: predictor.look(Image.open(path)).score for path in [*good, *bad]}
    pairs = [(scores[b] > scores[g]) + 0.5 * (scores[b] == scores[g]) for b in bad for g in good]
    assert sum(pairs) / len(pairs) >= 0.98


def test_model_without_a_language_model_still_draws(compact_overrides: list[str], photo) -> None:
    from anomalygpt.config.load import load_config

    silent = Predictor.from_config(load_config("compact", compact_overrides), "cpu", speaks=False)
    found = silent.predict(photo((50, 40)))
    assert not silent.model.speaks
    assert (found.answer, found.verdict_from) == ("", "score")
    assert found.map.shape == (40, 50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_encoder_in_half_precision_draws_nearly_the_same_map(predictor: Predictor, photo, dtype: torch.dtype) -> None:
    import copy

    from anomalygpt.model.anomalygpt import AnomalyGPT

    model = predictor.model
    half = Predictor(AnomalyGPT(copy.deepcopy(model.encoder).to(dtype), model.states, model.image_decoder))
    defect = photo(scratch=(0.7, 0.3))
    for each in (predictor, half):
        each.set_references([photo()])
    full_map, half_map = predictor.look(defect).map, half.look(defect).map
    assert float(np.abs(full_map - half_map).mean()) < 0.02
    assert np.unravel_index(half_map.argmax(), half_map.shape) == pytest.approx(
        np.unravel_index(full_map.argmax(), full_map.shape), abs=16
    )
