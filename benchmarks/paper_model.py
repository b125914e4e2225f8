"""The paper's model at its own size, on random weights: ``python benchmarks/paper_model.py --what maps|load|llm``.

``maps`` compares zero-shot and four-shot maps with the released algorithm, on the same modules; ``load`` measures time
and host memory of reading ``imagebind_huge.pth``; ``llm`` those of the language model, and its time for a token.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT)]

from benchmarks.training import peak_bytes, write_llama  # noqa: E402 (the benchmark beside this one)

GIB = 2**30
SHOTS = 4
LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
CLASS_NAMES = ("bottle",)


class ReleasedMaps:
    """The released algorithm (docs/specification.md, 3 and 4) on our modules: nothing is kept between photos.

    For every photo the 24 sentences are encoded at their padded length of 77 tokens, and with references these, too; a
    query patch is compared with all reference patches by a broadcast cosine.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def states(self, class_name: str) -> Any:
        """(1, 2, D): the text ensemble."""
        import torch
        import torch.nn.functional as F

        from anomalygpt.model.imagebind.tokenizer import tokenize
        from anomalygpt.model.prompt_ensemble import ABNORMAL_STATES, NORMAL_STATES, sentences

        encoder, means = self.model.encoder, []
        for kind in (NORMAL_STATES, ABNORMAL_STATES):
            ids = tokenize(sentences(class_name, kind)).to(self.model.device)
            stem = encoder.modality_preprocessors["text"]
            tokens, _ = encoder.modality_trunks["text"](stem.token_embedding(ids) + stem.pos_embed)
            ends = tokens[torch.arange(len(ids)), ids.argmax(dim=1)]
            scale = encoder.modality_postprocessors["text"][1].log_logit_scale.exp().clamp(max=100)
            embedded = scale * F.normalize(encoder.modality_heads["text"]["proj"](ends), dim=-1)
            means.append(embedded.float().mean(dim=0))
        return F.normalize(torch.stack(means), dim=-1)[None]

    def map(self, photo: Any, references: Any = None) -> Any:
        """(1, 3, S, S) and (K, 3, S, S) -> (1, 1, S, S)."""
        import torch
        import torch.nn.functional as F

        from anomalygpt.model.image_decoder import anomaly_map, upsample

        states = self.states(CLASS_NAMES[0])
        query = self.model.encode(photo)
        text_map = anomaly_map(self.model.image_decoder(query.taps, states, photo.shape[-1]))
        if references is None:
            return text_map
        normal, layers = self.model.encode(references), []
        for tap, bank in zip(query.taps, normal.taps, strict=True):
            cosines = F.cosine_similarity(tap[0].float()[:, None], bank.flatten(0, 1).float()[None], dim=-1)
            layers.append(cosines.amax(dim=1))
        similarity = torch.stack(layers).mean(dim=0).view(1, 1, query.grid, query.grid)
        return 1 - upsample(similarity, photo.shape[-1])


def random_model(device: str, dtype: Any, size: Any = None) -> Any:
    """ImageBind-Huge with both towers, or of another size, and the image decoder, on random weights."""
    import torch

    from anomalygpt.model.anomalygpt import AnomalyGPT
    from anomalygpt.model.image_decoder import ImageDecoder
    from anomalygpt.model.imagebind.imagebind import ImageBind
    from anomalygpt.model.prompt_ensemble import PromptEnsemble

    with torch.device("meta"):
        encoder = ImageBind(size)
    encoder = encoder.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    for name, value in encoder.named_parameters():
        norm = value.dim() < 2 and name.endswith("weight")
        value.fill_(1.0) if norm or value.dim() == 0 else value.normal_(0, 0.02)
    for value in encoder.buffers():  # the text tower's scale
        value.fill_(math.log(1 / 0.07))
    spec = encoder.spec
    decoder = ImageDecoder(spec.tap_width, spec.embed_width, len(spec.taps)).to(device)
    return AnomalyGPT(encoder, PromptEnsemble(encoder), decoder).eval().requires_grad_(False)


def gemm_rate(device: str, dtype: Any, side: int = 4096) -> float:
    """The measured rate of a square matrix product, in FLOP/s: the best of some."""
    import torch

    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: left @ right, device) for _ in range(4))


def seconds(action: Callable[[], Any], device: str) -> float:
    """How long an action takes, with what it started on the device."""
    import torch

    start = time.perf_counter()
    action()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def vision_flops(size: Any, photos: int) -> float:
    """Multiplications and additions of the vision tower: its matrix products, attention included."""
    tokens, width = 1 + (size.image_size // size.patch) ** 2, size.vision_width
    return photos * size.vision_depth * (24 * tokens * width**2 + 4 * tokens**2 * width)


def maps(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both algorithms by turns, in every round; and batches of photos against the rate of the matrix product."""
    import torch

    from anomalygpt.model.build import DTYPES
    from anomalygpt.model.imagebind.imagebind import ImageBindSize
    from anomalygpt.model.memory_bank import MemoryBank

    device, dtype, size = arguments.device, DTYPES[arguments.dtype], ImageBindSize()
    torch.manual_seed(0)
    model = random_model(device, dtype)
    released = ReleasedMaps(model)
    photos = torch.randn(1 + SHOTS, 3, size.image_size, size.image_size)
    query, references = photos[:1], photos[1:]
    with torch.inference_mode():
        memory = MemoryBank(model.encode(references))
        sides: dict[str, Callable[[], Any]] = {
            "zero-shot": lambda: model.anomaly_map(model.encode(query), CLASS_NAMES),
            "zero-shot, released": lambda: released.map(query),
            "four-shot": lambda: model.anomaly_map(model.encode(query), CLASS_NAMES, memory),
            "four-shot, released": lambda: released.map(query, references),
        }
        drawn = {name: act() for name, act in sides.items()}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, act in sides.items():
                times[name].append(seconds(act, device))
        rate, shares = gemm_rate(device, dtype), {}
        for batch in arguments.batches:
            photos = torch.randn(batch, *query.shape[1:], device=device, dtype=dtype)
            model.encode(photos)
            taken = min(seconds(lambda photos=photos: model.encode(photos), device) for _ in range(3))
            shares[batch] = [taken / batch, vision_flops(size, batch) / taken / rate]
    found: dict[str, Any] = {"gemm_flops": rate, "batch: seconds a photo, share of that rate": shares}
    for name in ("zero-shot", "four-shot"):
        ours, theirs = times[name], times[f"{name}, released"]
        found[name] = {
            "seconds, and released": [statistics.median(ours), statistics.median(theirs)],
            "times faster": statistics.median(old / new for new, old in zip(ours, theirs, strict=True)),
            "largest difference": float((drawn[name] - drawn[f"{name}, released"]).abs().max()),
        }
    return found


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes ``imagebind_huge.pth`` as it is released, in float32, and reads it."""
    import torch

    from anomalygpt.config.schema import EncoderConfig
    from anomalygpt.model.build import DTYPES, build_encoder

    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        path = Path(scratch) / "imagebind_huge.pth"
        shapes = json.loads((ROOT / "tests" / "parity" / "imagebind_huge_keys.json").read_text())
        if not arguments.inside:
            torch.save({name: torch.full(shape, 0.02) for name, shape in shapes.items()}, path)
            return in_own_process(arguments, path)
        before = peak_bytes()
        taken = seconds(lambda: build_encoder(EncoderConfig(weights=str(arguments.inside)), device,
                                              DTYPES[arguments.dtype]), arguments.device)  # fmt: skip
        size = arguments.inside.stat().st_size
        return {"file_gib": size / GIB, "seconds": taken, "host_peak_of_file": (peak_bytes() - before) / size}


def llm(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes LLaMA-7B's shape with some of its 32 layers, in bfloat16, reads it and generates."""
    import torch

    from anomalygpt.config.settings import GenerationSettings, LoraSettings
    from anomalygpt.model.build import DTYPES
    from anomalygpt.model.generation import decode_batch
    from anomalygpt.model.llm import add_lora, load_llm
    from anomalygpt.model.merged_llama import MergedLlama

    device, lora = torch.device(arguments.device), LoraSettings()
    if not arguments.inside:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            size = write_llama(Path(scratch), LLAMA | {"num_hidden_layers": arguments.layers}, device=device)
            return {"layers": arguments.layers, "file_gib": size / GIB} | in_own_process(arguments, Path(scratch))
    before = peak_bytes()
    start = time.perf_counter()
    merged = lora if arguments.precision == "auto" else None
    model = load_llm(arguments.inside, DTYPES[arguments.dtype], device, arguments.precision, merged=merged)
    if isinstance(model, MergedLlama):
        model.merge()
    else:
        model = add_lora(model, lora)
    found = {"seconds": time.perf_counter() - start, "host_peak_gib": (peak_bytes() - before) / GIB}
    own = model.layers if isinstance(model, MergedLlama) else []
    held = sum(value.nbytes for value in [*model.parameters(), *model.buffers(), *(w for each in own for w in each)])
    held += model.output.nbytes if own else 0
    words = model.get_input_embeddings().weight
    prompt = torch.randn(1, arguments.prompt, 4096, device=device, dtype=words.dtype) * 0.02

    def decode(tokens: int) -> None:
        for _ in decode_batch(model, prompt, GenerationSettings(max_new_tokens=tokens, temperature=0)):
            pass

    def generate(tokens: int) -> None:
        model.generate(inputs_embeds=prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

    # A token's floor: each weight is read once, of the embedding one row alone.
    floor = (held - words.nbytes) / copy_rate(arguments.device)
    for name, act in ({"": decode} | ({} if own else {"transformers: ": generate})).items():
        with torch.inference_mode():
            act(2)
            first = min(seconds(lambda act=act: act(1), arguments.device) for _ in range(3))
            many = min(seconds(lambda act=act: act(arguments.tokens + 1), arguments.device) for _ in range(3))
        token = (many - first) / arguments.tokens
        found |= {
            f"{name}first token, s": first,
            f"{name}further token, s": token,
            f"{name}of the floor": floor / token,
        }
    found["weights_gib"] = held / GIB
    if device.type == "cuda":
        found["device_peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    return found


def copy_rate(device: str) -> float:
    """The measured rate at which memory is read, in bytes per second: the best of some."""
    import torch

    numbers = torch.ones(2**28, device=device)
    return numbers.nbytes / min(seconds(numbers.sum, device) for _ in range(4))


def in_own_process(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """The same measurement in a fresh process, whose peak memory is its own."""
    import subprocess

    passed = {name: getattr(arguments, name) for name in ("what", "device", "dtype", "precision", "tokens", "prompt")}
    options = [f"--{name}={value}" for name, value in passed.items()]
    command = [sys.executable, __file__, *options, f"--inside={path}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the measurement as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=("maps", "load", "llm"), required=True)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument(
        "--precision", choices=("auto", "full", "8bit", "4bit"), default="full", help="of the language model"
    )
    parser.add_argument("--layers", type=int, default=32, help="of the language model; LLaMA-7B has 32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8], help="photos at once")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=128, help="positions before the answer")
    parser.add_argument("--scratch", type=Path, help="folder for the weights that are written")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    found = {"maps": maps, "load": load, "llm": llm}[arguments.what](arguments)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
