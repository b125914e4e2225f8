"""Photo file to anomaly map, beside anomalib's inferencers: ``python benchmarks/speed_peers.py --out speed_peers.md``.

All sides take turns in one process, with the same photos, side and number of threads. It needs the environment of
``requirements-peers.txt``. ResNet-18's weights are random: its speed does not depend on them.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "benchmarks")]
os.environ["TRUST_REMOTE_CODE"] = "1"  # anomalib's TorchInferencer reads the file that is written here

SIDE, SHOTS, CALLS = 224, 4, 3  # of each turn's calls, the first does not count: it pays for the other sides' caches
OURS = {"torch, fp32": "torch", "OpenVINO, fp32": "openvino", "OpenVINO, bf16": "openvino_bf16"}
GFLOP = 11.4  # of DINOv2 ViT-S/14 for a photo of 224 px
SHAPE = (1024, 1536, 1536)  # of the matrices whose product tells the machine's rate

Side = Callable[[Path], Any]


def ours(photos: Sequence[Path], graph: Path | None) -> dict[str, tuple[Side, Any]]:
    """The product: preset ``fast``, ``SHOTS`` references, one predictor for each backend."""
    from anomalygpt.config.load import load_config
    from anomalygpt.datasets.photos import load_image
    from anomalygpt.inference.predictor import Predictor

    sides = {}
    eight = {"OpenVINO, 8 bits": f"openvino encoder.graph={graph}"} if graph else {}
    for name, backend in (OURS | eight).items():
        settings = ["inference.references.augmentation=none", *f"encoder.backend={backend}".split()]
        predictor = Predictor.from_config(load_config("compact", settings), "cpu", with_llm=False)
        predictor.set_references([load_image(path) for path in photos[:SHOTS]])
        sides[f"this product, {name}"] = (lambda path, own=predictor: own.inspect(load_image(path)), predictor)
    return sides


def theirs(photos: Sequence[Path], folder: Path, dino: Path) -> dict[str, Side]:
    """anomalib's models on the same references, by its two inferencers."""
    import timm
    from anomalib.deploy import OpenVINOInferencer, TorchInferencer
    from anomalib.models import AnomalyDINO, Patchcore
    from peers import DINO, DINO_TAPS, RESNET, RESNET_TAPS, dino_weights
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    original = timm.create_model

    def create(name: str, **options: Any) -> Any:
        model = original(name, **options | {"pretrained": False})
        if name == DINO:
            model.load_state_dict(dino_weights(dino), strict=False)
        return model

    timm.create_model = create
    makers = {
        "PatchCore, ResNet-18": lambda processor: Patchcore(RESNET, RESNET_TAPS[1:], False, pre_processor=processor),
        "PatchCore, DINOv2-S": lambda processor: Patchcore(DINO, DINO_TAPS[1:3], False, pre_processor=processor),
        "AnomalyDINO, DINOv2-S": lambda processor: AnomalyDINO(encoder_name=DINO, pre_processor=processor),
    }
    sides: dict[str, Side] = {}
    for name, make in makers.items():
        family: Any = AnomalyDINO if name.startswith("AnomalyDINO") else Patchcore
        # AnomalyDINO's own pre-processing would bring photos to 252 px.
        processor = family.configure_pre_processor(image_size=(SIDE, SIDE))
        model: Any = make(processor)
        model.model.train()
        for path in photos[:SHOTS]:
            image = pil_to_tensor(Image.open(path).convert("RGB"))[None].float() / 255
            model.model(processor.transform(image))
        if family is Patchcore:
            model.model.subsample_embedding(0.1)
        else:
            model.model.fit()
        model.eval()
        where = folder / name.replace(", ", "_")
        sides[f"anomalib: {name}, torch"] = TorchInferencer(model.to_torch(where), "cpu").predict
        # With free sizes, ResNet-18's graph takes the export's example's only.
        fixed = {"dynamic_axes": None, "dynamic_shapes": None}
        graph = model.to_openvino(where, input_size=(SIDE, SIDE), onnx_kwargs=fixed)
        for precision, config in (("fp32", {"INFERENCE_PRECISION_HINT": "f32"}), ("bf16", {})):
            config = config | {"INFERENCE_NUM_THREADS": threads()}
            predict = OpenVINOInferencer(graph, "CPU", config).predict
            sides[f"anomalib: {name}, OpenVINO, {precision}"] = lambda path, run=predict: run(small(path))
    timm.create_model = original
    return sides


def small(path: Path) -> Any:
    """A photo at the side of a graph of fixed size, resized by Pillow as this product does."""
    from PIL import Image

    return Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def threads() -> int:
    """Of the matrix products."""
    import torch

    return torch.get_num_threads()


def stages(predictor: Any, path: Path) -> dict[str, Callable[[], Any]]:
    """The parts of ``inspect``, each on its own."""
    from anomalygpt.datasets.photos import load_image
    from anomalygpt.inference.regions import regions_of_verdict

    photo = load_image(path)
    images = predictor.transform(photo)[None]
    features, model = predictor.model.encode(images), predictor.model
    result, references = predictor.inspect(photo), predictor.references
    return {
        "decode": lambda: load_image(path),
        "resize, normalise": lambda: predictor.transform(photo),
        "encoder": lambda: model.encode(images),
        "memory search": lambda: references.banks[1].similarity(features),
        "map to the photo's pixels": lambda: predictor.transform.to_photo(result.model_map[0, 0], photo.size),
        "regions": lambda: regions_of_verdict(result.map, result.threshold, True),
    }


def interleaved(sides: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Durations in seconds of sides that take turns until the time is up."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < len(sides):
        for name, side in sides.items():
            for call in range(CALLS):
                start = time.perf_counter()
                side()
                if call:
                    times[name].append(time.perf_counter() - start)
    return times


def rates() -> tuple[float, float]:
    """The machine's GFLOP/s in fp32 matrix products and its GB/s in copies, each the best of several."""
    import torch

    rows, inner, columns = SHAPE
    one, other, block = torch.rand(rows, inner), torch.rand(inner, columns), torch.rand(2**26)
    target = torch.empty_like(block)
    times = interleaved({"product": lambda: one @ other, "copy": lambda: target.copy_(block)}, 3)
    operations = 2 * rows * inner * columns
    return operations / min(times["product"]) / 1e9, 2 * 4 * 2**26 / min(times["copy"]) / 1e9


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "mvtec_layout", help="a folder of photos")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=100, help="of the turns of all sides")
    parser.add_argument("--graph", type=Path, help="an 8-bit encoder.xml that export.py --to openvino --int8 wrote")
    parser.add_argument("--dino", type=Path, default=ROOT / "pretrained_ckpt" / "dinov2_vits14" / "model.safetensors")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page, as Markdown")
    arguments = parser.parse_args(argv)
    import torch

    torch.set_num_threads(arguments.threads)
    photos = sorted(arguments.data.rglob("train/good/*"))[: SHOTS + 1] or sorted(arguments.data.glob("*"))
    with torch.inference_mode(False), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        own = ours(photos, arguments.graph)
        sides = {name: side for name, (side, _) in own.items()} | theirs(photos, Path(folder), arguments.dino)
        gflops, bandwidth = rates()
        photo = photos[SHOTS]
        times = interleaved({name: lambda side=side: side(photo) for name, side in sides.items()}, arguments.seconds)
        parts = {
            name: interleaved(stages(predictor, photo), arguments.seconds / 10) for name, (_, predictor) in own.items()
        }
    page = as_markdown(times, parts, gflops, bandwidth, arguments.threads)
    print(page, end="")
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")


def as_markdown(
    times: dict[str, list[float]], parts: dict[str, dict[str, list[float]]], gflops: float, bandwidth: float, count: int
) -> str:
    """The page: the sides, then what the product's own milliseconds are for."""
    fast = statistics.median(times["anomalib: PatchCore, ResNet-18, torch"])
    lines = [
        "# Photo file to anomaly map, beside anomalib",
        "",
        f"* command: `python benchmarks/speed_peers.py`; {count} threads, {SIDE} px, {SHOTS} references",
        f"* this machine, in the same run: fp32 products {gflops:.0f} GFLOP/s, copies {bandwidth:.1f} GB/s; "
        f"the encoder's {GFLOP} GFLOP take at least {1000 * GFLOP / gflops:.0f} ms at that rate",
        "",
        "| side | runs | median ms | least ms | times PatchCore-ResNet-18 in torch |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, found in times.items():
        median = statistics.median(found)
        lines.append(f"| {name} | {len(found)} | {1e3 * median:.1f} | {1e3 * min(found):.1f} | {median / fast:.2f} |")
    names = list(parts)
    lines += ["", "| stage, median ms | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for stage in parts[names[0]]:
        cells = [f"{1e3 * statistics.median(parts[name][stage]):.1f}" for name in names]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
