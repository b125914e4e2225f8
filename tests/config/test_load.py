"""Experiments as YAML: what ships loads, what is mistyped is named."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from anomalygpt.config.load import CONFIG_FOLDER, commit, home, load_config, names, resolve, to_yaml
from anomalygpt.config.schema import ANOMALYGPT_PARTS, ExperimentConfig
from anomalygpt.config.settings import ReferenceSettings
from anomalygpt.errors import UserError

PAPER = "imagebind_vicuna7b"


def refused(source: str | Path, *overrides: str) -> str:
    """What is said about a config that does not load."""
    with pytest.raises(UserError) as error:
        load_config(source, overrides)
    return str(error.value)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes YAML files into one folder and returns the first one's path."""

    def write_all(**texts: str) -> Path:
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return tmp_path / f"{next(iter(texts))}.yaml"

    return write_all


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_yaml_loads_under_its_own_name_and_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path.stem)
    assert config.name == path.stem and path.stem in names()
    assert load_config(path) == config
    changed = load_config(path.stem, ["seed=7", "name=瓶子", "training.optimizer.lr=3e-5"])
    (tmp_path / "config.yaml").write_text(to_yaml(changed), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == changed


def test_defaults_are_the_papers() -> None:
    training, optimizer = ExperimentConfig().training, ExperimentConfig().training.optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (1e-3, (0.9, 0.95), 1e-8, 1e-3)
    assert (optimizer.clip_norm, optimizer.warmup_share, optimizer.min_warmup_steps) == (1.0, 0.1, 10)
    assert (training.batch_size, training.epochs, training.precision, training.zero_stage) == (16, 50, "fp16", 2)
    assert training.offload_optimizer and training.trainable == ANOMALYGPT_PARTS
    assert (training.one_shot_probability, ExperimentConfig().seed) == (0.5, 42)
    lora = ExperimentConfig().llm.lora  # type: ignore[union-attr]
    assert (lora.rank, lora.alpha, lora.dropout, set(lora.targets)) == (32, 32, 0.1, {f"{p}_proj" for p in "qkvo"})


def test_both_vicunas_read_pandagpts_delta_and_then_anomalygpts() -> None:
    for name in (PAPER, "imagebind_vicuna13b"):
        config = load_config(name)
        assert [delta.parts for delta in config.deltas] == [("llama_proj", "lora"), ANOMALYGPT_PARTS]
        assert config.inference.geometry == "official"
        size = name.removeprefix("imagebind_vicuna")
        assert f"/{size}_v0" in config.llm.weights  # type: ignore[union-attr]
        assert f"/{size}/" in config.deltas[0].path


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("traning.steps=3", "unknown key 'traning'; did you mean 'training'?"),
        ("training.optimizer.lrr=3", "training.optimizer: unknown key 'lrr'; did you mean 'lr'?"),
        (
            "data.sources=[{kind: mvtec, root: x, clases: [a]}]",
            "data.sources.0: unknown key 'clases'; did you",
        ),
        ("inference.xyzzy=1", "inference: unknown key 'xyzzy'; expected one of geometry, text_class_rule"),
        ("training.optimizer.lr=hot", "training.optimizer.lr: Input should be a valid number"),
        ("training.optimizer.lr=-1", "training.optimizer.lr: Input should be greater than 0 (got -1)"),
        ("training.optimizer.betas=[0.9, 2]", "training.optimizer.betas.1: Input should be less than 1 (got 2)"),
        ("seed=-1", "seed: Input should be greater than or equal to 0 (got -1)"),
        ("seed=4294967295", "seed: Input should be less than "),
        ("precision=fp8", "precision: Input should be 'auto', 'fp32', 'fp16' or 'bf16' (got 'fp8')"),
        ("training.one_shot_probability=1.5", "training.one_shot_probability: Input should be less than or equal to 1"),
        ("training.trainable=[lor]", "training.trainable.0: Input should be 'image_decoder'"),
        ("training.trainable=[states]", "'states' are for encoders without a text tower"),
        ("data.findings=9", "training.trainable: data.findings has no photos to train image_decoder or states on"),
        ("training.trainable=[]", "training.trainable: expected at least one part"),
    ],
)
def test_unknown_key_or_value_is_reported_with_what_was_expected(override: str, words: str) -> None:
    text = refused(PAPER, override)
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize("override", ["steps", "=3", "", "a=[", "name.x=3", "deltas.0.path=x"])
def test_override_that_is_none_is_quoted(override: str) -> None:
    assert refused("compact", override).startswith(f"override {override!r}: ")


OFFICIAL = "inference.references.preset=official"


def test_fault_is_reported_with_the_file_and_all_overrides(write: Callable[..., Path]) -> None:
    path = write(top="seed: 1\ninference: {map_threshold: abc, references: {preset: fast, top_share: 2}}\n")
    keys = ("inference.map_threshold", "inference.references.top_share")
    assert [line.partition(": Input")[0] for line in refused(path).splitlines()] == [f"{path}: {key}" for key in keys]
    overrides = ("seed=2", "inference.references.top_share=0.1")
    assert refused(path, *overrides).startswith(f"{path} with {' '.join(overrides)}: inference.map_threshold: Input ")
    text = refused("compact", OFFICIAL, "inference.references.smoothing=1")
    assert text.startswith(f"{CONFIG_FOLDER / 'compact.yaml'} with {OFFICIAL} inference.references.smoothing=1: ")
    assert "takes no other setting, but smoothing is set" in text


def test_unknown_keys_are_reported_each_with_a_similar_one(write: Callable[..., Path]) -> None:
    path = write(top="training: {cache: 2, stepz: 3}\n")
    line = refused(path)
    assert line.startswith(f"{path}: training: unknown key 'cache'")
    assert line.endswith("; unknown key 'stepz'; did you mean 'steps'?")


@pytest.mark.parametrize("override", [OFFICIAL, "inference.references={preset: official}"])
def test_official_as_an_override_drops_what_the_file_says_of_its_own_preset(override: str) -> None:
    inference = load_config("compact", [override]).inference
    assert inference.references == ReferenceSettings(preset="official")


def test_preset_override_keeps_other_overrides_and_a_file_of_that_preset(write: Callable[..., Path]) -> None:
    inference = load_config("compact", [OFFICIAL, "inference.references.preset=best"]).inference
    assert inference.references == ReferenceSettings(preset="best", text_weight=0.35, text_trusted_below=0.15)


@pytest.mark.parametrize("overrides", [[], [OFFICIAL], ["inference.references.preset=best"]])
def test_config_written_in_full_loads_again_and_takes_another_preset(tmp_path: Path, overrides: list[str]) -> None:
    for name in ("compact", PAPER):
        (tmp_path / "config.yaml").write_text(to_yaml(load_config(name)), encoding="utf-8")
        again = load_config(tmp_path / "config.yaml", overrides).inference
        assert again == load_config(name, overrides).inference


def test_overrides_reach_nested_settings_in_yaml_syntax() -> None:
    config = load_config(
        "compact",
        [
            "training.optimizer.lr=1e-4",  # YAML 1.1 takes it for a string
            "training.optimizer.betas=[0.8, 0.9]",
            "encoder.taps=[2, 5]",
            "training.steps=null",
            "training.answers=no",
            "llm.generation.temperature=0",
            "name=a=b",
            "seed=1",
            "seed=2",  # the later one wins
        ],
    )
    assert (config.training.optimizer.lr, config.training.optimizer.betas) == (1e-4, (0.8, 0.9))
    assert (config.encoder.taps, config.training.steps, config.training.answers) == ((2, 5), None, False)
    assert config.llm is not None
    assert (config.llm.generation.temperature, config.llm.lora.rank) == (0, 6)  # the second as in the file
    assert (config.name, config.seed) == ("a=b", 2)


def test_base_is_changed_key_by_key(write: Callable[..., Path]) -> None:
    middle = "base: compact\nseed: 7\ndeltas: []\ntraining: {steps: 2, batch_size: 2}\n"
    path = write(top="base: middle\ntraining: {steps: 3}\n", middle=middle)
    config = load_config(path)
    assert (config.seed, config.training.steps, config.training.batch_size) == (7, 3, 2)
    assert (config.encoder, config.deltas) == (load_config("compact").encoder, ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "cannot be read as YAML"),
        ("\x00", "cannot be read as YAML"),
        ("- a\n- b\n", "expected settings (key: value), found list"),
        ("base: nowhere\n", f"no config 'nowhere'; expected a YAML file, or one of {', '.join(names())}"),
        ("base: top\n", "'base' leads back to itself"),
        ("base: [compact]\n", "no config \"['compact']\""),
        ("sede: 3\n", "did you mean 'seed'?"),
    ],
)
def test_yaml_that_is_none_is_named(write: Callable[..., Path], text: str, words: str) -> None:
    message = refused(write(top=text))
    assert words in message
    assert "\n" not in message


def test_relative_paths_start_at_the_checkout_or_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ANOMALYGPT_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert home() == CONFIG_FOLDER.parents[1]
    assert resolve("pretrained_ckpt/x") == (CONFIG_FOLDER.parents[1] / "pretrained_ckpt" / "x").resolve()
    monkeypatch.setenv("ANOMALYGPT_HOME", str(tmp_path))
    assert home() == tmp_path
    assert resolve("pretrained_ckpt/x") == tmp_path.resolve() / "pretrained_ckpt" / "x"
    assert resolve("/elsewhere/x") == Path("/elsewhere/x")


def test_the_commit_is_the_codes_own_and_a_wheel_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``tmp_path`` is another project, with one commit, and a wheel is installed in an environment below it."""
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init", "--quiet"), (*author, "commit", "--quiet", "--allow-empty", "--message", "theirs")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    own = commit()
    monkeypatch.setenv("ANOMALYGPT_HOME", str(tmp_path))
    assert commit() == own
    monkeypatch.setattr("anomalygpt.config.load.CONFIG_FOLDER", tmp_path / "code" / "config")
    assert commit() not in (None, own)
    packages = tmp_path / ".venv" / "site-packages"
    (packages / "anomalygpt" / "config").mkdir(parents=True)
    monkeypatch.setattr("anomalygpt.config.load.CONFIG_FOLDER", packages / "anomalygpt" / "config")
    monkeypatch.chdir(tmp_path)
    assert commit() is None


SERVER = ["llm.endpoint=http://localhost:8000/v1", "llm.model=small"]


def test_endpoint_takes_the_place_of_the_weights_of_any_config(write: Callable[..., Path], tmp_path: Path) -> None:
    child = write(child="base: compact\nllm: {endpoint: 'http://localhost:8000/v1', model: small}")
    for config in (load_config(PAPER, SERVER), load_config("compact", SERVER), load_config(child)):
        assert config.llm is not None and config.own_llm is None
        assert (config.llm.weights, config.inference.findings) == ("", "system")
        (tmp_path / "full.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert load_config(tmp_path / "full.yaml") == config
    assert load_config(child).llm.generation.max_new_tokens == 96  # type: ignore[union-attr]
    assert load_config("compact").own_llm is not None
    assert load_config("compact", ["inference.findings=system"]).own_llm is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["llm.weights=''"], "expected weights or an endpoint"),
        (SERVER[:1], "endpoint needs model"),
        (SERVER[1:], "model and attach_images are for an endpoint only"),
        (["llm.attach_images=true"], "model and attach_images are for an endpoint only"),
        (
            ["llm.endpoint=localhost:8000/v1", "llm.model=small"],
            "llm.endpoint: String should match pattern '^https?://",
        ),
    ],
)
def test_setting_that_belongs_to_another_kind_of_language_model_is_one_line(overrides: list[str], words: str) -> None:
    message = refused("compact", *overrides)
    assert words in message and len(message.splitlines()) == 1
