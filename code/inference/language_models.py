"""Language models that answer about a photo: AnomalyGPT's own, a Hugging Face chat model, or one at an endpoint."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import takewhile
from typing import Any

import torch

from anomalygpt.config.schema import ExperimentConfig, LlmConfig
from anomalygpt.config.settings import GenerationSettings
from anomalygpt.datasets.class_info import phrase_table
from anomalygpt.datasets.dialogue import Turn
from anomalygpt.datasets.findings import Findings, findings_text, language_of
from anomalygpt.datasets.findings_dialogue import clean_question, with_findings
from anomalygpt.errors import UserError, reading
from anomalygpt.inference.results import ImageResult
from anomalygpt.inference.visualize import jpeg_uri
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.build import available
from anomalygpt.model.chat import answer_text, chat_prompt, conversation_ids, layout_of
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.generation import ConversationCache, growing_text, stream_tokens, turn_tokens
from anomalygpt.model.llm import placement

API_KEY = "ANOMALYGPT_API_KEY"  # environment variable; a config that names a foreign endpoint gets no other key
PICTURE_SIDE = 1024  # pixels; larger photos are made smaller before they are sent
THOUGHTS = re.compile(r"^\s*<think>.*?(?:</think>|$)", re.DOTALL)  # of models that think first

History = Sequence[tuple[str, str]]  # earlier (question, answer) pairs about a photo
Messages = list[dict[str, Any]]  # each with ``role`` and ``content``


class PromptedModel:
    """AnomalyGPT's own: it reads the image's embedding, the map's learned prompts and, from stage 3 on, the findings.

    The keys and values of the latest photo's conversation are kept: a follow-up question computes only what is new.
    """

    def __init__(self, model: AnomalyGPT, settings: GenerationSettings, reads_findings: bool = True) -> None:
        self.model, self.settings, self.reads_findings = model, settings, reads_findings
        self._image: ImageResult | None = None  # that the cache belongs to
        self._cache = ConversationCache()

    def texts(self, image: ImageResult, question: str, history: History, opening: str = "") -> Iterator[str]:
        """Yields the answer so far, from its opening on, after each piece; each text begins with the one before."""
        tokenizer = self.model.tokenizer
        begun = tokenizer.encode(opening) if opening else []
        ids = self.ids(image, question, history) + begun
        cache = self._cache if self._image is image else ConversationCache()
        self._image = None  # taken: another answer about the same photo begins with an empty one meanwhile
        with torch.inference_mode():
            # The keys and values of a conversation that goes on hold it already.
            prefix = None if cache.past else self.model.prompt_embeds(image.features, image.prompt_map)
        tokens = stream_tokens(self.model.llama_model, prefix, ids, cache, self.settings)
        try:
            yield from growing_text(turn_tokens(tokens, tokenizer), begun, partial(answer_text, tokenizer=tokenizer))
        finally:
            self._image, self._cache = image, cache

    def answers(self, images: Sequence[ImageResult], questions: Sequence[str]) -> list[str]:
        """The answer to a question about each of several photos, generated at once."""
        features = ImageFeatures((), torch.cat([image.features.embedding for image in images]))  # all that is read
        ids = [self.ids(*pair) for pair in zip(images, questions, strict=True)]
        return self.model.answer(features, torch.cat([image.prompt_map for image in images]), ids, self.settings)

    def ids(self, image: ImageResult, question: str, history: History = ()) -> list[int]:
        """Findings, earlier turns and the question, encoded as the model was trained."""
        tokenizer = self.model.tokenizer
        if not self.reads_findings:
            return tokenizer.encode(chat_prompt(history, question, layout_of(tokenizer)))
        turns: list[Turn] = []
        for asked, answer in (*history, (question, "")):
            asked = clean_question(asked) if turns else with_findings(clean_question(asked), image.findings)
            turns += [Turn("human", asked), Turn("assistant", answer)]
        return conversation_ids(turns[:-1], tokenizer)[0]


def chat_messages(findings: Findings, question: str, history: History) -> Messages:
    """Rules and findings in the question's language, the earlier turns, and the question."""
    language = language_of(question)
    rules = phrase_table(f"findings_{language}")["chat_model"]["rules"]
    messages = [{"role": "system", "content": f"{rules}\n{findings_text(findings, language)}"}]
    for asked, answer in (*history, (question, "")):
        messages += [{"role": "user", "content": clean_question(asked)}, {"role": "assistant", "content": answer}]
    return messages[:-1]


def without_system(messages: Messages) -> Messages:
    """The same for a template without a system role: the system message stands before the first question."""
    system, first, *rest = messages
    text, content = system["content"], first["content"]
    content = f"{text}\n\n{content}" if isinstance(content, str) else [{"type": "text", "text": text}, *content]
    return [{"role": "user", "content": content}, *rest]


class ChatModel:
    """A Hugging Face chat model; the keys and values of its latest conversation are kept."""

    def __init__(self, llm: Any, tokenizer: Any, settings: GenerationSettings) -> None:
        self.llm, self.tokenizer, self.settings = llm, tokenizer, settings
        ends = llm.generation_config.eos_token_id
        self.stop = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        self._encode = partial(tokenizer.encode, add_special_tokens=False)
        self._caches = [ConversationCache()]  # of copies, too: an answer takes it out while it is written

    def texts(self, image: ImageResult, question: str, history: History, opening: str = "") -> Iterator[str]:
        """As :meth:`PromptedModel.texts`."""
        prompt, begun = self._prompt(chat_messages(image.findings, question, history)), self._encode(opening)
        cache = self._caches.pop() if self._caches else ConversationCache()
        tokens = stream_tokens(self.llm, None, [*self._encode(prompt), *begun], cache, self.settings)
        try:
            yield from growing_text(takewhile(lambda token: token not in self.stop, tokens), begun, self._decode)
        finally:
            self._caches[:] = [cache]

    def _prompt(self, messages: Messages) -> str:
        from jinja2 import TemplateError  # here, because it takes a tenth of a second

        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        with suppress(TemplateError):  # some templates refuse a system message, others leave it out
            prompt = self.tokenizer.apply_chat_template(messages, **options)
            if messages[0]["content"] in prompt:
                return prompt
        return self.tokenizer.apply_chat_template(without_system(messages), **options)

    def _decode(self, ids: Sequence[int]) -> str:
        return THOUGHTS.sub("", self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


class EndpointModel:
    """A model behind an OpenAI-compatible endpoint: of vLLM, ollama, llama.cpp, ``transformers serve``, a cloud."""

    def __init__(self, config: LlmConfig) -> None:
        import openai  # here, because it takes a second

        self.config, self.settings, self._openai = config, config.generation, openai
        self._key = os.environ.get(API_KEY) or "no-key"
        client = openai.OpenAI(base_url=config.endpoint, api_key=self._key, timeout=config.timeout, max_retries=0)
        self._create: Any = partial(client.chat.completions.create, model=config.model, stream=True)

    def texts(self, image: ImageResult, question: str, history: History, opening: str = "") -> Iterator[str]:
        """As :meth:`PromptedModel.texts`. Raises :class:`UserError` where the model can't be reached."""
        messages = chat_messages(image.findings, question, history)
        phrases = phrase_table(f"findings_{language_of(question)}")["chat_model"]
        if opening:  # a server can only be asked to begin with it
            messages[-1]["content"] += "\n" + phrases["opening"].format(opening=opening)
        if self.config.attach_images:
            uris = [jpeg_uri(picture, PICTURE_SIDE) for picture in (image.photo, image.plot())]
            pictures = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
            caption = {"type": "text", "text": f"{phrases['pictures']}\n{messages[1]['content']}"}
            messages[1]["content"] = [*pictures, caption]
        text = ""
        try:
            with self._open(messages) as chunks:
                for chunk in chunks:
                    text += "".join(choice.delta.content or "" for choice in chunk.choices[:1])
                    yield THOUGHTS.sub("", text).strip()
            if not THOUGHTS.sub("", text).strip():
                raise ValueError("an empty reply; a model that thinks first needs more llm.generation.max_new_tokens")
        except (self._openai.OpenAIError, ValueError, TypeError, AttributeError) as error:  # of odd chunks
            raise UserError(f"llm.endpoint {self.config.endpoint}: {self._explain(error)}") from None

    def _open(self, messages: Messages) -> Any:
        sampling = self.settings.model_dump(include={"temperature", "top_p"})
        try:
            return self._create(messages=messages, max_tokens=self.settings.max_new_tokens, **sampling)
        except self._openai.BadRequestError:  # some models take no sampling settings, some templates no system message
            return self._create(messages=without_system(messages))

    def _explain(self, error: Exception) -> str:
        """One line without the key, which some servers repeat."""
        hints = dict.fromkeys((401, 403), f"; the key is the environment variable {API_KEY}")
        hints[404] = f"; expected a URL that ends in /v1, and that {self.config.model} is a model there"
        reason = f" ({error.__cause__})" if error.__cause__ else ""
        line = " ".join(f"{type(error).__name__}: {error}{reason}".replace(self._key, "…").split())
        return f"{line[:200]}{hints.get(getattr(error, 'status_code', 0), '')}"


LanguageModel = PromptedModel | ChatModel | EndpointModel


def build_chat_model(config: ExperimentConfig, encoder: Any) -> ChatModel | EndpointModel | None:
    """What answers with ``inference.findings: system``, else None; :class:`UserError` for an unfit ``llm.weights``."""
    if config.llm is None or config.own_llm is not None:
        return None
    if config.llm.endpoint:
        return EndpointModel(config.llm)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder, weight = available(config.llm.weights, "llm.weights"), next(encoder.parameters())
    load: Any = partial(AutoModelForCausalLM.from_pretrained, output_loading_info=True, local_files_only=True)
    with reading(folder, "a Hugging Face language model"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            planned = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
        llm, found = load(folder, **placement(planned, weight.dtype, weight.device, config.llm.precision))
    if found["missing_keys"] or not tokenizer.chat_template:
        lacks = f"weights for {min(found['missing_keys'])}" if found["missing_keys"] else "chat template"
        raise UserError(f"{folder}: no {lacks} there, so inference.findings=system can't ask this model")
    return ChatModel(llm.eval(), tokenizer, config.llm.generation)
