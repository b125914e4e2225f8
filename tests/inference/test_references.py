"""Good photos, remembered: added one by one, compared, held out, saved and loaded."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anomalygpt.config.settings import ReferenceSettings
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.errors import UserError
from anomalygpt.inference.references import CORESET_ABOVE, References
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import read_metadata, read_tensors, save_tensors
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.memory_bank import MemoryBank
from anomalygpt.model.perturbations import PERTURBATIONS
from anomalygpt.model.prompt_learner import MAP_SIZE
from tests.inference.conftest import thin

OFFICIAL = ReferenceSettings()


def custom(**settings) -> ReferenceSettings:
    return ReferenceSettings(preset="custom", **settings)


EVERYTHING = custom(
    augmentation="auto",
    scales=(1, 2),
    scale_weights=(1.0, 2.0),
    tap_weights=(0.0, 1.0, 1.0, 2.0),
    interpolation="centred",
    smoothing=0.5,
    top_share=0.01,
    text_weight=0.2,
)
CHANGES = {
    "official": OFFICIAL,
    "everything": EVERYTHING,
    "rotations": custom(augmentation="rotations"),
    "two scales": custom(scales=(1, 2)),
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
        return References(thin_model, settings, thin_transform, photos)

    return make


def inspect(references: References, photo: Image.Image, class_name: str = "object") -> tuple[ImageFeatures, Tensor]:
    return references.anomaly_maps([photo], [class_name])


def close(a: Tensor, b: Tensor, within: float = 1e-5) -> bool:
    return float((a - b).abs().max()) < within


# -- the paper's way --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 4])
def test_official_map_is_the_papers_to_the_bit(remember, thin_model, thin_transform, photos, shots: int) -> None:
    features, found = inspect(remember(photos[:shots]), photos[5])
    encoded = [thin_model.encode(thin_transform(photo)[None]) for photo in photos[:shots]]
    together = ImageFeatures(
        tuple(torch.cat(layer) for layer in zip(*(one.taps for one in encoded), strict=True)),
        torch.cat([one.embedding for one in encoded]),
    )
    assert torch.equal(found, MemoryBank(together).anomaly_map(features, MAP_SIZE))
    assert remember(photos[:shots]).score(found) == float(found.max())


# -- adding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
def test_photo_added_is_as_if_it_had_been_remembered_with_the_others(remember, photos, name: str) -> None:
    settings = CHANGES[name]
    grown = remember(photos[:1], settings)
    inspect(grown, photos[5])  # so that there is something to forget
    for photo in photos[1:3]:
        grown.add(photo)
        grown.held_out_maps()
    whole = remember(photos[:3], settings)
    assert len(grown) == len(whole) == 3
    assert close(inspect(grown, photos[5])[1], inspect(whole, photos[5])[1])
    assert close(grown.held_out_maps(), whole.held_out_maps())


def test_adding_encodes_the_new_photo_only_and_a_query_is_encoded_once(remember, photos, encoded) -> None:
    references = remember(photos[:3], custom(augmentation="rotations", text_weight=0.5))
    inspect(references, photos[5])
    encoded.clear()
    references.add(photos[3])
    inspect(references, photos[5])
    assert sorted(encoded) == [1, 4]


def test_photos_looked_at_together_are_seen_as_one_by_one(remember, photos) -> None:
    references = remember(photos[:2], EVERYTHING)
    features, together = references.anomaly_maps(photos[3:6], ["bottle"] * 3)
    assert len(features) == 3
    for number, photo in enumerate(photos[3:6]):
        assert close(together[[number]], inspect(references, photo, "bottle")[1])


# -- views, scales, the coreset, the text map -------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["rotations", "flips"])
def test_view_of_a_reference_is_no_anomaly(remember, photos, augmentation) -> None:
    square = photos[0].resize((112, 112))
    turned = {
        "rotations": square.transpose(Image.Transpose.ROTATE_90),
        "flips": square.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }[augmentation]
    assert float(inspect(remember([square]), turned)[1].max()) > 1e-3
    assert float(inspect(remember([square], custom(augmentation=augmentation)), turned)[1].max()) < 1e-4


def test_larger_scale_is_a_finer_grid_and_a_reference_is_no_anomaly_at_any(remember, photos) -> None:
    references = remember(photos[:2], custom(scales=(1, 2, 3)))
    assert {scale: len(bank) for scale, bank in references.banks.items()} == {1: 2 * 64, 2: 2 * 256, 3: 2 * 576}
    assert float(inspect(references, photos[1])[1].max()) < 1e-4


def test_large_bank_is_replaced_by_a_coreset(remember, photos, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalygpt.inference import references as module

    full = remember(photos[:4])
    assert len(full.banks[1]) == 256
    monkeypatch.setattr(module, "CORESET_SIZE", 64)
    monkeypatch.setattr(module, "CORESET_ABOVE", 256)
    assert len(remember(photos[:4]).banks[1]) == 256
    monkeypatch.setattr(module, "CORESET_ABOVE", 255)
    small = remember(photos[:4])
    assert len(small.banks[1]) == 64
    before, after = (inspect(references, photos[5])[1] for references in (full, small))
    assert bool((after >= before - 1e-6).all())
    assert not close(after, before)
    assert bool(small.held_out_maps().isfinite().all())


def test_sixteen_references_in_four_views_are_all_kept() -> None:
    at_twice_dinov2s_side = 16 * 4 * 32**2
    assert 4 * at_twice_dinov2s_side <= CORESET_ABOVE


def test_text_map_is_blended_in_by_its_weight(remember, thin_model, photos) -> None:
    features, plain = inspect(remember(photos[:2]), photos[5], "bottle")
    _, half = inspect(remember(photos[:2], custom(text_weight=0.25)), photos[5], "bottle")
    text = thin_model.anomaly_map(features, ["bottle"])
    assert close(half, 0.75 * plain + 0.25 * text)


def test_text_map_that_finds_fault_with_the_references_is_left_out(remember, thin_model, photos) -> None:
    features, plain = inspect(remember(photos[:2]), photos[5], "bottle")
    on_references = [float(thin_model.anomaly_map(inspect(remember([p]), p)[0], ["bottle"]).max()) for p in photos[:2]]
    usual = sum(on_references) / 2
    for limit, weight in ((usual - 1e-3, 0.0), (usual + 1e-3, 0.25)):
        references = remember(photos[:2], custom(text_weight=0.25, text_trusted_below=limit))
        assert references.text_weight("bottle") == weight
        text = thin_model.anomaly_map(features, ["bottle"])
        assert close(inspect(references, photos[5], "bottle")[1], (1 - weight) * plain + weight * text)


def test_trust_in_the_text_map_is_a_matter_of_all_references_and_of_the_class(remember, thin_model, photos) -> None:
    def usual(some, name: str) -> float:
        maps = [thin_model.anomaly_map(inspect(remember([photo]), photo)[0], [name]) for photo in some]
        return sum(float(one.max()) for one in maps) / len(maps)

    one, both, other = usual(photos[:1], "bottle"), usual(photos[:2], "bottle"), usual(photos[:2], "screw")
    between = custom(text_weight=0.25, text_trusted_below=(one + both) / 2)
    references = remember(photos[:1], between)
    before = references.text_weight("bottle")
    references.add(photos[1])
    assert {before, references.text_weight("bottle")} == {0.0, 0.25}
    by_class = remember(photos[:2], custom(text_weight=0.25, text_trusted_below=(both + other) / 2))
    assert {by_class.text_weight("bottle"), by_class.text_weight("screw")} == {0.0, 0.25}


def test_held_out_maps_are_blended_as_maps_of_queries_are(remember, photos) -> None:
    references = remember(photos[:3], custom(text_weight=0.25))
    assert not close(references.held_out_maps("bottle"), references.held_out_maps("screw"), 1e-9)
    assert references.held_out_maps("bottle") is references.held_out_maps("bottle")


# -- held out ---------------------------------------------------------------------------------------------------------


def test_each_reference_is_compared_with_the_others(remember, photos) -> None:
    held_out = remember(photos[:3]).held_out_maps()
    assert held_out.shape == (3, 1, MAP_SIZE, MAP_SIZE)
    for number in range(3):
        others = [photo for other, photo in enumerate(photos[:3]) if other != number]
        assert close(held_out[[number]], inspect(remember(others), photos[number])[1])


def test_single_reference_is_compared_with_itself_with_and_without_neighbourhoods(remember, photos) -> None:
    held_out = remember(photos[:1]).held_out_maps()
    assert held_out.shape == (2 * len(PERTURBATIONS), 1, MAP_SIZE, MAP_SIZE)
    whole, excluding = held_out.split(len(PERTURBATIONS))
    assert bool((excluding >= whole - 1e-6).all())
    assert float(whole.amax()) > 1e-3


def test_many_references_are_not_all_held_out(remember, photos, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalygpt.inference import references as module

    monkeypatch.setattr(module, "MOST_HELD_OUT", 3)
    held_out = remember(photos[:5]).held_out_maps()
    assert len(held_out) == 3
    everything = [photo for number, photo in enumerate(photos[:5]) if number != 4]
    assert close(held_out[[2]], inspect(remember(everything), photos[4])[1])


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
def test_loaded_references_are_equal_and_can_be_added_to(
    remember, thin_model, thin_transform, photos, tmp_path, name
) -> None:
    saved = remember(photos[:2], CHANGES[name])
    path = tmp_path / "part.safetensors"
    saved.save(path)
    loaded = References.load(path, thin_model, thin_transform)
    for photo in (None, photos[2]):
        if photo is not None:
            saved.add(photo)
            loaded.add(photo)
        assert (len(loaded), loaded.settings, loaded.augmentation) == (len(saved), saved.settings, saved.augmentation)
        assert torch.equal(inspect(loaded, photos[5])[1], inspect(saved, photos[5])[1])
        assert torch.equal(loaded.held_out_maps(), saved.held_out_maps())


def fault(path: Path, model: AnomalyGPT, transform: ImageTransform) -> str:
    with pytest.raises(UserError) as caught:
        References.load(path, model, transform)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def saved(thin_model, thin_transform, photos, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "part.safetensors"
    References(thin_model, OFFICIAL, thin_transform, photos[:2]).save(path)
    return path


def test_other_weights_are_refused(saved: Path, thin_transform: ImageTransform) -> None:
    assert "weights is" in fault(saved, thin(seed=1), thin_transform)


def test_other_geometry_is_refused(saved: Path, thin_model: AnomalyGPT, thin_transform: ImageTransform) -> None:
    crop = ImageTransform(thin_transform.size, thin_transform.mean, thin_transform.std, "crop")
    assert "geometry is squash in the file and crop here" in fault(saved, thin_model, crop)


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "anomalygpt references 1"}, "saved by an earlier version: teach the part again from its photos"),
        ({"identity": "{"}, "damaged (JSONDecodeError: "),
        ({"settings": '{"colour": 1}'}, "damaged (ValidationError: "),
    ],
)
def test_file_whose_metadata_do_not_fit_is_refused(
    saved: Path, thin_model, thin_transform, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    path = tmp_path / "part.safetensors"
    save_tensors(read_tensors(saved), path, read_metadata(saved) | changes)
    assert words in fault(path, thin_model, thin_transform)


def test_other_ending_and_unwritable_folder_are_one_line(remember, photos, tmp_path: Path) -> None:
    references = remember(photos[:1])
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        references.save(tmp_path / "part.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        references.save(tmp_path / "file" / "part.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (custom(scale_weights=(1.0, 2.0)), "scale_weights .* expected 1 numbers, one a scale"),
        (custom(tap_weights=(1.0,)), "tap_weights .* expected 4 numbers, one a tap"),
        (custom(tap_weights=(0.0,) * 4), "not all zero"),
    ],
)
def test_weights_that_do_not_fit_are_refused(remember, photos, settings: ReferenceSettings, words: str) -> None:
    with pytest.raises(UserError, match=words):
        remember(photos[:1], settings)
