"""From a photo to an answer, with the compact model's real weights."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalygpt.config.schema import InferenceConfig
from anomalygpt.config.settings import GenerationSettings, PartsPrior, ReferenceSettings
from anomalygpt.errors import UserError
from anomalygpt.inference.anomaly_map import top_mean
from anomalygpt.inference.answer_check import check_answer
from anomalygpt.inference.augmentation import VIEWS
from anomalygpt.inference.language_models import PromptedModel
from anomalygpt.inference.predictor import Predictor
from tests.inference.conftest import batch_sizes

pytestmark = pytest.mark.weights


@pytest.fixture
def encodings(predictor: Predictor) -> Iterator[list[int]]:
    with batch_sizes(predictor.model.encoder.vit.patch_embed["proj"]) as sizes:
        yield sizes


@pytest.mark.parametrize("size", [(224, 224), (321, 120), (90, 400)])
def test_map_has_the_photos_own_size(predictor: Predictor, photo, size: tuple[int, int]) -> None:
    result = predictor.inspect(photo(size))
    assert result.map.shape == (size[1], size[0])
    assert result.map.dtype == np.float32
    assert result.model_map.shape == (1, 1, 224, 224)
    assert result.score == pytest.approx(float(top_mean(result.model_map, predictor.settings.text_top_share)))


def test_defect_is_located_on_a_photo_that_is_not_square(predictor: Predictor, photo) -> None:
    predictor.set_references([photo((480, 240), seed=seed) for seed in range(3)])
    result = predictor.inspect(photo((480, 240), scratch=(0.75, 0.25), seed=9))
    row, column = np.unravel_index(result.map.argmax(), result.map.shape)
    assert abs(column / 480 - 0.75) < 0.1
    assert abs(row / 240 - 0.25) < 0.1
    assert result.regions[0].place == "top right"
    left, top, right, bottom = result.regions[0].box
    assert left <= column < right
    assert top <= row < bottom


def test_exif_orientation_is_respected(predictor: Predictor, photo) -> None:
    """A camera held upright stores the photo on its side; the map has the upright orientation."""
    upright = photo((120, 240), scratch=(0.25, 0.2))
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise by a quarter
    buffer = io.BytesIO()
    stored.save(buffer, format="PNG", exif=exif)
    turned = predictor.inspect(Image.open(buffer))
    assert turned.map.shape == (240, 120)
    assert turned.photo.size == turned.plot().size == (120, 240)
    assert np.allclose(turned.map, predictor.inspect(upright).map, atol=1e-5)


def test_official_geometry_crops_beside_references_and_nowhere_else(compact_predictor: Predictor, photo) -> None:
    official = Predictor(compact_predictor.model, InferenceConfig(geometry="official"))
    assert official.transform.geometry == "squash"
    official.set_references([photo((400, 200))])
    assert official.transform.geometry == "crop"
    result = official.inspect(photo((400, 200), seed=1))
    assert result.map.shape == (200, 400)
    assert not result.map[:, :99].any()  # the encoder gets the centre square only
    official.set_references([])
    assert official.transform.geometry == "squash"
    official.use_evaluation_geometry()
    assert official.transform.geometry == "crop"


def test_references_are_set_replaced_and_cleared(predictor: Predictor, photo) -> None:
    query = photo(scratch=(0.3, 0.3))
    text = predictor.inspect(query)
    good = predictor.inspect(photo())
    assert good.score < good.threshold
    assert good.score_probability == pytest.approx(good.score / (2 * good.threshold))
    assert predictor.references is None
    with pytest.raises(UserError, match="there are no references to save"):
        predictor.save_references(Path("part.safetensors"))
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
def test_good_photo_is_below_the_threshold_and_a_defect_above(predictor: Predictor, photo, shots: int) -> None:
    predictor.set_references([photo(seed=seed) for seed in range(shots)])
    good, defect = predictor.inspect(photo()), predictor.inspect(photo(scratch=(0.5, 0.5), seed=9))
    assert 0 < good.threshold == defect.threshold
    assert good.score < good.threshold < defect.score
    assert good.probability < 0.5 < 0.95 < defect.probability
    assert (good.is_anomalous, defect.is_anomalous) == (False, True)
    assert (good.regions, good.findings.status) == ((), "good")
    assert defect.regions[0].place == "center"
    predictor.set_references([photo(), photo()])
    same = predictor.inspect(photo())
    assert same.score < same.threshold, "the same reference twice"


def test_photos_and_references_are_encoded_once(predictor: Predictor, photo, encodings) -> None:
    result = predictor.inspect(photo())
    first = predictor.ask(result, "Is there any anomaly in the image?").answer
    assert predictor.ask(result, "Is there any anomaly in the image?").answer == first
    predictor.ask(result, "Where is it?", [("Is there any anomaly in the image?", first)])
    assert encodings == [1]
    predictor.set_references([photo(seed=seed) for seed in range(3)])
    for_the_references = encodings[1:]
    for seed in range(2):
        predictor.inspect(photo(seed=10 + seed))
    copies = 2 * 3  # noisy and compressed ones of each photo
    assert sum(for_the_references) == 3 * len(VIEWS["rotations"]) + copies
    assert encodings == [1, *for_the_references, 1, 1]


def test_prediction_holds_question_class_and_result(predictor: Predictor, photo) -> None:
    found = next(predictor.predict_batch([photo((100, 60))], class_name="metal_nut"))
    assert found.question == "This is a photo of a metal nut for anomaly detection. Is there any anomaly in the image?"
    assert found.image.class_name == "metal_nut"
    assert found.image.map.shape == (60, 100)
    plain = json.loads(json.dumps(found.to_dict()))
    own = {"question", "answer", "is_anomalous", "verdict_from", "answer_agrees", "answer_source"}
    findings = {
        "status",
        "reason",
        "certainty",
        "class_name",
        "references",
        "image_size",
        "number",
        "places",
        "total_area",
    }
    numbers = {"probability", "probability_without_odd", "score", "threshold", "score_threshold"}
    assert set(plain) == own | findings | numbers | {"regions"}
    assert (plain["image_size"], plain["number"]) == ([100, 60], len(plain["regions"]))
    assert (plain["question"], plain["answer"], plain["class_name"]) == (found.question, found.answer, "metal_nut")
    assert plain["score"] == pytest.approx(found.image.score, abs=1e-6)
    assert [region["position"] for region in plain["regions"]] == [region.place for region in found.image.regions]
    for question, name in (("Is the toothbrush broken?", "toothbrush"), (None, "object")):
        assert next(predictor.predict_batch([photo()], question)).image.class_name == name


def test_verdict_without_an_odd_reference_is_that_of_the_others(
    compact_predictor: Predictor, photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, good = compact_predictor.without_references(), [photo(seed=seed) for seed in range(3)]
    odd, query = photo(scratch=(0.3, 0.3), seed=7), photo(scratch=(0.3, 0.32), seed=9)
    predictor.set_references([good[0], odd, *good[1:]])
    assert predictor.report().odd == (1,)
    with_odd, copied = predictor.inspect(query), predictor.copy().inspect(query)
    assert copied.probability_without_odd == with_odd.probability_without_odd
    encode, encoded = predictor.model.encode, list[int]()
    monkeypatch.setattr(predictor.model, "encode", lambda images: encoded.append(len(images)) or encode(images))
    again = predictor.inspect_batch([query, good[0]])[0]
    assert again.probability_without_odd == pytest.approx(with_odd.probability_without_odd, abs=1e-5)
    assert encoded == [2], "once, for both sets of references"
    monkeypatch.undo()
    predictor.set_references(good)
    alone = predictor.inspect(query)
    assert alone.probability_without_odd is None
    assert with_odd.probability_without_odd == pytest.approx(alone.probability, abs=1e-5)
    assert with_odd.score < alone.score, "its own scratch hides the query's"
    assert with_odd.findings.to_dict()["probability_without_odd"] == with_odd.probability_without_odd


def test_fewer_false_alarms_make_smaller_regions(compact_predictor: Predictor, photo) -> None:
    marked = {}
    for rate in (0.3, 0.01):
        strict = Predictor(compact_predictor.model, InferenceConfig(false_alarm_rate=rate))
        strict.set_references([photo(seed=seed) for seed in range(3)])
        result = strict.inspect(photo(scratch=(0.5, 0.5), seed=9))
        marked[rate] = (result.threshold, sum(region.area for region in result.regions))
    assert marked[0.3][0] < marked[0.01][0]
    assert marked[0.3][1] > marked[0.01][1] > 0


def test_prompt_learner_gets_the_raw_map_or_one_half_at_the_threshold(compact_predictor: Predictor, photo) -> None:
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


def test_answer_is_streamed_and_can_be_stopped(compact_predictor: Predictor, photo) -> None:
    own_words = Predictor(compact_predictor.model, InferenceConfig(), compact_predictor.generation)
    image, question = own_words.inspect(photo(scratch=(0.5, 0.5))), "Is there any anomaly in the image?"
    found = own_words.ask(image, question)
    assert found.answer == own_words.language_model.answers([image], [question])[0], "token by token as all at once"
    pieces = own_words.stream(image, question)
    first = next(pieces)
    pieces.close()
    assert first and found.answer.startswith(first)
    again = [("And where?", own_words.ask(image, "And where?").answer)]
    *_, fresh = PromptedModel(own_words.model, own_words.generation, False).texts(image, question, again)
    assert own_words.ask(image, question, again).answer == fresh, "from the cache"


@pytest.mark.parametrize("findings", ["none", "prompt"])
def test_answers_about_several_photos_are_those_about_each_alone(compact_predictor: Predictor, photo, findings) -> None:
    settings = InferenceConfig(findings=findings, verdict="answer" if findings == "none" else "score")
    # Rows of a batch are rounded otherwise than one alone. Words that nobody trained part sooner or later by that.
    greedy = GenerationSettings(max_new_tokens=10 if findings == "none" else 40, temperature=0)
    predictor = Predictor(compact_predictor.model, settings, greedy)
    photos = [photo(scratch=(0.5, 0.5)), photo(), photo(scratch=(0.15, 0.8), seed=3)]
    together = [each.to_dict() for each in predictor.predict_batch(photos, "Where is it?")]
    alone = [next(predictor.predict_batch([each], "Where is it?")).to_dict() for each in photos]
    words = [(each["answer"], each["answer_source"], each["is_anomalous"]) for each in (*together, *alone)]
    assert words[:3] == words[3:]
    assert len({answer for answer, *_ in words}) > 1


@pytest.mark.parametrize("scratch", [None, (0.15, 0.15)])
def test_words_agree_with_the_findings(predictor: Predictor, photo, scratch) -> None:
    predictor.set_references([photo(seed=seed) for seed in range(4)])
    found = next(predictor.predict_batch([photo(scratch=scratch, seed=9)], "Is it fine?"))
    assert check_answer(found.answer, found.question, found.image.findings) == ()
    assert found.is_anomalous == (scratch is not None) == (found.image.findings.places == ("top left",))
    assert (found.verdict_from, found.image.findings.references) == ("score", 4)


def test_adding_to_saved_references_equals_giving_all_at_once(predictor: Predictor, photo, tmp_path: Path) -> None:
    photos, query = [photo(seed=seed) for seed in range(3)], photo(scratch=(0.3, 0.6), seed=9)
    predictor.set_references(photos[:1])
    predictor.save_references(tmp_path / "one.safetensors")
    predictor.set_references(photos[1:], tmp_path / "one.safetensors")
    later = predictor.inspect(query)
    predictor.set_references(photos)
    at_once = predictor.inspect(query)
    assert np.allclose(later.map, at_once.map, atol=1e-5)
    assert later.threshold == pytest.approx(at_once.threshold, abs=1e-5)


def test_other_parts_are_of_references_of_the_same_preset_and_of_their_own_map(
    predictor: Predictor, photo, tmp_path: Path
) -> None:
    def threshold(preset: str | None, text_weight: float = 0.0, load: Path | None = None) -> float:
        references = ReferenceSettings(preset="fast", text_weight=text_weight)
        known = PartsPrior(references=(1,), centre=(0,), held_out=(0,), weight=(0,), error=(0,), spread=0.1)
        calibration = {preset: known} if preset else {}
        shrinking = Predictor(predictor.model, InferenceConfig(references=references, calibration=calibration))
        if load is None:
            shrinking.set_references([photo(seed=seed) for seed in range(2)])
            shrinking.save_references(tmp_path / f"{text_weight}.safetensors")
        else:
            shrinking.set_references((), load)
        return shrinking.inspect(photo(seed=5)).threshold

    assert threshold("fast") > 1.2 * threshold(None)
    assert threshold("fast", 1.0) == threshold(None, 1.0), "nothing of the references' map is left"
    fast = tmp_path / "0.0.safetensors"
    assert threshold("fast", 0.5, fast) > 1.2 * threshold(None, 0.5, fast), "as it was saved"
    assert threshold("best") == threshold(None)


def test_batch_gives_the_results_of_single_photos(predictor: Predictor, photo, encodings) -> None:
    photos = [photo((100 + 10 * seed, 80), seed=seed) for seed in range(3)]
    predictor.set_references([photo(seed=9)])
    encodings.clear()
    together = predictor.inspect_batch(photos)
    assert encodings == [3]
    for result, one in zip(together, photos, strict=True):
        alone = predictor.inspect(one)
        assert result.map.shape == alone.map.shape == (80, one.width)
        assert np.allclose(result.map, alone.map, atol=1e-5)
        assert result.probability == pytest.approx(alone.probability, abs=1e-3)


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
