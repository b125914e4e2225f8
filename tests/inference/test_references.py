"""References: added one by one, compared, held out, saved and loaded."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anomalygpt.config.settings import ReferenceSettings
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.errors import UserError, set_strict
from anomalygpt.inference import references as module
from anomalygpt.inference.augmentation import by_camera
from anomalygpt.inference.references import NEW_PHOTO, References
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import read_metadata, read_tensors, save_tensors
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.memory_bank import MemoryBank
from anomalygpt.model.photo_geometry import PERTURBATIONS, perturbed
from anomalygpt.model.prompt_learner import MAP_SIZE
from tests.inference.conftest import batch_sizes, thin

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


@pytest.fixture(autouse=True)
def no_earlier_warnings() -> None:
    set_strict(False)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Six photos that have nothing in common."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(6)]


@pytest.fixture
def encoded(thin_model: AnomalyGPT) -> Iterator[list[int]]:
    with batch_sizes(thin_model.encoder.modality_preprocessors["vision"]) as sizes:
        yield sizes


@pytest.fixture
def build(thin_model: AnomalyGPT, thin_transform: ImageTransform):
    def make(photos: Sequence[Image.Image], settings: ReferenceSettings = OFFICIAL) -> References:
        return References(thin_model, settings, thin_transform, photos)

    return make


def inspect(references: References, photo: Image.Image, class_name: str = "object") -> tuple[ImageFeatures, Tensor]:
    return references.anomaly_maps(references.encode([photo]), class_name)


def close(a: Tensor, b: Tensor, within: float = 1e-5) -> bool:
    return float((a - b).abs().max()) < within


@pytest.mark.parametrize("shots", [1, 4])
def test_official_map_equals_the_papers_exactly(build, thin_model, thin_transform, photos, shots: int) -> None:
    features, found = inspect(build(photos[:shots]), photos[5])
    encoded = [thin_model.encode(thin_transform(photo)[None]) for photo in photos[:shots]]
    together = ImageFeatures(
        tuple(torch.cat(layer) for layer in zip(*(one.taps for one in encoded), strict=True)),
        torch.cat([one.embedding for one in encoded]),
    )
    assert torch.equal(found, MemoryBank(together).anomaly_map(features, MAP_SIZE))


def test_each_photo_is_encoded_once(build, photos, encoded) -> None:
    references = build(photos[:3], custom(augmentation="rotations", text_weight=0.5))
    references.held_out_maps()
    inspect(references, photos[5])
    inspect(references, photos[4])
    assert sorted(encoded) == [1, 1, 4, 4, 4]


def test_view_of_a_reference_is_no_anomaly(build, photos) -> None:
    square = photos[0].resize((112, 112))
    turned = square.transpose(Image.Transpose.ROTATE_90)
    assert float(inspect(build([square]), turned)[1].max()) > 1e-3
    assert float(inspect(build([square], custom(augmentation="rotations")), turned)[1].max()) < 1e-4


@pytest.mark.parametrize("camera", ["noisy", "compressed"])
def test_another_cameras_noise_and_compression_are_no_anomaly(build, photos, camera) -> None:
    square = photos[0].resize((112, 112))
    changed = Image.fromarray(by_camera(np.asarray(square), camera))
    assert float(inspect(build([square]), changed)[1].max()) > 1e-3
    assert float(inspect(build([square], custom(camera_copies=True)), changed)[1].max()) < 1e-4


def test_camera_copies_of_so_many_views_are_remembered_and_left_out_with_their_photo(build, photos) -> None:
    for settings, copied in (({}, 6), ({"augmentation": "rotations"}, 2)):
        banks = [build(photos, custom(camera_copies=copies, **settings)).banks[1] for copies in (False, True)]
        views = 4 if settings else 1
        assert len(banks[1]) - len(banks[0]) == 2 * copied * views * len(build(photos[:1]).banks[1])
        assert (banks[1][banks[1].photos != 0].photos > 0).all()


def test_larger_scale_is_a_finer_grid_and_a_reference_is_no_anomaly_at_any(build, photos) -> None:
    references = build(photos[:2], custom(scales=(1, 2, 3)))
    assert {scale: len(bank) for scale, bank in references.banks.items()} == {1: 2 * 64, 2: 2 * 256, 3: 2 * 576}
    assert float(inspect(references, photos[1])[1].max()) < 1e-4


def test_large_bank_is_replaced_by_a_coreset(build, photos, monkeypatch: pytest.MonkeyPatch) -> None:
    full = build(photos[:4])
    assert len(full.banks[1]) == 256
    monkeypatch.setattr(module, "CORESET_SIZE", 64)
    monkeypatch.setattr(module, "CORESET_ABOVE", 256)
    assert len(build(photos[:4]).banks[1]) == 256
    monkeypatch.setattr(module, "CORESET_ABOVE", 255)
    small = build(photos[:4])
    assert len(small.banks[1]) == 64
    before, after = (inspect(references, photos[5])[1] for references in (full, small))
    assert bool((after >= before - 1e-6).all())
    assert not close(after, before)
    assert bool(small.held_out_maps().isfinite().all())


def test_text_map_that_scores_the_references_high_is_left_out(build, thin_model, photos) -> None:
    features, plain = inspect(build(photos[:2]), photos[5], "bottle")
    on_references = [float(thin_model.anomaly_map(inspect(build([p]), p)[0], ["bottle"]).max()) for p in photos[:2]]
    mean_score = sum(on_references) / 2
    for limit, weight in ((mean_score - 1e-3, 0.0), (mean_score + 1e-3, 0.25), (1.0, 0.25)):
        references = build(photos[:2], custom(text_weight=0.25, text_trusted_below=limit))
        assert references.text_weight("bottle") == weight
        text = thin_model.anomaly_map(features, ["bottle"])
        assert close(inspect(references, photos[5], "bottle")[1], (1 - weight) * plain + weight * text)


def test_trust_in_the_text_map_depends_on_all_references_and_on_the_class(build, thin_model, photos) -> None:
    def mean_score(some, name: str) -> float:
        maps = [thin_model.anomaly_map(inspect(build([photo]), photo)[0], [name]) for photo in some]
        return sum(float(one.max()) for one in maps) / len(maps)

    one, both = mean_score(photos[:1], "bottle"), mean_score(photos[:2], "bottle")
    other = mean_score(photos[:2], "screw")
    between = custom(text_weight=0.25, text_trusted_below=(one + both) / 2)
    assert {build(photos[:count], between).text_weight("bottle") for count in (1, 2)} == {0.0, 0.25}
    by_class = build(photos[:2], custom(text_weight=0.25, text_trusted_below=(both + other) / 2))
    assert {by_class.text_weight("bottle"), by_class.text_weight("screw")} == {0.0, 0.25}


def test_held_out_maps_are_blended_as_maps_of_queries_are(build, photos) -> None:
    references = build(photos[:3], custom(text_weight=0.25))
    assert not close(references.held_out_maps("bottle"), references.held_out_maps("screw"), 1e-9)
    assert references.held_out_maps("bottle") is references.held_out_maps("bottle")


def test_each_reference_is_compared_with_the_others(build, photos) -> None:
    held_out = build(photos[:3]).held_out_maps()
    assert held_out.shape == (3, 1, MAP_SIZE, MAP_SIZE)
    for number in range(3):
        others = [photo for other, photo in enumerate(photos[:3]) if other != number]
        assert close(held_out[[number]], inspect(build(others), photos[number])[1])


def test_single_reference_is_perturbed_and_compared_with_itself(build, photos) -> None:
    references = build(photos[:1])
    held_out = references.held_out_maps()
    assert held_out.shape == (len(PERTURBATIONS), 1, MAP_SIZE, MAP_SIZE)
    moved = references.model.encode(perturbed(references.transform(photos[0])))
    assert close(held_out, NEW_PHOTO * references.banks[1].anomaly_map(moved, MAP_SIZE))
    assert float(held_out.amax()) > 1e-3


def test_many_references_are_not_all_held_out(build, photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_HELD_OUT", 3)
    held_out = build(photos[:5]).held_out_maps()
    assert len(held_out) == 3
    everything = [photo for number, photo in enumerate(photos[:5]) if number != 4]
    assert close(held_out[[2]], inspect(build(everything), photos[4])[1])


@pytest.mark.parametrize("name", CHANGES)
def test_loaded_references_are_equal_and_can_be_added_to(
    build, thin_model, thin_transform, photos, tmp_path, name
) -> None:
    path = tmp_path / "part.safetensors"
    build(photos[:2], CHANGES[name]).save(path)
    for added in ([], photos[2:3]):
        given, loaded = build([*photos[:2], *added], CHANGES[name]), References.load(path, thin_model, thin_transform)
        for photo in added:
            loaded.add(photo)
        assert (len(loaded), loaded.settings, loaded.augmentation) == (len(given), given.settings, given.augmentation)
        assert torch.equal(inspect(loaded, photos[5])[1], inspect(given, photos[5])[1])
        assert torch.equal(loaded.held_out_maps(), given.held_out_maps())


@pytest.mark.parametrize("upright", [False, True], ids=["row", "column"])
def test_long_photos_are_compared_in_tiles(thin_model, thin_transform, photos, tmp_path, upright) -> None:
    transform = ImageTransform(thin_transform.size, thin_transform.mean, thin_transform.std, "squash")
    parts = [photo.resize((224, 224)) for photo in photos]

    def row(*numbers: int, scratch: int | None = None) -> Image.Image:
        long = Image.new("RGB", (672, 224))
        for place, number in enumerate(numbers):
            long.paste(parts[number], (224 * place, 0))
        if scratch is not None:
            long.paste((0, 0, 0), (224 * scratch + 90, 90, 224 * scratch + 134, 134))
        return long.transpose(Image.Transpose.ROTATE_270) if upright else long

    references = References(thin_model, OFFICIAL, transform, [row(0, 1, 2), row(3, 4, 5)])
    assert references.tiles == ((3, 1) if upright else (1, 3))
    assert references.held_out_maps().shape == (2, 1, 224, 224)
    assert float(inspect(references, row(2, 3, 1))[1].max()) < 1e-5  # each tile is in the memory bank
    map = inspect(references, row(2, 3, 1, scratch=2))[1][0, 0]
    thirds = [float(part.max()) for part in (map if upright else map.T).tensor_split(3)]
    assert thirds[2] > 100 * max(thirds[:2])
    references.save(tmp_path / "row.safetensors")
    loaded = References.load(tmp_path / "row.safetensors", thin_model, transform)
    assert loaded.sources[0] == "row.safetensors, number 1", "without its folder"
    assert loaded.tiles == references.tiles
    assert torch.equal(inspect(loaded, row(2, 3, 1, scratch=2))[1][0, 0], map)
    alone = References(thin_model, OFFICIAL, transform, [row(0, 1, 2)])
    assert len(alone.held_out_maps()) == len(PERTURBATIONS)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p,
        lambda p: p.point(lambda v: min(255, 1.02 * v)),
    ],
    ids=["copy", "light"],
)
def test_copies_of_a_reference_are_left_out_and_named(build, photos, change, capsys) -> None:
    references = build([photos[0], photos[1], change(photos[0])])
    assert len(references) == 2
    assert "reference 3: nearly the same photo as reference 1" in capsys.readouterr().err
    assert torch.equal(references.held_out_maps(), build(photos[:2]).held_out_maps())
    inspect(references, photos[1])
    assert "the photo: also a reference (reference 2)" in capsys.readouterr().err


def test_reference_in_another_exposure_is_named(build, photos, capsys) -> None:
    grey = photos[1].point(lambda v: v // 3 + 60)  # far from black and white
    inspect(build([photos[0], grey]), grey.point(lambda v: v + 4))
    assert "the photo: also a reference (reference 2)" in capsys.readouterr().err


def test_flat_reference_is_reported(build, photos, capsys) -> None:
    build([Image.new("RGB", (224, 224), (90, 90, 90)), photos[0]])
    assert "reference 1: a flat photo" in capsys.readouterr().err


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


def test_other_weights_and_geometries_are_refused_but_not_half_precision(
    saved: Path, thin_model: AnomalyGPT, thin_transform: ImageTransform
) -> None:
    assert "weights is" in fault(saved, thin(seed=1), thin_transform)
    crop = ImageTransform(thin_transform.size, thin_transform.mean, thin_transform.std, "crop")
    assert "geometry is squash in the file and crop here" in fault(saved, thin_model, crop)
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
    [({"identity": "{"}, "Expecting property"), ({"settings": '{"colour": 1}'}, "colour")],
)
def test_file_whose_metadata_do_not_fit_is_refused(
    saved: Path, thin_model, thin_transform, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    path = tmp_path / "part.safetensors"
    save_tensors(read_tensors(saved), path, read_metadata(saved) | changes)
    assert words in fault(path, thin_model, thin_transform)


def test_other_ending_and_unwritable_folder_are_one_line(build, photos, tmp_path: Path) -> None:
    references = build(photos[:1])
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        references.save(tmp_path / "part.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can.t be written"):
        references.save(tmp_path / "file" / "part.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (custom(scale_weights=(1.0, 2.0)), "scale_weights .* expected 1 numbers, one per scale"),
        (custom(tap_weights=(1.0,)), "tap_weights .* expected 4 numbers, one per tap"),
        (custom(tap_weights=(0.0,) * 4), "not all zero"),
    ],
)
def test_weights_that_do_not_fit_are_refused(build, photos, settings: ReferenceSettings, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(photos[:1], settings)
