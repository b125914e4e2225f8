"""Names and shapes of what the released ``imagebind_huge.pth`` holds beside the vision and text towers.

A file is checked against its complete list of 1311 tensors, so that a truncated file or another one is an error. The
trunks' shapes are read off a :class:`Trunk`, whose blocks these modalities share with vision and text.
"""

from dataclasses import dataclass

import torch

from anomalygpt.model.imagebind.transformer import Trunk

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
    """Name -> shape of every released tensor that is recognised and not loaded."""
    shapes: dict[str, Shape] = {CAUSAL_MASK: (77, 77)}
    for modality, tower in SKIPPED_TOWERS.items():
        width = tower.width
        stem, head = f"modality_preprocessors.{modality}", f"modality_heads.{modality}"
        shapes |= {
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
        with torch.device("meta"):
            trunk = Trunk(width, tower.depth, heads=1, causal=False, norm_first=False).state_dict()
        shapes |= {f"modality_trunks.{modality}.{name}": tuple(value.shape) for name, value in trunk.items()}
        # Unlike vision and text, these modalities attend to one additional learned key and value.
        for kind in ("bias_k", "bias_v"):
            name = f"modality_trunks.{modality}.blocks.{{}}.attn.{kind}"
            shapes |= {name.format(block): (1, 1, width) for block in range(tower.depth)}
    return shapes
