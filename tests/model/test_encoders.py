"""Encoders, those of timm and open_clip from files of their libraries' layout."""

import copy
import json
from dataclasses import replace
from functools import partial

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from anomalygpt.config.load import load_config
from anomalygpt.config.schema import EncoderConfig
from anomalygpt.errors import UserError
from anomalygpt.model.build import build_encoder, build_model, image_spec
from anomalygpt.model.dinov2 import Dinov2
from anomalygpt.model.encoder import resized_positions
from anomalygpt.model.imagebind.imagebind import ImageBind
from anomalygpt.model.prompt_ensemble import PromptEnsemble
from tests.helpers import TINY

CPU = torch.device("cpu")
TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def build(dtype=torch.float32, **settings):
    return build_encoder(EncoderConfig(**settings), CPU, dtype)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 64), ("eva02_tiny_patch14_224", 56)])
def test_a_vision_transformer_of_timm_gives_its_own_tokens(tmp_path, name, size):
    original = timm.create_model(name, pretrained=False, dynamic_img_size=True).eval()
    path = tmp_path / "model.safetensors"
    save_file(original.state_dict(), path)  # with its classifier
    settings = {"kind": "timm", "name": name, "weights": str(path), "image_size": size, "taps": (1, 5)}
    encoder = build(**settings)
    assert image_spec(EncoderConfig(**settings)) == encoder.spec
    assert encoder.spec.mean == original.pretrained_cfg["mean"] and encoder.spec.tap_width == original.embed_dim
    photos = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found = encoder.encode_image(photos)
        last = original.forward_features(photos)
        expected = original.forward_intermediates(photos, indices=[1, 5], output_fmt="NLC", intermediates_only=True)
        pooled = F.normalize(original.forward_head(last, pre_logits=True), dim=-1)
    assert torch.equal(found.embedding, pooled)
    assert all(torch.equal(mine, own) for mine, own in zip(found.taps, expected, strict=True))
    assert found.grid == encoder.spec.grid


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "test_vitt"}, "images of any size; did you mean 'test_vit'"),
        ({"name": "test_resnet"}, "expected a Vision Transformer of timm that takes images of any size"),
        ({"name": "test_vit", "image_size": 50}, "expected a multiple of the patch, 16"),
        ({"kind": "open_clip", "name": "ViT-B-61"}, "no model of open_clip; did you mean 'ViT-B-"),
        ({"kind": "open_clip", "name": "RN50"}, "expected a plain Vision Transformer"),
    ],
)
def test_a_wrong_model_is_explained(settings, message):
    with pytest.raises(UserError, match=message):
        image_spec(EncoderConfig(**({"kind": "timm"} | settings)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder.name=vit_b"], "name 'vit_b': kind dinov2 has dinov2_vits14 alone; the other kinds have others"),
        (["encoder={kind: timm, name: test_vit, windows: [2]}"], "windows are for kind open_clip"),
        (["encoder={kind: clip}"], r"encoder\.kind: Input should be 'imagebind', 'dinov2', 'timm' or 'open_clip'"),
    ],
)
def test_wrong_settings_are_explained(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config("compact", ["encoder.kind=dinov2", *overrides])


@pytest.fixture
def clip(tmp_path):
    """A small CLIP model that open_clip knows by name, and settings that name its file."""
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    original = open_clip.create_model("tiny-clip", load_weights=False).eval()
    path = tmp_path / "open_clip_model.safetensors"
    save_file({name: value.contiguous() for name, value in original.state_dict().items()}, path)
    return original, {"kind": "open_clip", "name": "tiny-clip", "weights": str(path), "image_size": 32}


@torch.no_grad()
def test_open_clip_gives_its_own_tokens_and_embeddings(clip):
    original, settings = clip
    encoder, photos = build(**settings, taps=(0, 3)), torch.randn(2, 3, 32, 32)
    assert image_spec(EncoderConfig(**settings, taps=(0, 3))) == encoder.spec
    found = encoder.encode_image(photos)
    expected = original.visual.forward_intermediates(photos, indices=[0, 3], output_fmt="NLC")["image_intermediates"]
    assert torch.allclose(found.embedding, original.encode_image(photos, normalize=True), atol=1e-6)
    assert all(torch.allclose(mine, own, atol=1e-5) for mine, own in zip(found.taps, expected, strict=True))
    sentences = ["a photo of a flawless screw.", "a photo of a screw with damage."]
    tokens = open_clip.get_tokenizer("tiny-clip")(sentences)
    assert torch.allclose(encoder.encode_text(sentences), original.encode_text(tokens, normalize=True), atol=1e-6)
    with pytest.raises(UserError, match="tiny-clip has positions for 32 pixels in 4 patches"):
        build(**settings | {"image_size": 64})
    with pytest.raises(UserError, match=r"windows \[5\]: tiny-clip has positions for 32 pixels in 4 patches"):
        build(**settings, windows=(5,))


@torch.no_grad()
def test_windows_are_embedded_by_themselves(clip):
    original, settings = clip
    encoder, photos = build(**settings, windows=(3, 4)), torch.randn(2, 3, 32, 32)
    found = encoder.encode_image(photos)
    assert encoder.spec.joint_taps and [tap.shape for tap in found.taps] == [(2, 16, 24)] * 2
    assert torch.allclose(found.taps[1], found.embedding[:, None].expand(-1, 16, -1), atol=1e-6), "the whole photo"
    tokens = original.visual._embeds(photos)

    def window(row, column):
        inside = [1 + 4 * (row + r) + column + c for r in range(3) for c in range(3)]
        pooled, _ = original.visual._pool(original.visual.transformer(tokens[:, [0, *inside]]))
        return F.normalize(pooled @ original.visual.proj, dim=-1)

    assert torch.allclose(found.taps[0][:, 0], window(0, 0), atol=1e-6), "the corner is in one window"
    assert torch.allclose(found.taps[0][:, 1], (window(0, 0) + window(0, 1)) / 2, atol=1e-6)


@torch.no_grad()
def test_clip_draws_text_maps_without_a_delta(clip, caplog):
    _, settings = clip
    encoder = EncoderConfig(**settings, windows=(2,))
    config = load_config("winclip").model_copy(update={"encoder": encoder})
    model = build_model(config, CPU)
    assert not [text for text in caplog.messages if "initialised at random" in text]
    assert isinstance(model.states, PromptEnsemble)
    features = model.encode(torch.randn(1, 3, 32, 32))
    states = model.states(["screw"])[0]
    cosines = F.normalize(features.taps[0][0], dim=-1) @ states.T
    found = model.anomaly_map(features, ["screw"])[0, 0]
    corners = found[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.allclose(corners, (100 * cosines[[0, 3, 12, 15]]).softmax(dim=-1)[:, 1], atol=1e-4)
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors: not there"):
        build_model(load_config("winclip"), CPU)


@torch.no_grad()
@pytest.mark.parametrize("kind", [partial(Dinov2, image_size=56), partial(ImageBind, replace(TINY, image_size=56))])
def test_a_larger_photo_is_encoded_with_interpolated_positions(kind):
    encoder = kind().eval()
    found = encoder.encode_image(torch.rand(1, 3, 112, 112))
    assert found.grid == 8 and {tap.shape[1] for tap in found.taps} == {64}
    positions = torch.arange(17.0).view(1, 17, 1)
    assert resized_positions(positions, (4, 4)) is positions
    larger = resized_positions(positions, (8, 8))[0, :, 0]
    patches = larger[1:].view(8, 8)  # they rise in reading order
    assert larger[0] == 0 and patches.mean() == pytest.approx(8.5, abs=1e-4)
    assert patches.diff(dim=0).min() > 0 and patches.diff(dim=1).min() > 0


@torch.no_grad()
def test_packed_weights_compute_the_same():
    torch.manual_seed(0)
    encoder, photos = Dinov2(image_size=56).eval(), torch.rand(2, 3, 56, 56)
    for block in encoder.vit.blocks:
        block.ls1["gamma"].normal_(), block.ls2["gamma"].normal_()
    expected = encoder.encode_image(photos)
    encoder.pack()
    assert encoder.vit.blocks[0].mlp.fc1.packed is not None
    copied = copy.deepcopy(encoder)  # as export does, without what is packed
    for model, tolerance in ((encoder, 1e-4), (copied, 0)):
        found = model.encode_image(photos)
        for mine, other in zip((*found.taps, found.embedding), (*expected.taps, expected.embedding), strict=True):
            assert torch.allclose(mine, other, rtol=tolerance, atol=tolerance)


def test_clip_refuses_a_larger_photo(clip):
    model = build_model(load_config("winclip").model_copy(update={"encoder": EncoderConfig(**clip[1])}), CPU)
    with pytest.raises(UserError, match="takes photos of 32 pixels alone, not of 64"):
        model.encode(torch.rand(1, 3, 64, 64))
