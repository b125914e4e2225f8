"""Every setting of an experiment, typed; the defaults are the paper's (AnomalyGPT section 4; specification 7)."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from anomalygpt.config import settings

Precision = Literal["fp32", "fp16", "bf16"]
Part = Literal["image_decoder", "prompt_learner", "states", "llama_proj", "lora"]
Kind = Literal["mvtec", "mvtec_ad_2", "visa", "loco", "crack_forest", "mpdd", "btad", "kolektor_sdd", "kolektor_sdd2",
               "dagm", "real_iad", "coco", "yolo", "labelme", "folder", "csv"]  # fmt: skip
Decay = Annotated[float, Field(ge=0, lt=1)]
# NumPy's generators take 32 bits, and each process of a run adds its rank.
Seed = Annotated[int, Field(ge=0, lt=2**32 - 2**16)]

ANOMALYGPT_PARTS: tuple[Part, ...] = ("image_decoder", "prompt_learner")


class EncoderConfig(settings.Settings):
    """The frozen image encoder (docs/new_backbone.md).

    Attributes:
        taps: block numbers from 0; None takes the encoder's own.
        windows: in place of taps, sides in patches, for CLIP's text maps without training.
        backend: what encodes photos on a CPU (docs/deploy.md); ``openvino_bf16`` in bfloat16, where the CPU can.
        graph: an encoder that export.py wrote, for a backend other than torch. None writes one when first needed.
    """

    kind: Literal["imagebind", "dinov2", "timm", "open_clip"] = "imagebind"
    name: str = "imagebind_huge"
    weights: str = "pretrained_ckpt/imagebind_ckpt/imagebind_huge.pth"
    image_size: settings.Positive = 224
    taps: tuple[int, ...] | None = None
    windows: tuple[settings.Positive, ...] = ()
    backend: Literal["torch", "onnx", "openvino", "openvino_bf16"] = "torch"
    graph: str | None = None

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "EncoderConfig":
        only = {"imagebind": "imagebind_huge", "dinov2": "dinov2_vits14"}.get(self.kind, self.name)
        if self.name != only:
            raise ValueError(f"name {self.name!r}: kind {self.kind} has {only} alone; the other kinds have others")
        if self.windows and (self.kind != "open_clip" or self.taps):
            raise ValueError("windows are for kind open_clip, in place of taps")
        return self


class LlmConfig(settings.Settings):
    """A folder in Hugging Face's layout, or a model behind an OpenAI-compatible endpoint (docs/language_models.md).

    Attributes:
        weights: the folder; without effect beside an endpoint.
        endpoint: base URL, which usually ends in ``/v1``. Its models always answer by ``inference.findings: system``.
        chat: how turns are marked for a model that is trained here: the paper's way, or its folder's chat ``template``.
        precision: of its own, frozen weights: ``full`` is the experiment's, ``8bit`` and ``4bit`` (NF4) are
            bitsandbytes'. ``auto``: on a GPU whose free memory is too small, 8 or 4 bit for inference; else ``full``,
            with LoRA merged into a LLaMA model that only answers on a GPU.
            ``bf16``: where a LLaMA model only answers on a CPU, bfloat16 without transformers; else as ``auto``.
    """

    weights: str = "pretrained_ckpt/vicuna_ckpt/7b_v0"
    precision: Literal["auto", "full", "bf16", "8bit", "4bit"] = "auto"
    endpoint: Annotated[str, Field(pattern="^https?://.")] | None = None
    model: str | None = None
    attach_images: bool = False
    timeout: Annotated[float, Field(gt=0)] = 60
    chat: Literal["vicuna", "template"] = "vicuna"
    max_target_tokens: settings.Positive = 1024
    lora: settings.LoraSettings = settings.LoraSettings()
    generation: settings.GenerationSettings = settings.GenerationSettings()

    @model_validator(mode="after")
    def _is_one_model(self) -> "LlmConfig":
        if not self.weights and not self.endpoint:
            raise ValueError("expected weights or an endpoint")
        if bool(self.endpoint) != bool(self.model) or (self.attach_images and not self.endpoint):
            raise ValueError("endpoint needs model, a model's name; model and attach_images are for an endpoint only")
        return self


class DeltaConfig(settings.Settings):
    """A file of trained tensors, and the parts of the model that it must hold."""

    path: str
    parts: tuple[Part, ...]


class InferenceConfig(settings.Settings):
    """How photos are compared, scored and answered about; docs/references.md has what is not listed here.

    Attributes:
        geometry: ``squash`` shows the complete photo everywhere; ``official`` is the released table (specification 2).
        text_class_rule: how a class is found in a question: ``longest_word``, or the released ``official`` rule.
        false_alarm_rate: with references, the fraction of normal photos that may be reported anomalous.
        calibration: by preset of ``references``, what is known of the scores of other parts, with this encoder.
        findings: what is known about a photo, as text that answers are checked against; the verdict is the score's.
            ``none``, as in the paper; ``prompt``: before the question, for a model that was trained to read them;
            ``system``: the system message of any chat model, without the map's prompts.
        verdict: which wins where the answer's yes or no and the calibrated score contradict each other.
        prompt_map: what the prompt learner sees: ``raw`` distances (the paper), or ``calibrated`` ones.
    """

    geometry: Literal["squash", "official"] = "squash"
    text_class_rule: Literal["longest_word", "official"] = "longest_word"
    text_scales: settings.Scales = (1,)
    text_top_share: settings.Fraction = 0.0
    map_threshold: settings.Fraction = 0.5
    references: settings.ReferenceSettings = settings.ReferenceSettings()
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    calibration: dict[str, settings.PartsPrior] = {}
    other_part_above: Annotated[float, Field(gt=0)] | None = None
    known_parts: str | None = None
    unknown_part_above: Annotated[float, Field(gt=0)] = 0.35
    undecided: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    findings: Literal["none", "prompt", "system"] = "none"
    verdict: Literal["answer", "score"] = "answer"
    prompt_map: Literal["raw", "calibrated"] = "raw"


class DataSource(settings.Settings):
    """One tree of photos, or for ``csv`` the table that lists them. ``classes`` None takes all."""

    kind: Kind
    root: str
    classes: tuple[str, ...] | None = None


class InstructionSource(settings.Settings):
    """Conversations about everyday photos, which preserve general abilities (PandaGPT's; specification 7)."""

    conversations: str = "data/pandagpt4_visual_instruction_data.json"
    images: str = "data/images"


class DataConfig(settings.PhotoSettings):
    """What is trained on; the settings of :class:`PhotoSettings` hold for prediction and evaluation, too.

    Attributes:
        defects: ``simulated`` on normal photos (NSA; specification 8), or ``real`` ones with people's masks.
        findings: conversations per epoch about findings drawn at random, in place of photos: text alone is trained.
        instructions: conversations about other things; None trains on defects alone.
        languages: of questions and answers; one is drawn for each photo, a language named twice twice as often.
        patch_source: a defect's patch comes from a photo of the ``same`` class, or of ``any`` (the paper's code).
        drawn_share: how often a simulated defect is drawn (a scratch, a stain, a hole …) in place of a pasted patch.
        follow_up_questions: whether conversations go on after the verdict (where, how many, how large, what).
        description_share: how often a question says what a good part looks like.
        cached_photos: how many photos stay in memory, decoded and, but under ZeRO 3, encoded; losses do not change.
    """

    sources: tuple[DataSource, ...] = ()
    defects: Literal["simulated", "real"] = "simulated"
    findings: Annotated[int, Field(ge=0)] = 0
    instructions: InstructionSource | None = None
    languages: Annotated[tuple[Literal["en", "zh"], ...], Field(min_length=1)] = ("en",)
    patch_source: Literal["same", "any"] = "same"
    drawn_share: settings.Fraction = 0.0
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    follow_up_questions: bool = False
    description_share: settings.Fraction = 0.7
    unreadable: Literal["skip", "refuse"] = "skip"
    cached_photos: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = 4


class OptimizerConfig(settings.Settings):
    """AdamW with linear warm-up and linear decay."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: settings.NotNegative = 1e-8
    weight_decay: settings.NotNegative = 1e-3
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    warmup_share: settings.Fraction = 0.1
    min_warmup_steps: Annotated[int, Field(ge=0)] = 10


class TrainingConfig(settings.Settings):
    """The trainer's settings (docs/training.md). The effective batch, in pairs [normal, defect], is ``batch_size``.

    Attributes:
        answers: False trains the map alone, without loading the language model: a quick first stage.
        steps: None derives them from ``epochs``.
        one_shot_probability: how often the prompt learner sees the one-shot map in place of the text map.
        one_shot_threshold: calibrates that map by this typical threshold, as ``inference.prompt_map`` will; None: raw.
        rotated_references: whether the one-shot reference counts in its four rotations.
        gradient_checkpointing: recomputes the language model's activations: a third more time, far less memory.
        validate_every: how often, in steps, held-back pairs are measured, and two drawn with target, map and answer.
        log: the folder of TensorBoard's events; None: ``tensorboard`` in the run's folder.
    """

    trainable: tuple[Part, ...] = ANOMALYGPT_PARTS
    answers: bool = True
    epochs: settings.Positive = 50
    steps: settings.Positive | None = None
    batch_size: settings.Positive = 16
    micro_batch_size: settings.Positive = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    one_shot_probability: settings.Fraction = 0.5
    one_shot_threshold: Annotated[float, Field(gt=0)] | None = None
    rotated_references: bool = True
    precision: Precision = "fp16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = True
    gradient_checkpointing: bool = True
    save_every: settings.Positive = 500
    keep_checkpoints: settings.Positive = 2
    validate_every: settings.Positive = 500
    validation_pairs: settings.Positive = 64
    tracker: Literal["wandb", "mlflow", "trackio"] | None = None
    output: str = "runs/imagebind_vicuna7b"
    log: str | None = None

    @property
    def offloads(self) -> bool:
        """Whether the optimiser is on the CPU. DeepSpeed moves it there from ZeRO stage 1 on."""
        return self.offload_optimizer and self.zero_stage > 0


class ExperimentConfig(settings.Settings):
    """One experiment, as a YAML file in this folder describes it. Paths: :func:`config.load.resolve`."""

    name: str = "imagebind_vicuna7b"
    seed: Seed = 42
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    encoder: EncoderConfig = EncoderConfig()
    llm: LlmConfig | None = LlmConfig()
    deltas: tuple[DeltaConfig, ...] = ()
    inference: InferenceConfig = InferenceConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()

    @property
    def own_llm(self) -> LlmConfig | None:
        """The language model that is part of AnomalyGPT; None where there is none, or any chat model answers."""
        return None if self.inference.findings == "system" else self.llm

    @model_validator(mode="before")
    @classmethod
    def _endpoint_gets_text_alone(cls, values: dict[str, Any]) -> dict[str, Any]:
        llm, inference = values.get("llm"), values.get("inference") or {}
        if isinstance(llm, dict) and llm.get("endpoint") and isinstance(inference, dict):
            values = values | {"llm": llm | {"weights": ""}, "inference": inference | {"findings": "system"}}
        return values

    @model_validator(mode="after")
    def _parts_exist(self) -> "ExperimentConfig":
        if not self.training.trainable:
            raise ValueError("training.trainable: expected at least one part")
        if self.encoder.kind in ("imagebind", "open_clip") and "states" in self.training.trainable:
            raise ValueError("training.trainable: 'states' are for encoders without a text tower; this one has it")
        if self.llm and self.llm.precision in ("8bit", "4bit") and self.training.zero_stage == 3:
            raise ValueError(f"llm.precision {self.llm.precision}: ZeRO stage 3 can't divide it; expected stage 0 to 2")
        if self.data.findings and {"image_decoder", "states"} & set(self.training.trainable):
            raise ValueError("training.trainable: data.findings has no photos to train image_decoder or states on")
        return self
