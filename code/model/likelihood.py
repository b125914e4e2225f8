"""How likely the language model finds each of several answers to a question about an image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.encoder import ImageFeatures


@torch.inference_mode()
def answer_likelihoods(
    model: AnomalyGPT, features: ImageFeatures, maps: Tensor, text: str, answers: Sequence[str]
) -> Tensor:
    """The mean log-likelihood of each answer's tokens, all answers in one forward pass.

    The mean over tokens, not the sum, so that a long answer is not taken to be unlikely for its length alone.

    Args:
        features: of one image.
        maps: (1, 1, 224, 224) float32, its anomaly map.
        text: ends in the assistant's mark, see ``chat_prompt``.
        answers: n texts, each encoded on its own, as in training.

    Returns:
        (n,) float32 on the CPU, at most 0.

    Raises:
        ValueError: an answer is empty.
        RuntimeError: the model has no language model.
    """
    before = model.prompt_embeds(features, maps)  # (1, N, D_l)
    tokenizer, llm = model.tokenizer, model.llama_model
    assert tokenizer is not None
    rows = [tokenizer.encode(answer) for answer in answers]
    if not all(rows):
        raise ValueError("an answer is empty")
    embed, longest = llm.get_input_embeddings(), max(map(len, rows))
    padded = [row + [tokenizer.eos_id] * (longest - len(row)) for row in rows]
    ids = torch.tensor(padded, device=before.device)  # (n, longest), padded on the right
    asked = embed(torch.tensor([tokenizer.encode(text)], device=before.device))
    head = torch.cat([before, asked], dim=1).expand(len(rows), -1, -1)
    embeds = torch.cat([head, embed(ids)], dim=1)
    counted = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=before.device)
    attention = torch.cat([counted.new_ones(len(rows), head.shape[1]), counted], dim=1)
    # The logits at a position are about the token after it.
    logits = llm(inputs_embeds=embeds, attention_mask=attention, logits_to_keep=longest + 1).logits[:, :-1]
    chosen = logits.float().log_softmax(dim=-1).gather(2, ids[..., None])[..., 0]  # (n, longest)
    return ((chosen * counted).sum(dim=1) / counted.sum(dim=1)).cpu()
