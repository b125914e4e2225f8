"""The one path from a photo to an answer, on the compact model's real weights."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalygpt.config.schema import InferenceConfig
from anomalygpt.config.settings import ReferenceSettings
from anomalygpt.errors import UserError
from anomalygpt.inference.anomaly_map import top_mean
from anomalygpt.inference.predictor import ImageResult, Predictor, prediction

pytestmark = pytest.mark.weights

SCORE_WINS = InferenceConfig(verdict="score")


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
    look = predictor.inspect(photo(size))
    assert look.map.shape == (size[1], size[0])
    assert look.map.dtype == np.float32
    assert look.model_map.shape == (1, 1, 224, 224)
    share = predictor.settings.references.top_share
    assert look.score == pytest.approx(float(top_mean(look.model_map, share)))


def test_defect_is_found_where_it_lies_on_a_photo_that_is_not_square(predictor: Predictor, photo) -> None:
    predictor.set_references([photo((480, 240), seed=seed) for seed in range(3)])
    look = predictor.inspect(photo((480, 240), scratch=(0.75, 0.25), seed=9))
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
    turned = predictor.inspect(Image.open(buffer))
    assert turned.map.shape == (240, 120)
    assert np.allclose(turned.map, predictor.inspect(upright).map, atol=1e-5)


def as_16_bit(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    "change",
    [lambda image: image.convert("L"), lambda image: image.convert("RGBA"), as_16_bit],
    ids=["grey", "transparent", "16 bits"],
)
def test_photos_of_any_mode_are_seen_alike(predictor: Predictor, photo, change) -> None:
    image = photo((200, 150), scratch=(0.5, 0.5))
    assert np.allclose(predictor.inspect(change(image)).map, predictor.inspect(image).map, atol=1e-4)


def test_official_geometry_crops_beside_references_and_nowhere_else(compact_predictor: Predictor, photo) -> None:
    official = Predictor(compact_predictor.model, InferenceConfig(geometry="official"))
    assert official.transform.geometry == "squash"
    official.set_references([photo((400, 200))])
    assert official.transform.geometry == "crop"
    look = official.inspect(photo((400, 200), seed=1))
    assert look.map.shape == (200, 400)
    assert not look.map[:, :99].any()  # outside the centre square nothing was seen
    official.set_references([])
    assert official.transform.geometry == "squash"
    official.use_evaluation_geometry()
    assert official.transform.geometry == "crop"


# -- references -------------------------------------------------------------------------------------------------------


def test_references_are_set_replaced_and_cleared(predictor: Predictor, photo) -> None:
    query = photo(scratch=(0.3, 0.3))
    text = predictor.inspect(query)
    assert predictor.references is None
    predictor.set_references([query])
    assert predictor.references is not None
    assert predictor.inspect(query).score < 1e-3
    predictor.set_references([photo()])
    assert predictor.inspect(query).score > 0.1
    predictor.set_references([])
    assert predictor.references is None
    again = predictor.inspect(query)
    assert np.array_equal(again.map, text.map)
    assert again.threshold == text.threshold == predictor.settings.map_threshold


@pytest.mark.parametrize("shots", [1, 4])
def test_good_photo_lies_below_the_threshold_and_a_defect_above(predictor: Predictor, photo, shots: int) -> None:
    predictor.set_references([photo(seed=seed) for seed in range(shots)])
    good, defect = predictor.inspect(photo()), predictor.inspect(photo(scratch=(0.5, 0.5), seed=9))
    assert 0 < good.threshold == defect.threshold
    assert good.score < good.threshold < defect.score
    assert good.probability < 0.5 < 0.95 < defect.probability
    assert (good.is_anomalous, defect.is_anomalous) == (False, True)
    assert (good.regions, good.place) == ((), None)
    assert defect.regions[0].position == defect.place == "center"
    predictor.set_references([photo(), photo()])
    same = predictor.inspect(photo())
    assert same.score < same.threshold, "the same reference twice"


# -- encode once, ask often -------------------------------------------------------------------------------------------


def test_photos_and_references_are_encoded_once(predictor: Predictor, photo, encodings) -> None:
    look = predictor.inspect(photo())
    first = predictor.answer(look, "Is there any anomaly in the image?")
    assert predictor.answer(look, "Is there any anomaly in the image?") == first
    predictor.answer(look, "Where is it?", [("Is there any anomaly in the image?", first)])
    assert encodings == [1]
    predictor.set_references([photo(seed=seed) for seed in range(3)])
    for_the_references = encodings[1:]
    for seed in range(2):
        predictor.inspect(photo(seed=10 + seed))
    assert len(for_the_references) == 3
    assert encodings == [1, *for_the_references, 1, 1]


# -- answers ----------------------------------------------------------------------------------------------------------


def test_prediction_says_what_was_asked_and_found(predictor: Predictor, photo) -> None:
    found = predictor.predict(photo((100, 60)), class_name="metal_nut")
    assert found.question == "This is a photo of a metal nut for anomaly detection. Is there any anomaly in the image?"
    assert found.image.class_name == "metal_nut"
    assert found.image.map.shape == (60, 100)
    plain = json.loads(json.dumps(found.to_dict()))
    assert list(plain)[:5] == ["question", "answer", "is_anomalous", "verdict_from", "answer_agrees"]
    assert list(plain)[5:] == ["probability", "score", "threshold", "class_name", "regions"]
    assert (plain["question"], plain["answer"], plain["class_name"]) == (found.question, found.answer, "metal_nut")
    assert plain["score"] == pytest.approx(found.image.score, abs=1e-6)
    assert [region["position"] for region in plain["regions"]] == [region.position for region in found.image.regions]


def test_class_is_the_one_that_the_question_names(predictor: Predictor, photo) -> None:
    assert predictor.predict(photo(), "Is the toothbrush broken?").image.class_name == "toothbrush"
    assert predictor.predict(photo()).image.class_name == "object"


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
    look: ImageResult = predictor.inspect(photo(scratch=(0.5, 0.5)))
    assert look.regions
    found = prediction(look, "Is there any defect?", answer)
    assert (found.is_anomalous, found.verdict_from) == (anomalous, source)
    assert found.answer_agrees == anomalous, "the score says yes, so only a no contradicts it"


# -- the calibrated verdict -------------------------------------------------------------------------------------------


def test_text_map_is_its_own_probability_in_units_of_its_threshold(predictor: Predictor, photo) -> None:
    look = predictor.inspect(photo())
    assert look.threshold == predictor.settings.map_threshold
    assert look.score < look.threshold
    assert look.probability == pytest.approx(look.score / (2 * look.threshold))
    assert look.prompt_map is look.model_map


def test_fewer_false_alarms_make_smaller_regions(compact_predictor: Predictor, photo) -> None:
    marked = {}
    for rate in (0.3, 0.01):
        strict = Predictor(compact_predictor.model, InferenceConfig(false_alarm_rate=rate))
        strict.set_references([photo(seed=seed) for seed in range(3)])
        look = strict.inspect(photo(scratch=(0.5, 0.5), seed=9))
        marked[rate] = (look.threshold, sum(region.area for region in look.regions))
    assert marked[0.3][0] < marked[0.01][0]
    assert marked[0.3][1] > marked[0.01][1] > 0


def test_prompt_learner_sees_the_raw_map_or_one_half_at_the_threshold(compact_predictor: Predictor, photo) -> None:
    references, query = [photo(seed=seed) for seed in range(2)], photo(scratch=(0.5, 0.5), seed=9)
    raw = Predictor(compact_predictor.model, InferenceConfig(prompt_map="raw"))
    scaled = Predictor(compact_predictor.model, InferenceConfig(prompt_map="calibrated"))
    raw.set_references(references)
    scaled.set_references(references)
    plain, shown = raw.inspect(query), scaled.inspect(query)
    assert plain.prompt_map is plain.model_map
    assert torch.equal(shown.model_map, plain.model_map)
    assert torch.allclose(shown.prompt_map, (shown.model_map / (2 * shown.threshold)).clamp(0, 1))
    scaled.set_references([])
    text = scaled.inspect(query)
    assert text.prompt_map is text.model_map


class Says(Predictor):
    """A language model that wants to say something; it is asked for real only where its first words are given."""

    wants = ""

    def answer(self, look, question, history=(), opening=None):  # type: ignore[no-untyped-def]
        return self.wants if opening is None else super().answer(look, question, history, opening)


NONE, YES = "No, there is none.", "Yes, there is an anomaly in the image"
QUESTION = "Is there any anomaly in the image?"


@pytest.mark.parametrize(
    ("verdict", "question", "wants", "begins", "expected"),
    [
        ("score", QUESTION, NONE, "Yes,", (True, "score", False)),
        ("score", QUESTION, "没有，图中没有异常。", "有，", (True, "score", False)),
        ("score", "Is it long?", "No.", "No.", (True, "score", False)),
        ("score", QUESTION, "Yes, at the bottom right.", f"{YES}, at the top left", (True, "score", True)),
        ("answer", QUESTION, NONE, NONE, (False, "answer", False)),
    ],
)
def test_score_that_wins_begins_the_answer_and_other_answers_stay(
    compact_predictor: Predictor, photo, verdict, question: str, wants: str, begins: str, expected
) -> None:
    judge = Says(compact_predictor.model, InferenceConfig(verdict=verdict), compact_predictor.generation)
    judge.wants = wants
    judge.set_references([photo(seed=seed) for seed in range(2)])
    found = judge.predict(photo(scratch=(0.15, 0.15), seed=9), question)
    assert found.image.place == "top left"
    assert found.answer.startswith(begins)
    assert (found.is_anomalous, found.verdict_from, found.answer_agrees) == expected


@pytest.mark.parametrize(
    ("scratch", "begins"),
    [(None, "Yes, there is no anomaly in the image."), ((0.5, 0.5), "No, there is an anomaly in the image, at the")],
)
def test_question_whether_all_is_well_is_answered_as_it_was_asked(
    compact_predictor: Predictor, photo, scratch, begins: str
) -> None:
    judge = Predictor(compact_predictor.model, SCORE_WINS, compact_predictor.generation)
    judge.set_references([photo(seed=seed) for seed in range(4)])
    found = judge.predict(photo(scratch=scratch, seed=9), "Is it fine?")
    assert found.answer.startswith(begins)
    assert found.is_anomalous == (scratch is not None)
    assert found.answer_agrees


# -- references, kept -------------------------------------------------------------------------------------------------


def test_reference_added_later_counts_like_one_given_at_once(predictor: Predictor, photo) -> None:
    photos, query = [photo(seed=seed) for seed in range(3)], photo(scratch=(0.3, 0.6), seed=9)
    predictor.set_references(photos)
    at_once = predictor.inspect(query)
    predictor.set_references([])
    for some in (photos[:1], photos[1:]):
        predictor.add_references(some)
    later = predictor.inspect(query)
    assert np.allclose(later.map, at_once.map, atol=1e-5)
    assert later.threshold == pytest.approx(at_once.threshold, abs=1e-5)


def test_saved_references_give_the_same_map_and_verdict(predictor: Predictor, photo, tmp_path: Path) -> None:
    path, query = tmp_path / "references" / "part.safetensors", photo(scratch=(0.3, 0.6), seed=9)
    predictor.set_references([photo(seed=seed) for seed in range(2)])
    before = predictor.inspect(query)
    predictor.save_references(path)
    predictor.set_references([])
    predictor.load_references(path)
    after = predictor.inspect(query)
    assert np.array_equal(after.map, before.map)
    assert (after.threshold, after.probability) == (before.threshold, before.probability)


def test_prior_score_is_of_references_of_the_same_settings_and_of_their_own_map(
    predictor: Predictor, photo, tmp_path: Path
) -> None:
    def threshold(prior: float | None, text_weight: float = 0.0, load: Path | None = None) -> float:
        references = ReferenceSettings(preset="custom", text_weight=text_weight)
        shrinking = Predictor(predictor.model, InferenceConfig(references=references, prior_score=prior))
        if load is None:
            shrinking.set_references([photo(seed=seed) for seed in range(2)])
            shrinking.save_references(tmp_path / f"{text_weight}.safetensors")
        else:
            shrinking.load_references(load)
        return shrinking.inspect(photo(seed=5)).threshold

    assert threshold(0.9) > 1.2 * threshold(None)
    assert threshold(0.9, 1.0) == threshold(None, 1.0), "nothing of the references' map is left"
    official = tmp_path / "0.0.safetensors"
    assert threshold(0.9, 0.5, official) == pytest.approx(threshold(None, 0.0, official)), "saved with other settings"


def test_nothing_to_save_and_another_geometry_are_one_line(predictor: Predictor, photo, tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    with pytest.raises(UserError, match="no references to save"):
        predictor.save_references(path)
    predictor.set_references([photo()])
    predictor.save_references(path)
    official = Predictor(predictor.model, InferenceConfig(geometry="official"))
    with pytest.raises(UserError, match="geometry is squash in the file and crop here"):
        official.load_references(path)
    assert official.references is None


def test_photos_looked_at_together_are_seen_as_one_by_one(predictor: Predictor, photo, encodings) -> None:
    photos = [photo((100 + 10 * seed, 80), seed=seed) for seed in range(3)]
    predictor.set_references([photo(seed=9)])
    encodings.clear()
    together = predictor.inspect_batch(photos)
    assert encodings == [3]
    for look, one in zip(together, photos, strict=True):
        alone = predictor.inspect(one)
        assert look.map.shape == alone.map.shape == (80, one.width)
        assert np.allclose(look.map, alone.map, atol=1e-5)
        assert look.probability == pytest.approx(alone.probability, abs=1e-3)


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
    scores = {path: predictor.inspect(Image.open(path)).score for path in [*good, *bad]}
    pairs = [(scores[b] > scores[g]) + 0.5 * (scores[b] == scores[g]) for b in bad for g in good]
    assert sum(pairs) / len(pairs) >= 0.98


@pytest.mark.data
@pytest.mark.parametrize("turns", [1, 2])
def test_screw_that_lies_the_other_way_round_is_no_defect(compact_predictor: Predictor, turns: int) -> None:
    from tests.shared_data import shared

    good = [Image.open(path) for path in sorted(shared("data/mvtec_layout/screw/train/good").iterdir())[:6]]
    turned = [one.rotate(90 * turns) for one in good[2:]]
    scores = {}
    for augmentation in ("none", "auto"):
        settings = ReferenceSettings(preset="custom", augmentation=augmentation)  # type: ignore[arg-type]
        looker = Predictor(compact_predictor.model, InferenceConfig(references=settings))
        looker.set_references(good[:2])
        scores[augmentation] = [look.score for look in looker.inspect_batch(turned)]
    assert looker.references is not None
    assert looker.references.augmentation == "rotations"
    assert np.mean(scores["auto"]) < 0.9 * np.mean(scores["none"])


def test_model_without_a_language_model_still_draws(compact_overrides: list[str], photo) -> None:
    from anomalygpt.config.load import load_config

    silent = Predictor.from_config(load_config("compact", compact_overrides), "cpu", with_llm=False)
    found = silent.predict(photo((50, 40)))
    assert not silent.model.has_llm
    assert (found.answer, found.verdict_from) == ("", "score")
    assert found.image.map.shape == (40, 50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_encoder_in_half_precision_draws_nearly_the_same_map(predictor: Predictor, photo, dtype: torch.dtype) -> None:
    import copy

    from anomalygpt.model.anomalygpt import AnomalyGPT

    model = predictor.model
    half = Predictor(AnomalyGPT(copy.deepcopy(model.encoder).to(dtype), model.states, model.image_decoder))
    defect = photo(scratch=(0.7, 0.3))
    for each in (predictor, half):
        each.set_references([photo()])
    full_map, half_map = predictor.inspect(defect).map, half.inspect(defect).map
    assert float(np.abs(full_map - half_map).mean()) < 0.02
    assert np.unravel_index(half_map.argmax(), half_map.shape) == pytest.approx(
        np.unravel_index(full_map.argmax(), full_map.shape), abs=16
    )
