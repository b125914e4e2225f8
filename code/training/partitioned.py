"""Parameters that ZeRO stage 3 divides among the processes, and how to see them whole.

Everything here is a collective: every process has to call it, in the same order. Under the other stages, where each
process holds all parameters, it does nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from anomalygpt.model.checkpoint import delta_tensors, part_of


@contextmanager
def whole(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """The parameters are whole on every process inside the block, and only to be read there."""
    divided = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not divided:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(divided):
        yield


def held_by_composites(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a module with parts of its own holds itself (an encoder's positions, the base prompts).

    DeepSpeed gathers a layer's parameters when the layer is called. Whoever calls a model's other methods (an encoder's
    ``encode_image``) calls its layers, but not the module that holds these.
    """
    composites = [module for module in model.modules() if next(module.children(), None) is not None]
    return [parameter for module in composites for parameter in module.parameters(recurse=False)]


def whole_delta(model: nn.Module, parts: Sequence[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """As :func:`delta_tensors`, whatever the stage: name -> a copy on the CPU, on every process."""
    with whole(parameter for name, parameter in model.named_parameters() if part_of(name) in parts):
        return delta_tensors(model, parts, dtype)
