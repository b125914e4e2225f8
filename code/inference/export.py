"""The model for machines without torch: its graphs, and the numbers that verdicts need beside them (docs/deploy.md)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from scipy.special import stdtrit
from torch import Tensor, nn

from anomalygpt.errors import UserError
from anomalygpt.files import replacing, write_files
from anomalygpt.inference.anomaly_map import BACKGROUND, LOWEST_BACKGROUND, distance_map
from anomalygpt.inference.calibration import LOWEST, NOT_SHOWN, PARTS_STRENGTH, SHARPNESS
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.references import MOST_HELD_OUT, References
from anomalygpt.model.anomalygpt import UNNAMED_CLASS, AnomalyGPT
from anomalygpt.model.exported import required, write_encoder, write_onnx
from anomalygpt.model.image_decoder import anomaly_map
from anomalygpt.model.memory_bank import weighted_mean
from anomalygpt.model.prompt_learner import MAP_SIZE

Format = Literal["onnx", "openvino"]
ABOUT, MEMORY = "model.json", "memory.npz"


class DecoderGraph(nn.Module):
    """Taps (1, L, N, D_v) -> text map (1, 1, 224, 224), with the text features of one class as constants."""

    def __init__(self, model: AnomalyGPT, class_name: str) -> None:
        super().__init__()
        self.image_decoder = model.image_decoder
        self.register_buffer("states", model.states([class_name]).detach().clone())

    def forward(self, taps: Tensor) -> Tensor:
        return anomaly_map(self.image_decoder(taps.unbind(dim=1), self.states, MAP_SIZE))


class ComparisonGraph(nn.Module):
    """Taps (1, L, N, D_v) and memory (L, M, D_v), unit vectors -> map (1, 1, 224, 224), before the text map's share."""

    def __init__(self, references: References) -> None:
        super().__init__()
        self.settings, self.grid = references.settings, references.model.encoder.spec.grid

    def forward(self, taps: Tensor, memory: Tensor) -> Tensor:
        cosines = F.normalize(taps, dim=-1) @ memory.transpose(1, 2)
        similarity = weighted_mean(cosines.amax(dim=-1).transpose(0, 1), self.settings.tap_weights)
        coarse = rearrange(similarity, "b (h w) -> b h w", h=self.grid)
        return distance_map([coarse], self.settings, MAP_SIZE, self.grid)


def export(predictor: Predictor, form: Format, folder: Path, class_name: str = UNNAMED_CLASS) -> None:
    """Writes encoder, decoder and comparison, ``model.json``, and ``memory.npz`` where there are references.

    The predictor is on the CPU; its references become the memory. ``class_name`` is for encoders with a text tower.
    Raises :class:`UserError`: more than one picture of a photo is compared, a library is missing, or a full disk.
    """
    model, settings, spec = predictor.model, predictor.settings, predictor.model.encoder.spec
    references = predictor.references or References(model, settings.references, predictor.transform, ())
    if tuple(references.settings.scales) != (1,) or references.tiles != (1, 1) or settings.geometry == "official":
        advice = "teach parts at an angle with inference.references.augmentation=rotations"
        raise UserError(f"export: expected photos compared whole at one size: preset fast, nothing in tiles; {advice}")
    if form == "openvino":
        required("openvino")
    taps = torch.randn(1, len(spec.taps), spec.grid**2, spec.tap_width)
    files = {name: folder / f"{name}.onnx" for name in ("encoder", "decoder", "comparison")}
    write_encoder(getattr(model.encoder, "torch", model.encoder), spec.size, files["encoder"])
    write_onnx(DecoderGraph(model, class_name), files["decoder"], {"taps": taps}, ["map"])
    memory = torch.randn(len(spec.taps), 600, spec.tap_width)
    write_onnx(ComparisonGraph(references), files["comparison"], {"taps": taps, "memory": memory}, ["map"], free=1)
    write_files(folder, {ABOUT: _about(predictor, references)})
    if predictor.references is not None:
        with replacing(folder / MEMORY) as path:
            np.savez(path, **_memory(predictor, predictor.references, class_name))
    if form == "openvino":
        for file in files.values():
            _as_openvino(required("openvino").convert_model(file), file)


def quantize(folder: Path, form: Format, predictor: Predictor, photos: Sequence[Image.Image]) -> None:
    """Replaces an exported encoder by one of 8-bit weights and activations, whose ranges these photos show (NNCF)."""
    nncf = required("nncf")
    images = [predictor.transform(photo)[None].numpy() for photo in photos]
    file = folder / "encoder.onnx"
    options = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": len(images)}
    if form == "openvino":
        graph = required("openvino").Core().read_model(file.with_suffix(".xml"))
        _as_openvino(nncf.quantize(graph, nncf.Dataset(images), **options), file)
    else:
        data = nncf.Dataset([{"images": image} for image in images])
        required("onnx").save(nncf.quantize(required("onnx").load(file), data, **options), file)


def _as_openvino(graph: Any, file: Path) -> None:
    with TemporaryDirectory(dir=file.parent) as folder:  # the graph may be mapped from the files that these replace
        required("openvino").save_model(graph, Path(folder) / f"{file.stem}.xml", compress_to_fp16=False)
        for written in Path(folder).iterdir():
            written.replace(file.with_name(written.name))
    file.unlink(missing_ok=True)


def _about(predictor: Predictor, references: References) -> dict[str, Any]:
    """What a script needs to read photos, teach a part and judge."""
    spec, settings, own = predictor.model.encoder.spec, predictor.settings, references.settings
    about: dict[str, Any] = {name: getattr(spec, name) for name in ("size", "mean", "std", "grid")}
    about |= {name: getattr(own, name) for name in ("top_share", "contrast", "text_weight", "text_trusted_below")}
    about |= {"background": BACKGROUND, "lowest_background": LOWEST_BACKGROUND, "sharpness": SHARPNESS}
    about |= {"other_part_above": settings.other_part_above, "undecided": settings.undecided}
    about |= {"lowest": LOWEST, "not_shown": NOT_SHOWN}
    parts = settings.calibration.get(own.unchanged_preset or "")
    if parts is not None:
        counts = range(2, MOST_HELD_OUT + 1)
        quantiles = [float(stdtrit(PARTS_STRENGTH + n - 1, 1 - settings.false_alarm_rate)) for n in counts]
        of = {n: [*parts.at(n), quantile] for n, quantile in zip(counts, quantiles, strict=True)}
        about["calibration"] = {"strength": PARTS_STRENGTH, "spread": parts.spread, "of": of}
    return about


def _memory(predictor: Predictor, references: References, class_name: str) -> Mapping[str, Any]:
    """What references teach: patches, class tokens, and the verdict's numbers."""
    calibration = predictor.calibrated(class_name)
    return {
        "memory": torch.stack(references.banks[1].taps).float().numpy(),
        "embeddings": references.embeddings.numpy(),
        "text_weight": references.text_weight(class_name),
        "threshold": calibration.threshold,
        "score_threshold": calibration.score_threshold,
        "slope": calibration.slope,  # type: ignore[union-attr]
    }
