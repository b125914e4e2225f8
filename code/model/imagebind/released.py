"""Names and shapes of what the released ``imagebind_huge.pth`` holds beside the vision and text towers.

A file is checked against its whole list of 1311 tensors, so that a truncated or another file is an error rather than
a surprise. The blocks' own shapes are read off a :class:`Block`, which these modalities share with ours.
"""

from dataclasses import dataclass

import torch

from anomalygpt.model.imagebind.transformer import Block

Shape = tuple[int, ...]

CAUSAL_MASK = "modality_preprocessors.text.mask"  # the released code's buffer; our text attention is causal by itself


@dataclass(frozen=True)
class SkippedTower:
    """A modality of the released file that this product does not build.

    ``positions`` and ``head`` are the names of the position table and of the head's linear layer.
    """

    width: int
    depth: int
    stem: str
    projection: Shape
    tokens: int
    positions: str = "pos_embedding_helper.pos_embed"
    head: str = "2.weight"


SKIPPED_TOWERS = {
    "audio": SkippedTower(768, 12, "rgbt_stem", (768, 1, 16, 16), tokens=229),
    "depth": SkippedTower(384, 12, "depth_stem", (384, 1, 16, 16), tokens=197),
    "thermal": SkippedTower(768, 12, "rgbt_stem", (768, 1, 16, 16), tokens=197),
    "imu": SkippedTower(512, 6, "imu_stem", (512, 48), tokens=251, positions="pos_embed", head="3.weight"),
}


def skipped_shapes(joint_width: int = 1024) -> dict[str, Shape]:
    """Every released tensor that is recognised and left alone: name -> shape."""
    shapes: dict[str, Shape] = {CAUSAL_MASK: (77, 77)}
    for modality, tower in SKIPPED_TOWERS.items():
        shapes |= _tower_shapes(modality, tower, joint_width)
    return shapes


def _tower_shapes(modality: str, tower: SkippedTower, joint_width: int) -> dict[str, Shape]:
    width = tower.width
    stem = f"modality_preprocessors.{modality}"
    head = f"modality_heads.{modality}"
    shapes: dict[str, Shape] = {
        f"{stem}.cls_token": (1, 1, width),
        f"{stem}.{tower.positions}": (1, tower.tokens, width),
        f"{stem}.{tower.stem}.proj.weight": tower.projection,
        f"{stem}.{tower.stem}.norm_layer.weight": (width,),
        f"{stem}.{tower.stem}.norm_layer.bias": (width,),
        f"{head}.0.weight": (width,),
        f"{head}.0.bias": (width,),
        f"{head}.{tower.head}": (joint_width, width),
        f"modality_postprocessors.{modality}.1.log_logit_scale": (),
    }
    block = _block_shapes(width)
    for number in range(tower.depth):
        shapes |= {f"modality_trunks.{modality}.blocks.{number}.{name}": shape for name, shape in block.items()}
    return shapes


def _block_shapes(width: int) -> dict[str, Shape]:
    with torch.device("meta"):
        block = Block(width, heads=1)
    shapes: dict[str, Shape] = {name: tuple(value.shape) for name, value in block.state_dict().items()}
    # Unlike vision and text, these modalities attend to one learned key and value more.
    return shapes | {"attn.bias_k": (1, 1, width), "attn.bias_v": (1, 1, width)}
