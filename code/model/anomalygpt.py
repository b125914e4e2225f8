"""AnomalyGPT: image -> encoder -> taps -> anomaly map -> prompts -> language model -> answer (section 3, figure 2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anomalygpt.config.settings import GenerationSettings
from anomalygpt.model.chat import AFTER_IMAGE, BEFORE_IMAGE, TextBatch, Turn, training_batch
from anomalygpt.model.encoder import Encoder, ImageFeatures
from anomalygpt.model.image_decoder import ImageDecoder, anomaly_map
from anomalygpt.model.llm import generate
from anomalygpt.model.losses import IGNORE_INDEX, answer_loss, pixel_loss
from anomalygpt.model.map_scale import calibrated
from anomalygpt.model.memory_bank import MemoryBank
from anomalygpt.model.prompt_learner import MAP_SIZE, PromptLearner
from anomalygpt.model.tokenizer import Tokenizer

UNNAMED_CLASS = "object"  # the class of every image that names none


@dataclass(frozen=True)
class Losses:
    """The parts of a training step's loss, scalars; ``total`` is their sum and carries the gradient."""

    total: Tensor
    answer: Tensor
    focal: Tensor
    dice: Tensor
    token_accuracy: Tensor


class AnomalyGPT(nn.Module):
    """The whole road. The parts are built elsewhere; tensor names are those of the released delta checkpoints.

    Args:
        encoder: frozen image encoder.
        states: class names -> (B, 2, D): a :class:`PromptEnsemble`, or trained :class:`LearnedStates`.
        image_decoder, prompt_learner: the paper's two trained parts.
        llm: a Hugging Face causal LM, with or without LoRA; None for a model that only draws maps.
        llama_proj: Linear D -> D_l for the image's embedding.
        tokenizer: the language model's.
    """

    def __init__(
        self,
        encoder: Encoder,
        states: Callable[[Sequence[str]], Tensor],
        image_decoder: ImageDecoder,
        prompt_learner: PromptLearner | None = None,
        llm: Any = None,
        llama_proj: nn.Linear | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.states = states
        self.image_decoder = image_decoder
        self.prompt_learner = prompt_learner
        self.llama_model = llm
        self.llama_proj = llama_proj
        self.tokenizer = tokenizer

    @property
    def speaks(self) -> bool:
        """Whether there is a language model."""
        return self.llama_model is not None

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.image_decoder.fc[0].weight.device  # type: ignore[return-value]

    # -- image -> map ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor) -> ImageFeatures:
        """Normalised images (B, 3, S, S) -> features. The encoder is always frozen."""
        parameter = next(self.encoder.parameters())  # type: ignore[attr-defined]
        return self.encoder.encode_image(images.to(parameter.device, parameter.dtype))

    def state_probabilities(self, features: ImageFeatures, class_names: Sequence[str]) -> Tensor:
        """Features of B images, B class names -> (L, B, 2, 224, 224) float32."""
        states = self.states(class_names).to(self.device)
        return self.image_decoder(features.taps, states, MAP_SIZE)

    def anomaly_map(
        self, features: ImageFeatures, class_names: Sequence[str], memory: MemoryBank | None = None
    ) -> Tensor:
        """(B, 1, 224, 224) float32: from the references where there are any, else from the text features."""
        if memory is not None:
            return memory.anomaly_map(features, MAP_SIZE)
        return anomaly_map(self.state_probabilities(features, class_names))

    # -- map -> words ---------------------------------------------------------------------------------------------

    def prompt_embeds(self, features: ImageFeatures, maps: Tensor) -> Tensor:
        """What precedes the text: BOS, the image and the 18 prompts (SPEC 6) -> (B, N, D_l)."""
        embed, tokenizer = self._embedding(), self._speaking(self.tokenizer)
        batch = len(features)

        def words(ids: list[int]) -> Tensor:
            return embed(torch.tensor(ids, device=embed.weight.device)).expand(batch, -1, -1)

        projection = self._speaking(self.llama_proj)
        image = projection(features.embedding.to(projection.weight.dtype)).unsqueeze(1)  # (B, 1, D_l)
        prompts = self._speaking(self.prompt_learner)(maps)
        pieces = [
            words([tokenizer.bos_id] + tokenizer.encode(BEFORE_IMAGE)),
            image,
            words(tokenizer.encode(AFTER_IMAGE)),
            prompts,
        ]
        return torch.cat([piece.to(embed.weight.dtype) for piece in pieces], dim=1)

    def answer(
        self,
        features: ImageFeatures,
        maps: Tensor,
        texts: Sequence[str],
        settings: GenerationSettings | None = None,
        openings: Sequence[str] = (),
        **extra: Any,
    ) -> list[str]:
        """Continues B texts (each ends in the assistant's mark, see ``chat_prompt``) about B images.

        Args:
            maps: (B, 1, 224, 224).
            openings: how the B answers begin; the model goes on from there. None at all leaves it free.
            extra: passed on to the language model's ``generate``.
        """
        tokenizer = self._speaking(self.tokenizer)
        # Encoded on its own, as an answer is in training.
        begun = [tokenizer.encode(opening) for opening in openings] or [[]] * len(texts)
        with torch.inference_mode():
            before = self.prompt_embeds(features, maps)
            rows = [tokenizer.encode(text) + ids for text, ids in zip(texts, begun, strict=True)]
            embeds, attention = self._left_padded(before, rows)
        chosen = settings or GenerationSettings()
        return generate(self.llama_model, embeds, attention, tokenizer, chosen, begun, **extra)

    def _left_padded(self, before: Tensor, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        embed = self._embedding()
        longest = max(len(row) for row in rows)
        embeds, masks = [], []
        for head, row in zip(before, rows, strict=True):
            text = embed(torch.tensor(row, dtype=torch.long, device=before.device))
            padding = before.new_zeros(longest - len(row), before.shape[-1])
            embeds.append(torch.cat([padding, head, text]))
            masks.append(torch.cat([padding.new_zeros(len(padding)), before.new_ones(len(head) + len(row))]))
        return torch.stack(embeds), torch.stack(masks).long()

    # -- training -------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Tensor,
        conversations: Sequence[Sequence[Turn]],
        *,
        max_length: int,
        class_names: Sequence[str] | None = None,
        target: Tensor | None = None,
        references: Tensor | None = None,
        one_shot_threshold: float | None = None,
    ) -> Losses:
        """The loss of one micro-step (SPEC 7): cross entropy on the answers, and with a target focal + dice on the map.

        A model without a language model has the map's losses only.

        Args:
            images: (B, 3, S, S), normalised.
            conversations: B conversations, human first.
            max_length: the text is cut there, in tokens.
            class_names: B names; None (instruction data) takes ``object`` for all.
            target: (B, 1, 224, 224), 1 where anomalous; None for instruction data.
            references: (G, R, 3, S, S): R views of a normal photo for each B / G consecutive images. The prompt
                learner then sees the map against them in place of the text map (the one-shot branch); the pixel
                losses stay on the text map.
            one_shot_threshold: the prompt learner sees the one-shot map calibrated by it (0.5 at the threshold); None
                shows it raw, as the paper does.
        """
        features = self.encode(images)
        probabilities = self.state_probabilities(features, class_names or [UNNAMED_CLASS] * len(features))
        if self.speaks:
            # The text map is not detached: the language loss trains the image decoder too.
            maps = anomaly_map(probabilities)
            if references is not None:
                maps = self._one_shot_maps(features, references)
                maps = maps if one_shot_threshold is None else calibrated(maps, one_shot_threshold)
            answer, accuracy = self._answer_loss(features, maps, conversations, max_length)
        else:
            answer = accuracy = probabilities.new_zeros(())
        if target is None:
            focal = dice = torch.zeros_like(answer)
        else:
            focal, dice = pixel_loss(probabilities, target.to(probabilities.device))
        return Losses(answer + focal + dice, answer, focal, dice, accuracy)

    def _one_shot_maps(self, features: ImageFeatures, references: Tensor) -> Tensor:
        groups, views = references.shape[:2]
        encoded = self.encode(references.flatten(0, 1))
        share = len(features) // groups
        maps = []
        for group in range(groups):
            memory = MemoryBank(encoded[group * views : (group + 1) * views])
            maps.append(memory.anomaly_map(features[group * share : (group + 1) * share], MAP_SIZE))
        return torch.cat(maps)

    def text_batch(self, conversations: Sequence[Sequence[Turn]], max_length: int) -> TextBatch:
        """B conversations -> ids, attention and labels on the CPU."""
        return training_batch(conversations, self._speaking(self.tokenizer), max_length)

    def _answer_loss(
        self, features: ImageFeatures, maps: Tensor, conversations: Sequence[Sequence[Turn]], max_length: int
    ) -> tuple[Tensor, Tensor]:
        before = self.prompt_embeds(features, maps)
        text = self.text_batch(conversations, max_length)
        embeds = torch.cat([before, self._embedding()(text.ids.to(before.device))], dim=1)
        silent = torch.full(before.shape[:2], IGNORE_INDEX, dtype=torch.long)
        labels = torch.cat([silent, text.labels], dim=1).to(before.device)
        seen = torch.ones(before.shape[:2], dtype=torch.long)
        attention = torch.cat([seen, text.attention], dim=1).to(before.device)
        # Logits before the first answer are never looked at, and the vocabulary makes them the largest tensor here.
        kept = labels.shape[1] - _first_answer(labels) + 1
        logits = self.llama_model(inputs_embeds=embeds, attention_mask=attention, logits_to_keep=kept).logits
        return answer_loss(logits, labels[:, -kept:]), _token_accuracy(logits, labels[:, -kept:])

    # -- parts ----------------------------------------------------------------------------------------------------

    def _embedding(self) -> nn.Embedding:
        return self._speaking(self.llama_model).get_input_embeddings()

    def _speaking(self, part: Any) -> Any:
        if part is None:
            raise RuntimeError("this model was built without a language model: it draws maps, but can't answer")
        return part


def _first_answer(labels: Tensor) -> int:
    """The first position at which any of the conversations (B, N) has an answer token; N - 1 when none has."""
    columns = (labels != IGNORE_INDEX).any(dim=0).nonzero()
    return int(columns[0]) if len(columns) else labels.shape[1] - 1


@torch.no_grad()
def _token_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of answer tokens that would have been predicted right; 0 when there is none."""
    chosen = labels[:, 1:] != IGNORE_INDEX
    hits = logits[:, :-1].argmax(dim=-1)[chosen] == labels[:, 1:][chosen]
    return hits.float().mean() if chosen.any() else logits.new_zeros(())
