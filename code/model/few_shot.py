"""The name under which the paper's few-shot memory is known to callers: the memory bank of K upright photos."""

from anomalygpt.model.memory_bank import MemoryBank

PatchMemory = MemoryBank
