"""AnomalyGPT: image -> encoder -> taps -> anomaly map -> prompts -> language model -> answer (section 3, figure 2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from anomalygpt.config.settings import GenerationSettings
from anomalygpt.errors import UserError
from anomalygpt.model.chat import Turn, answer_text, ends_turn, layout_of, text_batch, training_batch
from anomalygpt.model.encoder import Encoder, ImageFeatures
from anomalygpt.model.generation import decode_batch, turn_tokens
from anomalygpt.model.image_decoder import ImageDecoder, anomaly_map, calibrate_map
from anomalygpt.model.losses import IGNORE_INDEX, answer_loss, pixel_loss, token_accuracy
from anomalygpt.model.memory_bank import MemoryBank
from anomalygpt.model.prompt_learner import MAP_SIZE, PromptLearner
from anomalygpt.model.tokenizer import Tokenizer

UNNAMED_CLASS = "object"  # the class name of images without one


@dataclass(frozen=True)
class Losses:
    """The parts of a training step's loss, scalars; ``total`` is their sum and carries the gradient."""

    total: Tensor
    answer: Tensor
    focal: Tensor
    dice: Tensor
    token_accuracy: Tensor


class AnomalyGPT(nn.Module):
    """The complete model, of parts that are built elsewhere; tensor names are those of the released delta checkpoints.

    ``states`` maps class names to text features (B, 2, D), [normal, abnormal]; ``llm`` is a Hugging Face causal LM, or
    None, as all that follows, where maps alone are computed; ``llama_proj`` projects the image's embedding to D_l.
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
        self.encoder, self.states, self.image_decoder = encoder, states, image_decoder
        self.prompt_learner: Any = prompt_learner
        self.llama_model = llm
        self.llama_proj: Any = llama_proj
        self.tokenizer: Any = tokenizer

    @property
    def has_llm(self) -> bool:
        return self.llama_model is not None

    @property
    def device(self) -> torch.device:
        return self.image_decoder.fc[0].weight.device  # type: ignore[return-value]

    @torch.no_grad()
    def encode(self, images: Tensor) -> ImageFeatures:
        """Normalised images (B, 3, S, S) -> features, without gradient. Raises :class:`UserError`: S is wrong."""
        side, spec = images.shape[-1], self.encoder.spec
        if side != spec.size and not spec.any_size:
            raise UserError(f"scales: this encoder takes photos of {spec.size} pixels alone, not of {side}")
        parameter = next(self.encoder.parameters())  # type: ignore[attr-defined]
        return self.encoder.encode_image(images.to(parameter.device, parameter.dtype))

    def text_probabilities(self, features: ImageFeatures, class_names: Sequence[str]) -> Tensor:
        """Features of B images, B class names -> (L, B, 2, 224, 224) float32."""
        return self.image_decoder(features.taps, self.states(class_names).to(self.device), MAP_SIZE)

    def anomaly_map(
        self, features: ImageFeatures, class_names: Sequence[str], memory: MemoryBank | None = None
    ) -> Tensor:
        """(B, 1, 224, 224) float32: from the memory bank where there is one, else from the text features."""
        if memory is not None:
            return memory.anomaly_map(features, MAP_SIZE)
        return anomaly_map(self.text_probabilities(features, class_names))

    def prompt_embeds(self, features: ImageFeatures, maps: Tensor) -> Tensor:
        """The embeddings before the text: BOS, the image and the 18 prompts (specification 6) -> (B, N, D_l)."""
        embed, tokenizer = self.llama_model.get_input_embeddings(), self.tokenizer
        layout = layout_of(tokenizer)

        def words(ids: list[int]) -> Tensor:
            return embed(torch.tensor(ids, dtype=torch.long, device=embed.weight.device)).expand(len(features), -1, -1)

        pieces = [
            words([tokenizer.bos_id] * layout.bos + tokenizer.encode(layout.before_image)),
            self.llama_proj(features.embedding.to(self.llama_proj.weight.dtype)).unsqueeze(1),  # (B, 1, D_l)
            words(tokenizer.encode(layout.after_image)),
            self.prompt_learner(maps),
        ]
        return torch.cat([piece.to(embed.weight.dtype) for piece in pieces], dim=1)

    @torch.inference_mode()
    def answer(
        self,
        features: ImageFeatures,
        maps: Tensor,
        texts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        whole: bool = False,
    ) -> list[str]:
        """Continues the ids of B texts (each ends in the assistant's mark, see ``chat_prompt``) about B images at once.

        ``maps`` are (B, 1, 224, 224). ``whole`` calls the language model equally often for each batch (ZeRO 3).
        """
        embeds, attention = self._left_padded(self.prompt_embeds(features, maps), texts)
        padding = None if attention.all() else attention
        rows, ended = [list[int]() for _ in texts], set[int]()
        for tokens, _ in decode_batch(self.llama_model, embeds, settings, attention=padding):
            for row, token in zip(rows, tokens, strict=True):
                row.append(token)
            ended |= {i for i, row in enumerate(rows) if i not in ended and ends_turn(row, self.tokenizer)}
            if len(ended) == len(rows) and not whole:
                break
        return [answer_text(list(turn_tokens(row, self.tokenizer)), self.tokenizer) for row in rows]

    def _left_padded(self, before: Tensor, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(B, N, D_l) and the ids of B texts -> (B, N + longest text, D_l) and its attention mask."""
        embed = self.llama_model.get_input_embeddings()
        texts = [embed(torch.tensor(row, dtype=torch.long, device=before.device)) for row in rows]
        embeds = [torch.cat(pair) for pair in zip(before, texts, strict=True)]
        masks = [torch.ones(len(row), dtype=torch.long, device=before.device) for row in embeds]
        padded, mask = (pad_sequence(each, batch_first=True, padding_side="left") for each in (embeds, masks))
        return padded, mask

    @torch.inference_mode()
    def answer_likelihoods(
        self, features: ImageFeatures, maps: Tensor, text: Sequence[int], answers: Sequence[str]
    ) -> Tensor:
        """The mean log-likelihood of the tokens of each of n answers, which are encoded separately: (n,) float32, CPU.

        The mean, not the sum, so that a long answer is not less likely merely because of its length. ``features`` and
        ``maps`` (1, 1, 224, 224) are of one image; the ids ``text`` end in the assistant's mark.
        """
        before = self.prompt_embeds(features, maps).expand(len(answers), -1, -1)
        rows = map(self.tokenizer.encode, answers)
        batch = text_batch([([*text, *row], [IGNORE_INDEX] * len(text) + row) for row in rows], self.tokenizer.eos_id)
        logits, labels = self._answer_logits(before, *batch)
        targets = labels[:, 1:]
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="none")
        return -(losses.view_as(targets).sum(dim=1) / (targets != IGNORE_INDEX).sum(dim=1)).cpu()

    def forward(
        self,
        images: Tensor | ImageFeatures,
        conversations: Sequence[Sequence[Turn]],
        *,
        max_length: int,
        maps: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        target: Tensor | None = None,
        references: Tensor | None = None,
        one_shot_threshold: float | None = None,
    ) -> Losses:
        """The loss of one micro-step: cross entropy on the answers, and with a target focal + dice on the map.

        Args:
            images: (B, 3, S, S), normalised; with ``maps``, features of which only the embedding is used.
            max_length: longest text, in tokens; longer ones are cut.
            maps: (B, 1, 224, 224) for the prompt learner; the loss is then the text's alone. None computes them.
            class_names: B names; None (instruction data) stands for ``object`` in all.
            target: (B, 1, 224, 224), 1 where anomalous; None for instruction data.
            references: (G, R, 3, S, S): R views of a normal photo for each B / G consecutive images. The map against
                them is then the prompt learner's input (the one-shot branch); the pixel losses remain on the text map.
            one_shot_threshold: calibrates the one-shot map (0.5 at the threshold); None leaves it raw, as in the paper.
        """
        features = images if isinstance(images, ImageFeatures) else self.encode(images)
        answer, accuracy, focal, dice = torch.zeros(4, device=self.device)
        if maps is None:
            probabilities = self.text_probabilities(features, class_names or [UNNAMED_CLASS] * len(features))
            if target is not None:
                focal, dice = pixel_loss(probabilities, target.to(probabilities.device))
            # The text map is not detached: the language loss trains the image decoder too.
            maps = anomaly_map(probabilities)
            if references is not None:
                maps = self._one_shot_maps(features, references)
                maps = maps if one_shot_threshold is None else calibrate_map(maps, one_shot_threshold)
        if self.has_llm:
            batch = training_batch(conversations, self.tokenizer, max_length)
            logits, labels = self._answer_logits(self.prompt_embeds(features, maps), *batch)
            answer, accuracy = answer_loss(logits, labels), token_accuracy(logits, labels)
        return Losses(answer + focal + dice, answer, focal, dice, accuracy)

    def _one_shot_maps(self, features: ImageFeatures, references: Tensor) -> Tensor:
        """B images and (G, R, 3, S, S) -> (B, 1, 224, 224), each image against the references of its group."""
        encoded, rows = self.encode(references.flatten(0, 1)), torch.arange(len(features)).chunk(len(references))
        banks = [MemoryBank(encoded[each]) for each in torch.arange(len(encoded)).chunk(len(references))]
        return torch.cat([bank.anomaly_map(features[each], MAP_SIZE) for bank, each in zip(banks, rows, strict=True)])

    def _answer_logits(self, before: Tensor, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K, vocabulary) and labels (B, K) of the last K positions, from just before the first answer on."""
        embeds = torch.cat([before, self.llama_model.get_input_embeddings()(ids.to(before.device))], dim=1)
        labels = F.pad(labels, (before.shape[1], 0), value=IGNORE_INDEX).to(before.device)
        answered = (labels != IGNORE_INDEX).any(dim=0).nonzero()
        first = int(answered[0]) if len(answered) else labels.shape[1] - 1
        # Logits before the first answer are never used, and the vocabulary makes them the largest tensor here.
        kept = labels.shape[1] - first + 1
        logits = self.llama_model(inputs_embeds=embeds, logits_to_keep=kept).logits
        return logits, labels[:, -kept:]
