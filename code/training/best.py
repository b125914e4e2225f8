"""The weights that did best on held-back pairs, kept while a run goes on."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from anomalygpt.distributed import Process, all_agree
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import CheckpointError, read_metadata, save_tensors
from anomalygpt.training.partitioned import whole_delta

logger = logging.getLogger(__name__)

FILE = "best.safetensors"
LOSS = "validation_loss"


class BestWeights:
    """``best.safetensors`` in the run's folder: the trained tensors with the lowest validation loss so far.

    Args:
        resumed: whether the run goes on from a checkpoint; in a new one a file that lies there is another run's.
    """

    def __init__(self, folder: Path, process: Process, *, resumed: bool) -> None:
        self.path = folder / FILE
        self.process = process
        self._bar = _kept_loss(self.path) if resumed and process.is_main else math.inf

    def offer(self, model: AnomalyGPT, trainable: Sequence[str], step: int, loss: float) -> None:
        """Keeps the weights where the loss is below that of the file. Every process has to call it; rank 0 writes.

        What a full disk does not take is told; the file and its loss stay.
        """
        better = math.isfinite(loss) and loss < self._bar
        if not all_agree(not self.process.is_main or better):  # rank 0 decides: it alone has read the file
            return
        tensors = whole_delta(model, trainable, torch.float16)
        if not self.process.is_main:
            return
        try:
            save_tensors(tensors, self.path, {"step": str(step), LOSS: f"{loss:.6f}"})
        except CheckpointError as error:
            logger.error("%s; the run goes on", error)
            return
        self._bar = loss


def _kept_loss(path: Path) -> float:
    """The loss of the weights in a file; infinite where there is none that can be read, or it is no number."""
    try:
        loss = float(read_metadata(path).get(LOSS, math.inf))
    except (CheckpointError, OSError, ValueError):
        return math.inf
    return loss if math.isfinite(loss) else math.inf
