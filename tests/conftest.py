"""Tiny language models and texts that the tests make themselves; nothing is fetched from anywhere."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["COLUMNS"] = "200"  # tables are not cut, whatever the terminal
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # each core has a process of its own
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from types import SimpleNamespace

import pytest

WORDS = "the cat sat on a mat while seven red birds sang of rain and the river ran past old stone walls".split()


def make_text(documents: int = 400) -> list[str]:
    import random

    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(20, 60))) for _ in range(documents)]


def make_tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(make_text(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.save_pretrained(folder)
    return len(fast)


def model_config(kind: str, vocab_size: int, layers: int = 2):
    """A Hugging Face config of width 32."""
    import transformers as t

    shared = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    wide = {**shared, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
    plain = {**wide, "intermediate_size": 64, "max_position_embeddings": 128}
    grouped = {**plain, "num_key_value_heads": 1}
    gated = {**grouped, "head_dim": 16}
    gpt = {**shared, "n_embd": 32, "n_layer": layers, "n_head": 2, "n_positions": 128}
    opt = {**wide, "ffn_dim": 64, "max_position_embeddings": 128, "word_embed_proj_dim": 32}
    return {
        "neox": lambda: t.GPTNeoXConfig(**plain, initializer_range=0.2),
        "gpt2": lambda: t.GPT2Config(**gpt),
        "gptj": lambda: t.GPTJConfig(**gpt, rotary_dim=8),
        "opt": lambda: t.OPTConfig(**opt),
        "falcon": lambda: t.FalconConfig(**wide),
        "llama": lambda: t.LlamaConfig(**gated),
        "mistral": lambda: t.MistralConfig(**gated, sliding_window=16),
        "qwen2": lambda: t.Qwen2Config(**grouped),
        "qwen3": lambda: t.Qwen3Config(**gated),
        "gemma": lambda: t.GemmaConfig(**gated),
        "gemma2": lambda: t.Gemma2Config(**gated, query_pre_attn_scalar=16),
        "gemma3": lambda: t.Gemma3TextConfig(**gated, query_pre_attn_scalar=16),
        "phi": lambda: t.PhiConfig(**plain),
        "olmo2": lambda: t.Olmo2Config(**plain),
        "bert": lambda: t.BertConfig(**plain),
    }[kind]()


def make_model(
    folder: Path, kind: str = "neox", scale: float = 1.0, biases: float = 0.0, layers: int = 2, **fields
) -> Path:
    """A random causal LM of width 32, saved as a Hugging Face folder.

    Args:
        kind: The family.
        layers: Its number of layers.
        scale: Factor of the weight matrices.
        biases: Standard deviation of the biases; 0 leaves them as they are initialized.
        fields: Fields of the config.
    """
    import torch
    import transformers as t

    folder.mkdir(parents=True)
    config = model_config(kind, make_tokenizer(folder), layers)
    for field, value in fields.items():
        setattr(config, field, value)
    torch.manual_seed(0)
    model = (t.AutoModelForMaskedLM if kind == "bert" else t.AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.mul_(scale)
            elif biases and name.endswith("bias"):
                parameter.normal_(std=biases)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _gradients():
    """SAEBench's own code, where a test lets it fail, leaves gradients switched off for the tests that follow."""
    import torch

    yield
    torch.set_grad_enabled(True)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(make_text()))
    return path


TINY = {
    "d_sae": 64, "k": 4, "training_tokens": 8192, "batch_tokens": 256, "context_size": 33, "stream_window": 4,
    "window": 4, "buffer_contexts": 32, "learning_rate": 1e-2, "dead_after_tokens": 1024,
}  # fmt: skip


def tiny(name: str) -> dict:
    """The settings of a very short training, those that the SAE of that name has."""
    from sae_variants.training.plan import applicable_overrides

    return applicable_overrides(name, {**TINY, "reference_steps": 2, "descent_steps": 6})


@pytest.fixture(scope="session")
def target(model_folder: Path, text_file: Path):
    import sae_lens  # noqa: F401

    from sae_variants.language_model.target import choose_target

    return choose_target("sandbox", str(model_folder), "blocks.1.hook_resid_post", str(text_file))


@pytest.fixture(scope="session")
def trained(target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of trained SAEs that holds a tiny `temporal` and a tiny `stock:batchtopk`."""
    from sae_variants.training.plan import make_plan
    from sae_variants.training.train import train_plans

    root = tmp_path_factory.mktemp("trained")
    train_plans([make_plan(name, target, tiny(name), root) for name in ("temporal", "stock:batchtopk")])
    return root


@pytest.fixture(scope="session")
def model(target):
    from sae_variants.language_model.load import load_model

    return load_model(target.model_name, "cpu", "float32")


def linear_sae(target, encode, decode):
    """An SAE of ReLU(x W_enc) W_dec with these weights, said to be trained at that target."""
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=32, d_sae=encode.shape[1], apply_b_dec_to_input=False))
    sae.W_enc.data, sae.W_dec.data = encode, decode
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = target.model_name, target.hook_name
    sae.cfg.metadata.prepend_bos = True
    return sae


def identity(target):
    """Both signs of every channel: gives x back."""
    import torch

    eye = torch.eye(32)
    return linear_sae(target, torch.cat([eye, -eye], 1), torch.cat([eye, -eye], 0))


def zero(target):
    import torch

    return linear_sae(target, torch.zeros(32, 64), torch.zeros(64, 32))


def evaluate(
    name: str, sae, target, model, located=None, prepare: bool = False, truth=None, **settings
) -> SimpleNamespace:
    """What an evaluator says of one SAE, in SAEBench's envelope.

    Args:
        located: where the SAE lies, for evaluators that read more than its weights.
        prepare: settle the settings as a command does.
        truth: the synthetic model, for evaluators that need one.

    Returns:
        `metrics` (category -> name -> number), `unstructured`, `failures`, `files`, `output`, `values` by metric key.
    """
    from pydantic import TypeAdapter

    from eval_runners.contract.contract import UNSTRUCTURED, Context, Evaluation, value_at
    from eval_runners.contract.registry import load_evaluator
    from eval_runners.store.envelope import make_output, output_class
    from sae_variants.common.values import finite_or_none

    evaluator = load_evaluator(name)
    chosen = evaluator.settings_class(**settings)
    if prepare:
        chosen, _ = evaluator.prepare(target, chosen)
    evaluation = evaluator.evaluate(sae, target, chosen, Context(model, "cpu", located, truth))
    evaluation = evaluation if isinstance(evaluation, Evaluation) else Evaluation(evaluation)
    output = evaluation.host_output or make_output(evaluator, chosen, evaluation.values, sae, target)
    TypeAdapter(output_class(evaluator)).validate_python(output)
    unstructured = {**(output.get(UNSTRUCTURED) or {}), **finite_or_none(dict(evaluation.unstructured))}
    result = {**output, UNSTRUCTURED: unstructured}
    return SimpleNamespace(
        metrics=output["eval_result_metrics"],
        unstructured=unstructured,
        failures=list(evaluation.failures),
        files=dict(evaluation.files),
        output=result,
        values={metric.key: value_at(result, metric.path) for metric in evaluator.metrics},
    )


def make_tasks(markers: tuple[str, ...] = ("red", "rain", "walls"), documents: int = 60) -> dict[str, list[str]]:
    """Class -> documents; each holds its class's own word and none of the other classes'."""
    import random

    rng = random.Random(1)
    plain = [word for word in WORDS if word not in markers]
    return {
        marker: [
            " ".join([*rng.choices(plain, k=20), marker, *rng.choices(plain, k=rng.randint(1, 10))])
            for _ in range(documents)
        ]
        for marker in markers
    }


@pytest.fixture(scope="session")
def tasks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "words.csv"
    rows = [f"{text},{label}" for label, texts in make_tasks().items() for text in texts]
    path.write_text("\n".join(["text,label", *rows]))
    return path


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of our own: the user's stays as it is."""
    root = tmp_path_factory.mktemp("cache")
    os.environ["SAE_VARIANTS_CACHE"] = str(root)
    os.environ["SAE_VARIANTS_SYNTHETIC"] = str(root / "synthetic")
    return root


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver (Debian's packages)"
)


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,1000"):
        options.add_argument(word)
    downloads = {"download.default_directory": str(tmp_path_factory.mktemp("downloads"))}
    options.add_experimental_option("prefs", downloads)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.downloads = Path(downloads["download.default_directory"])
    yield driver
    driver.quit()


def opened(driver, page):
    driver.get(page.as_uri())
    for _ in range(200):
        if driver.execute_script("return document.body.dataset.ready") == "yes":
            return driver
        time.sleep(0.05)
    raise AssertionError(driver.get_log("browser"))


AXE = Path(os.environ.get("AXE_CORE", ""))
AS_SEEN = """
const style = document.createElement("style");
style.textContent = ".draglayer { display: none } .bars li { background: var(--bold) }";
document.head.append(style);
"""
"""Script that lets axe-core judge text which it would leave aside: below what catches the pointer, and on bars."""
needs_axe = pytest.mark.skipif(
    not AXE.is_file(), reason="AXE_CORE names no file: axe.min.js of the npm package axe-core"
)


def check_accessible(driver):
    """Let axe-core check everything that it knows of the page that is open: light and dark, on a desk and on a phone."""
    script = (
        "axe.run({ resultTypes: ['violations'] }).then(r => arguments[0](r.violations), e => arguments[0](String(e)))"
    )
    found = []
    driver.execute_script(AS_SEEN)
    driver.execute_script(AXE.read_text())
    try:
        for scheme, (width, height) in itertools.product(("light", "dark"), ((1300, 1000), (390, 844))):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            driver.execute_async_script("setTimeout(arguments[0], 150)")  # a page may draw anew
            violations = driver.execute_async_script(script)
            assert isinstance(violations, list), violations
            found += [
                (scheme, width, each["id"], node["html"][:200], node["failureSummary"])
                for each in violations
                for node in each["nodes"]
            ]
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.get("about:blank")
        fetched(driver)
        driver.get_log("browser")
    assert not found, "\n".join(map(str, found))


def fetched(driver) -> list[str]:
    """What a page asked of any network since it was last asked for."""
    asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("file://", "data:", "blob:"))]
