"""Models of timm and of open_clip (Radford et al., 2021; Cherti et al., 2023) as encoders."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from anomalygpt.errors import UserError, did_you_mean
from anomalygpt.model.encoder import ImageFeatures, ImageSpec, tapped_blocks


class TimmEncoder(nn.Module):
    """A Vision Transformer of timm, pooled as by its classifier. Raises :class:`UserError`: no such, wrong size."""

    def __init__(self, name: str, image_size: int = 224, taps: Sequence[int] | None = None) -> None:
        import timm

        super().__init__()
        try:
            vit: Any = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
            depth, patch = len(vit.blocks), vit.patch_embed.patch_size[0]
        except (TypeError, AttributeError, RuntimeError) as error:  # a RuntimeError where timm knows no such name
            hint = did_you_mean(name, timm.list_models("*vit*"))
            message = f"encoder.name {name!r}: expected a Vision Transformer of timm that takes images of any size"
            raise UserError(f"{message}{hint}") from error
        self.vit = vit
        if image_size % patch:
            raise UserError(f"encoder.image_size {image_size}: expected a multiple of the patch, {patch}")
        mean, std = vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"]
        sizes = {"tap_width": vit.embed_dim, "taps": tapped_blocks(taps, depth), "embed_width": vit.num_features}
        self.spec = ImageSpec(image_size, mean, std, image_size // patch, **sizes, any_size=True)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Normalised images (B, 3, S, S) -> taps of (B, P * P, width) and a unit embedding (B, D)."""
        last, taps = self.vit.forward_intermediates(images, indices=list(self.spec.taps), output_fmt="NLC", norm=False)
        # Only the tokens of the last block are normalised; the taps stay raw.
        return ImageFeatures(tuple(taps), F.normalize(self.vit.forward_head(last, pre_logits=True), dim=-1))


class OpenClip(nn.Module):
    """A CLIP model with a plain Vision Transformer, of the image size that its weights have positions for.

    Its taps are raw block outputs; or embeddings in the joint space, one for each of ``windows``, sides in patches,
    whose text maps need no training. In the manner of WinCLIP (Jeong et al., CVPR 2023) each window is encoded by
    itself, and a patch gets the mean of those around it. Raises :class:`UserError`: the settings fit no such model.
    """

    def __init__(
        self, name: str, image_size: int = 224, taps: Sequence[int] | None = None, windows: Sequence[int] = ()
    ) -> None:
        import open_clip

        super().__init__()
        if name not in open_clip.list_models():
            hint = did_you_mean(name, open_clip.list_models())
            raise UserError(f"encoder.name {name!r}: no model of open_clip{hint}")
        logging.disable(logging.WARNING)  # that it has no weights yet
        try:
            device = torch.empty(0).device  # ``meta`` inside of torch.device("meta")
            self.clip: Any = open_clip.create_model(name, load_weights=False, pretrained_text=False, device=device)
        finally:
            logging.disable(logging.NOTSET)
        tower: Any = self.clip.visual
        if not isinstance(tower, open_clip.transformer.VisionTransformer) or tower.attn_pool is not None:
            raise UserError(f"encoder.name {name!r}: expected a plain Vision Transformer, such as ViT-B-16")
        if tower.image_size != (image_size, image_size) or max(windows, default=0) > tower.grid_size[0]:
            here = f"encoder.image_size {image_size}, windows {list(windows)}: {name} has positions for"
            raise UserError(f"{here} {tower.image_size[0]} pixels in {tower.grid_size[0]} patches")
        self.tokenize, self.windows = open_clip.get_tokenizer(name), tuple(windows)
        mean, std = tower.image_mean or open_clip.OPENAI_DATASET_MEAN, tower.image_std or open_clip.OPENAI_DATASET_STD
        sizes = {"tap_width": tower.output_dim if windows else tower.transformer.width, "embed_width": tower.output_dim}
        blocks = self.windows or tapped_blocks(taps, tower.transformer.layers)
        self.spec = ImageSpec(image_size, mean, std, tower.grid_size[0], taps=blocks, **sizes, joint_taps=bool(windows))

    @property
    def text_tower(self) -> nn.Module:
        return nn.ModuleList([self.clip.token_embedding, self.clip.transformer, self.clip.ln_final])

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Normalised images (B, 3, S, S) -> taps of (B, P * P, width) and a unit embedding (B, D)."""
        tower: Any = self.clip.visual
        tokens = tower._embeds(images)
        wanted = [0] if self.windows else list(self.spec.taps)
        last, blocks = tower.transformer.forward_intermediates(tokens, indices=wanted)
        taps = [self._window_tap(tokens, side) for side in self.windows] or [block[:, 1:] for block in blocks]
        return ImageFeatures(tuple(taps), self._embedding(last))

    def _embedding(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.clip.visual._pool(tokens)[0] @ self.clip.visual.proj, dim=-1)

    def _window_tap(self, tokens: Tensor, side: int) -> Tensor:
        """(B, 1 + P * P, width) -> (B, P * P, D): the mean embedding of the windows around each patch."""
        patches = rearrange(tokens[:, 1:], "b (h w) d -> b d h w", h=self.spec.grid)
        windows = rearrange(F.unfold(patches, side), "b (d k) n -> b n k d", k=side**2)
        classes = tokens[:, :1, None].expand(-1, windows.shape[1], -1, -1)
        embedded = self._embedding(self.clip.visual.transformer(torch.cat([classes, windows], dim=2).flatten(0, 1)))
        spread = repeat(embedded, "(b n) d -> b (d k) n", b=len(tokens), k=side**2)
        sums, counts = (F.fold(each, self.spec.grid, side) for each in (spread, torch.ones_like(spread)))
        return rearrange(sums / counts, "b d h w -> b (h w) d")

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Sentences -> (B, D), of unit length."""
        ids = self.tokenize(list(sentences)).to(self.clip.visual.proj.device)
        return self.clip.encode_text(ids, normalize=True)
