"""The image encoder as an ONNX graph of fixed size, run by ONNX Runtime or OpenVINO in place of torch."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomalygpt.errors import UserError, reading
from anomalygpt.files import replacing
from anomalygpt.model.checkpoint import fingerprint
from anomalygpt.model.encoder import ImageFeatures, resized_positions


class EncoderGraph(nn.Module):
    """Image (1, 3, S, S) -> taps (1, L, N, D_v) and embedding (1, D), with the positions of one side as constants."""

    def __init__(self, encoder: Any, side: int) -> None:
        super().__init__()
        self.encoder = deepcopy(encoder).to("cpu", torch.float32)
        vit: Any = getattr(self.encoder, "vit", None)
        if hasattr(vit, "set_input_size"):  # timm
            vit.set_input_size((side, side))
        elif vit is not None:
            positions = resized_positions(vit.pos_embed, (side * encoder.spec.grid // encoder.spec.size,) * 2)
            vit.pos_embed = nn.Parameter(positions)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder.encode_image(images)
        return torch.stack(features.taps, dim=1), features.embedding


def write_onnx(module: nn.Module, path: Path, inputs: Mapping[str, Tensor], outputs: list[str], free: int = 0) -> None:
    """Writes a module as one ONNX file, whose inputs but the first may have any size in dimension ``free``.

    ``inputs`` are examples by name. Raises :class:`UserError`: a library is missing, or the file can't be written.
    """
    required("onnx"), required("onnxscript")
    names = list(inputs)
    shapes: Any = ({}, *({free: torch.export.Dim(f"size_{name}")} for name in names[1:]))
    options: Any = {"input_names": names, "output_names": outputs, "dynamic_shapes": shapes, "verbose": False}
    with torch.no_grad():
        program: Any = torch.onnx.export(module.eval(), tuple(inputs.values()), dynamo=True, **options)
    with replacing(path) as temporary:
        program.save(temporary, external_data=False)


def write_encoder(encoder: Any, side: int, path: Path) -> None:
    """Writes an encoder for images of one side, see :func:`write_onnx`."""
    write_onnx(EncoderGraph(encoder, side), path, {"images": torch.zeros(1, 3, side, side)}, ["taps", "embedding"])


def required(library: str) -> Any:
    """A library of the optional extra ``deploy``; a ``UserError`` where it is not installed."""
    try:
        return import_module(library)
    except ImportError as error:
        raise UserError(f"needs {library}: pip install {library}") from error


class ExportedEncoder(nn.Module):
    """Takes the place of an encoder. Graphs are in ``folder``, written when needed, or ``graph`` for the own side."""

    def __init__(self, encoder: Any, backend: str, folder: Path, graph: Path | None = None) -> None:
        super().__init__()
        self.torch, self.spec, self.backend, self.folder = encoder, encoder.spec, backend, folder
        self._graphs: dict[int, Callable[..., Any]] = {self.spec.size: _run_by(backend, graph)} if graph else {}
        required("onnxruntime" if backend == "onnx" else "openvino")

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """As the encoder's own."""
        side = images.shape[-1]
        if side not in self._graphs:
            blocks = "-".join(map(str, self.spec.taps))
            path = self.folder / f"{fingerprint(self.torch)}_{blocks}_{side}.onnx"
            if not path.is_file():
                write_encoder(self.torch, side, path)
            self._graphs[side] = _run_by(self.backend, path)
        encoded = [self._graphs[side](image[None]) for image in images.float().cpu().contiguous().numpy()]
        taps, embedding = (torch.from_numpy(np.concatenate(each)) for each in zip(*encoded, strict=True))
        return ImageFeatures(taps.to(images.device).unbind(dim=1), embedding.to(images.device))


def _run_by(backend: str, path: Path) -> Callable[..., Any]:
    """A function: one image -> its taps and embedding, all of numpy."""
    runtime = required("onnxruntime" if backend == "onnx" else "openvino")
    with reading(path, "an exported encoder"):
        if backend == "onnx":
            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            return lambda images: session.run(None, {"images": images})
        precision = {} if backend == "openvino_bf16" else {"INFERENCE_PRECISION_HINT": "f32"}
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = runtime.Core().compile_model(path, "CPU", threads | precision)
        return lambda images: [*compiled([images]).values()]
