"""The commands of the original's README, as they are written there, in a fresh clone with small weights."""

# ruff: noqa: F401, F811 (fixtures of another folder)
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer

from tests import browser, processes
from tests.datasets.conftest import crack_tree, loco_tree, mvtec_tree, visa_tree, write_photo
from tests.helpers import TINY
from tests.shared_data import ROOT
from tests.weights.made_weights import difference, llama, tuned, write_hf

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# Writes the weights that are downloaded, each in its official place, of the clone's own sizes. Runs in its code/.
OTHER_WEIGHTS = """
import torch
import anomalygpt
from pathlib import Path
from anomalygpt.config.load import load_config
from anomalygpt.model.build import build_model
from anomalygpt.model.checkpoint import delta_tensors, save_tensors
from anomalygpt.model.imagebind.imagebind import ImageBind

torch.manual_seed(0)
kept = Path("../pretrained_ckpt")
save_tensors(ImageBind().state_dict(), kept / "imagebind_ckpt" / "imagebind_huge.pth")
model = build_model(load_config("imagebind_vicuna7b", ["deltas=[]"]), torch.device("cpu"))
save_tensors(delta_tensors(model, ["llama_proj", "lora"]), kept / "pandagpt_ckpt" / "7b" / "pytorch_model.pt")
for name in ("train_mvtec", "train_visa", "train_supervised"):
    tensors = delta_tensors(model, ["image_decoder", "prompt_learner"])
    save_tensors(tensors, Path("ckpt", name, "pytorch_model.pt"))
"""
# What a machine without a GPU, and a test, need beside the command.
SHORT = ("training.precision=fp32", "training.steps=1", "training.batch_size=1", "data.workers=0", "--device", "cpu")
SHORT += ("training.offload_optimizer=false",)  # else DeepSpeed compiles an optimiser
ONE_CORE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}


def run(command: str, folder: Path, more: Sequence[str] = ()) -> subprocess.CompletedProcess:
    """A line of the README in bash, with further arguments, in an activated environment."""
    environment = os.environ | ONE_CORE | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return processes.run(["bash", "-c", f'{command} "$@"', "bash", *more], 400, cwd=folder, env=environment)


def ok(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def clone(folder: Path) -> Path:
    """A clone, in which ImageBind-Huge has the sizes of the tests' ImageBind, and answers are short."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    ok(run(f"git clone --quiet --depth 1 file://{ROOT} AnomalyGPT", folder))
    root = folder / "AnomalyGPT"
    small = {"model/imagebind/imagebind.py": asdict(TINY), "config/settings.py": {"max_new_tokens": 8}}
    for file, defaults in small.items():
        source = (root / "code" / file).read_text()
        for name, value in defaults.items():
            source, count = re.subn(rf"({name}: (?:int|Positive) =) \d+", rf"\1 {value}", source)
            assert count == 1, name
        (root / "code" / file).write_text(source)
    return root


def prepare_weights(root: Path, downloads: Path) -> None:
    """The four preparations of the demo."""
    base = llama(width=32, num_attention_heads=4)
    vicuna = tuned(base, 32001)
    write_hf(downloads / "llama-7b-hf", base, "bin sharded")
    delta = write_hf(downloads / "vicuna-7b-delta-v0", vicuna, "bin sharded", difference(base, vicuna))
    written = io.BytesIO()
    text = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    options = {"vocab_size": 600, "byte_fallback": True, "model_type": "bpe", "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=written, **options)
    (delta / "tokenizer.model").write_bytes(written.getvalue())
    # The original's is `python -m fastchat.model.apply_delta`.
    apply = f"python prepare_vicuna.py --base {downloads}/llama-7b-hf --target ../pretrained_ckpt/vicuna_ckpt/7b_v0/"
    ok(run(f"{apply} --delta {delta}", root / "code"))
    ok(processes.run([sys.executable, "-c", OTHER_WEIGHTS], 200, cwd=root / "code", env=os.environ | ONE_CORE))


def ask_in_a_browser(root: Path) -> None:
    if browser.installed_browser() is None:
        pytest.skip("no browser")
    with browser.running_demo(code=root / "code", **ONE_CORE) as address, browser.window(address) as window:
        assert "imagebind_vicuna7b" in window.page.content()
        window.click_example(0)
        window.page.locator("#map img").first.wait_for()
        assert window.ask("Is there any anomaly in the image?")
        assert window.errors == []


def test_every_command_of_the_originals_readme_does_what_it_says(
    tmp_path,
    mvtec_tree,
    visa_tree,
    loco_tree,
    crack_tree,
    write_photo,
) -> None:
    (tmp_path / "work").mkdir()
    root = clone(tmp_path / "work")
    data, code = root / "data", root / "code"
    for tree, place in ((visa_tree, "VisA"), (loco_tree, "mvtec_loco_anomaly_detection"), (crack_tree, "CrackForest")):
        shutil.move(tree, data / place)
    for name in ("screw", "bottle"):
        shutil.move(mvtec_tree / name, data / "mvtec_anomaly_detection" / name)
    write_photo(data / "images" / "1.jpg")
    talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "Some squares."}]
    entries = [{"image_name": "1.jpg", "conversation": talk}]
    (data / "pandagpt4_visual_instruction_data.json").write_text(json.dumps(entries))
    prepare_weights(root, tmp_path / "downloads")

    ask_in_a_browser(root)

    for name in ("train_mvtec", "train_visa", "train_supervised"):
        script = f"cd ./code && bash ./scripts/{name}.sh"
        ok(run(script, root, SHORT))
        assert (root / "runs" / name / "pytorch_model.pt").is_file()
        if name == "train_mvtec" and not Path("/dev/nvidia0").exists():
            done = run(script, root)
            assert done.returncode and done.stderr.startswith("no GPU here: the paper's model trains on GPUs; ")
            assert "training.precision fp16 needs a GPU" in done.stderr and "Traceback" not in done.stderr

    for name, part in (("mvtec", "screw"), ("visa", "candle")):
        output = ok(run(f"python test_{name}.py", code))
        assert "image_auroc" in output and part in output, output
