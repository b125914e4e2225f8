"""Good photos, remembered: added one by one, compared, held out, saved and loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.errors import UserError
from anomalygpt.inference.reference_settings import OFFICIAL, ReferenceSettings
from anomalygpt.inference.references import References
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import read_tensors, save_tensors
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.few_shot import PatchMemory
from anomalygpt.model.prompt_learner import MAP_SIZE
from anomalygpt.model.retakes import RETAKES
from tests.inference.conftest import thin

EVERYTHING = ReferenceSettings(
    augmentation="auto",
    scales=(1, 2),
    scale_weights=(1.0, 2.0),
    tap_weights=(0.0, 1.0, 1.0, 2.0),
    neighbourhood=3,
    distance="euclid",
    normalise=True,
    foreground="auto",
    interpolation="centred",
    smoothing=0.5,
    top_share=0.01,
    text_weight=0.2,
)
THINNED = replace(OFFICIAL, coreset_share=0.25)
CHANGES = {
    "official": OFFICIAL,
    "everything": EVERYTHING,
    "rotations": replace(OFFICIAL, augmentation="rotations"),
    "two scales": replace(OFFICIAL, scales=(1, 2)),
    "thinned": THINNED,
}


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Six photos that have nothing in common."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(6)]


@pytest.fixture
def encoded(thin_model: AnomalyGPT) -> Iterator[list[int]]:
    """How many images each call of the encoder was given."""
    seen: list[int] = []
    stem = thin_model.encoder.modality_preprocessors["vision"]
    hook = stem.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    yield seen
    hook.remove()


@pytest.fixture
def remember(thin_model: AnomalyGPT, thin_transform: ImageTransform):
    def make(photos: Sequence[Image.Image], settings: ReferenceSettings = OFFICIAL) -> References:
        return References.remember(thin_model, photos, settings, thin_transform)

    return make


def close(a: Tensor, b: Tensor, within: float = 1e-5) -> bool:
    return float((a - b).abs().max()) < within


# -- the paper's way --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 4])
def test_official_map_is_the_papers_to_the_bit(remember, thin_model, thin_transform, photos, shots: int) -> None:
    features, found = remember(photos[:shots]).look(photos[5])
    encoded = [thin_model.encode(thin_transform(photo)[None]) for photo in photos[:shots]]
    together = ImageFeatures(
        tuple(torch.cat(layer) for layer in zip(*(one.taps for one in encoded), strict=True)),
        torch.cat([one.embedding for one in encoded]),
    )
    assert torch.equal(found, PatchMemory(together).anomaly_map(features, MAP_SIZE))
    assert remember(photos[:shots]).score(found) == float(found.max())


# -- adding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
def test_photo_added_is_as_if_it_had_been_remembered_with_the_others(remember, photos, name: str) -> None:
    settings = CHANGES[name]
    grown = remember(photos[:1], settings)
    grown.look(photos[5])  # so that there is something to forget
    for photo in photos[1:3]:
        grown.add(photo)
        grown.held_out_maps()
    whole = remember(photos[:3], settings)
    assert len(grown) == len(whole) == 3
    assert close(grown.look(photos[5])[1], whole.look(photos[5])[1])
    assert close(grown.held_out_maps(), whole.held_out_maps())


def test_adding_encodes_the_new_photo_only(remember, photos, encoded) -> None:
    references = remember(photos[:3], CHANGES["rotations"])
    references.look(photos[5])
    encoded.clear()
    references.add(photos[3])
    references.look(photos[5])
    assert encoded == [1, 4] or encoded == [4, 1]


def test_own_side_is_encoded_once_for_map_text_and_language_model(remember, photos, encoded) -> None:
    references = remember(photos[:2], replace(OFFICIAL, text_weight=0.5))
    references.look(photos[4])
    encoded.clear()
    references.look(photos[5])
    assert encoded == [1]


def test_photos_looked_at_together_are_seen_as_one_by_one(remember, photos) -> None:
    references = remember(photos[:2], EVERYTHING)
    features, together = references.look_many(photos[3:6], ["bottle"] * 3)
    assert len(features) == 3
    for number, photo in enumerate(photos[3:6]):
        assert close(together[[number]], references.look(photo, "bottle")[1])


# -- views, scales, the coreset, the text map -------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["rotations", "flips"])
def test_view_of_a_reference_is_no_anomaly(remember, photos, augmentation) -> None:
    square = photos[0].resize((112, 112))
    turned = {
        "rotations": square.transpose(Image.Transpose.ROTATE_90),
        "flips": square.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }[augmentation]
    assert float(remember([square]).look(turned)[1].max()) > 1e-3
    assert float(remember([square], replace(OFFICIAL, augmentation=augmentation)).look(turned)[1].max()) < 1e-4


def test_larger_scale_is_a_finer_grid(remember, photos) -> None:
    memory = remember(photos[:2], replace(OFFICIAL, scales=(1, 2))).memory
    assert {scale: len(known.bank) for scale, known in memory.items()} == {1: 2 * 64, 2: 2 * 256}


def test_reference_itself_is_no_anomaly_at_any_scale(remember, photos) -> None:
    assert float(remember(photos[:2], replace(OFFICIAL, scales=(2, 3))).look(photos[1])[1].max()) < 1e-4


def test_coreset_thins_large_memories_only(remember, photos) -> None:
    def patches(settings: ReferenceSettings) -> int:
        return len(remember(photos[:4], settings).memory[1].bank)

    assert patches(THINNED) == 64
    assert patches(replace(THINNED, coreset_from=256)) == 256
    assert patches(replace(THINNED, coreset_from=255)) == 64


def test_thinned_memory_never_calls_a_photo_less_strange(remember, photos) -> None:
    full, thin_ = (remember(photos[:4], settings).look(photos[5])[1] for settings in (OFFICIAL, THINNED))
    assert bool((thin_ >= full - 1e-6).all())
    assert not close(thin_, full)


def test_text_map_is_blended_in_by_its_weight(remember, thin_model, photos) -> None:
    features, plain = remember(photos[:2]).look(photos[5], "bottle")
    _, half = remember(photos[:2], replace(OFFICIAL, text_weight=0.25)).look(photos[5], "bottle")
    text = thin_model.anomaly_map(features, ["bottle"])
    assert close(half, 0.75 * plain + 0.25 * text)


def test_text_map_that_finds_fault_with_the_references_is_left_out(remember, thin_model, photos) -> None:
    features, plain = remember(photos[:2]).look(photos[5], "bottle")
    on_references = [float(thin_model.anomaly_map(remember([p]).look(p)[0], ["bottle"]).max()) for p in photos[:2]]
    usual = sum(on_references) / 2
    for limit, weight in ((usual - 1e-3, 0.0), (usual + 1e-3, 0.25)):
        references = remember(photos[:2], replace(OFFICIAL, text_weight=0.25, text_trusted_below=limit))
        assert references.text_weight("bottle") == weight
        text = thin_model.anomaly_map(features, ["bottle"])
        assert close(references.look(photos[5], "bottle")[1], (1 - weight) * plain + weight * text)


def test_trust_in_the_text_map_is_a_matter_of_all_references_and_of_the_class(remember, thin_model, photos) -> None:
    def usual(some, name: str) -> float:
        maps = [thin_model.anomaly_map(remember([photo]).look(photo)[0], [name]) for photo in some]
        return sum(float(one.max()) for one in maps) / len(maps)

    one, both, other = usual(photos[:1], "bottle"), usual(photos[:2], "bottle"), usual(photos[:2], "screw")
    between = replace(OFFICIAL, text_weight=0.25, text_trusted_below=(one + both) / 2)
    references = remember(photos[:1], between)
    before = references.text_weight("bottle")
    references.add(photos[1])
    assert {before, references.text_weight("bottle")} == {0.0, 0.25}
    by_class = remember(photos[:2], replace(between, text_trusted_below=(both + other) / 2))
    assert {by_class.text_weight("bottle"), by_class.text_weight("screw")} == {0.0, 0.25}


def test_held_out_maps_are_blended_as_maps_of_queries_are(remember, photos) -> None:
    references = remember(photos[:3], replace(OFFICIAL, text_weight=0.25))
    assert not close(references.held_out_maps("bottle"), references.held_out_maps("screw"), 1e-9)
    assert references.held_out_maps("bottle") is references.held_out_maps("bottle")


# -- held out ---------------------------------------------------------------------------------------------------------


def test_each_reference_is_held_against_the_others(remember, photos) -> None:
    held_out = remember(photos[:3]).held_out_maps()
    assert held_out.shape == (3, 1, MAP_SIZE, MAP_SIZE)
    for number in range(3):
        others = [photo for other, photo in enumerate(photos[:3]) if other != number]
        assert close(held_out[[number]], remember(others).look(photos[number])[1])


def test_single_reference_is_held_against_itself_taken_again_and_without_its_own_place(remember, photos) -> None:
    held_out = remember(photos[:1]).held_out_maps()
    assert held_out.shape == (2 * len(RETAKES), 1, MAP_SIZE, MAP_SIZE)
    known, missed = held_out.split(len(RETAKES))
    assert bool((missed >= known - 1e-6).all())
    assert float(known.amax()) > 1e-3


def test_photo_without_which_a_thinned_memory_would_be_empty_is_not_held_out(remember, photos) -> None:
    references = remember([photos[0]] * 2, THINNED)
    assert len(set(references.memory[1].bank.owners.tolist())) == 1, "the coreset keeps one of two equal patches"
    assert len(references.held_out_maps()) == 1
    references.add(photos[1])
    assert bool(references.held_out_maps().isfinite().all())


def test_many_references_are_not_all_held_out(remember, photos, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalygpt.inference import references as module

    monkeypatch.setattr(module, "MOST_HELD_OUT", 3)
    held_out = remember(photos[:5]).held_out_maps()
    assert len(held_out) == 3
    everything = [photo for number, photo in enumerate(photos[:5]) if number != 4]
    assert close(held_out[[2]], remember(everything).look(photos[4])[1])


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
def test_loaded_references_give_the_same_maps(remember, thin_model, thin_transform, photos, tmp_path, name) -> None:
    saved = remember(photos[:3], CHANGES[name])
    path = tmp_path / "part.safetensors"
    saved.save(path)
    loaded = References.load(path, thin_model, thin_transform)
    assert (len(loaded), loaded.settings, loaded.augmentation) == (3, saved.settings, saved.augmentation)
    assert close(loaded.look(photos[5])[1], saved.look(photos[5])[1], 1e-3)
    assert close(loaded.held_out_maps(), saved.held_out_maps(), 1e-3)


def test_loading_encodes_nothing(remember, thin_model, thin_transform, photos, tmp_path, encoded) -> None:
    path = tmp_path / "part.safetensors"
    remember(photos[:3], replace(OFFICIAL, augmentation="auto")).save(path)
    encoded.clear()
    References.load(path, thin_model, thin_transform).held_out_maps()
    assert encoded == []


@pytest.mark.parametrize("name", CHANGES)
def test_photo_added_to_loaded_references_counts_as_ever(
    remember, thin_model, thin_transform, photos, tmp_path, name
) -> None:
    path = tmp_path / "part.safetensors"
    remember(photos[:2], CHANGES[name]).save(path)
    grown = References.load(path, thin_model, thin_transform)
    grown.add(photos[2])
    whole = remember(photos[:3], CHANGES[name])
    assert close(grown.look(photos[5])[1], whole.look(photos[5])[1], 1e-3)


def test_file_keeps_the_pixels_that_the_encoder_saw(
    remember, thin_model, thin_transform, photos, tmp_path: Path
) -> None:
    saved = remember(photos[:2], replace(OFFICIAL, scales=(1, 2)))
    saved.save(tmp_path / "part.safetensors")
    loaded = References.load(tmp_path / "part.safetensors", thin_model, thin_transform)
    for photo in range(2):
        for scale in (1, 2):
            assert torch.equal(loaded._pixels(photo, scale), saved._pixels(photo, scale))


def fault(path: Path, model: AnomalyGPT, transform: ImageTransform, settings: ReferenceSettings | None = None) -> str:
    with pytest.raises(UserError) as caught:
        References.load(path, model, transform, settings)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def saved(thin_model, thin_transform, photos, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "part.safetensors"
    References.remember(thin_model, photos[:2], OFFICIAL, thin_transform).save(path)
    return path


def test_other_weights_are_refused(saved: Path, thin_transform: ImageTransform) -> None:
    assert "weights is" in fault(saved, thin(seed=1), thin_transform)


def test_other_geometry_is_refused(saved: Path, thin_model: AnomalyGPT, thin_transform: ImageTransform) -> None:
    crop = ImageTransform(thin_transform.size, thin_transform.mean, thin_transform.std, "crop")
    assert "geometry is squash in the file and crop here" in fault(saved, thin_model, crop)


def test_other_settings_are_refused_where_they_are_asked_for(saved: Path, thin_model, thin_transform) -> None:
    words = fault(saved, thin_model, thin_transform, replace(OFFICIAL, scales=(1, 2)))
    assert "scales is (1,) in the file and (1, 2) here" in words
    assert len(References.load(saved, thin_model, thin_transform, OFFICIAL)) == 2


def test_weights_in_half_precision_are_the_same_weights(saved: Path, thin_transform: ImageTransform) -> None:
    half = thin()
    half.encoder.half()
    assert len(References.load(saved, half, thin_transform)) == 2


def test_missing_damaged_and_foreign_files_are_refused(saved: Path, thin_model, thin_transform, tmp_path: Path) -> None:
    assert "no such file" in fault(tmp_path / "nowhere.safetensors", thin_model, thin_transform)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved.read_bytes()[:-100])
    assert "damaged" in fault(cut, thin_model, thin_transform)
    foreign = tmp_path / "foreign.safetensors"
    save_tensors({"x": torch.zeros(1)}, foreign)
    assert "no file of references" in fault(foreign, thin_model, thin_transform)


def test_file_with_a_tensor_missing_is_refused(saved: Path, thin_model, thin_transform, tmp_path: Path) -> None:
    from anomalygpt.model.checkpoint import read_metadata

    tensors = read_tensors(saved)
    del tensors["taps.1.2"]
    save_tensors(tensors, tmp_path / "part.safetensors", read_metadata(saved))
    assert "taps.1.2" in fault(tmp_path / "part.safetensors", thin_model, thin_transform)


def test_other_ending_and_unwritable_folder_are_one_line(remember, photos, tmp_path: Path) -> None:
    references = remember(photos[:1])
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        references.save(tmp_path / "part.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        references.save(tmp_path / "file" / "part.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_no_photo_is_refused(remember) -> None:
    with pytest.raises(UserError, match="at least one photo"):
        remember([])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (replace(OFFICIAL, scale_weights=(1.0, 2.0)), "scale_weights .* expected 1 numbers, one a scale"),
        (replace(OFFICIAL, tap_weights=(1.0,)), "tap_weights .* expected 4 numbers, one a tap"),
        (replace(OFFICIAL, tap_weights=(0.0,) * 4), "not all zero"),
    ],
)
def test_weights_that_do_not_fit_are_refused(remember, photos, settings: ReferenceSettings, words: str) -> None:
    with pytest.raises(UserError, match=words):
        remember(photos[:1], settings)
