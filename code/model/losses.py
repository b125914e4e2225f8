"""Training losses: cross entropy on the answer, focal and dice on the map (AnomalyGPT section 3.5; specification 7)."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
FOCAL_GAMMA = 2
SMOOTH = 1e-5
DICE_SMOOTH = 1.0


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the next token, (B, N, vocabulary) and (B, N), averaged over all answer tokens; 0 without."""
    chosen = labels[:, 1:] != IGNORE_INDEX
    if not chosen.any():
        return (logits.float() * 0.0).sum()  # in fp16 the sum itself may overflow
    return F.cross_entropy(logits[:, :-1][chosen].float(), labels[:, 1:][chosen])


@torch.no_grad()
def token_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of the answer tokens that are predicted correctly, arguments as above; 0 when there is none."""
    chosen = labels[:, 1:] != IGNORE_INDEX
    hits = logits[:, :-1].argmax(dim=-1)[chosen] == labels[:, 1:][chosen]
    return hits.float().mean() if chosen.any() else logits.new_zeros(())


def focal_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017), gamma 2, of (B, 2, S, S) and (B, 1, S, S), averaged over the pixels."""
    onehot = F.one_hot(target[:, 0].long(), 2).movedim(-1, 1).to(probabilities.dtype).clamp(SMOOTH, 1 - SMOOTH)
    p = (onehot * probabilities).sum(dim=1) + SMOOTH
    return (-((1 - p) ** FOCAL_GAMMA) * p.log()).mean()


def dice_loss(abnormal: Tensor, target: Tensor) -> Tensor:
    """Dice loss (Milletari et al., 3DV 2016) with unsquared sums, (B, S, S) in 0..1, averaged over the images."""
    p, g = abnormal.flatten(1), target.flatten(1).to(abnormal.dtype)
    overlap = 2 * (p * g).sum(dim=1) + DICE_SMOOTH
    return (1 - overlap / (p.sum(dim=1) + g.sum(dim=1) + DICE_SMOOTH)).mean()


def pixel_loss(probabilities: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice losses of every tapped layer (L, B, 2, S, S) against one target, each summed over the layers."""
    focal = torch.stack([focal_loss(layer, target) for layer in probabilities]).sum()
    dice = torch.stack([dice_loss(layer[:, 1], target) for layer in probabilities]).sum()
    return focal, dice
