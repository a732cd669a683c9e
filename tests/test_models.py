"""Any local Hugging Face causal LM that TransformerLens converts, whatever its folder is called."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_model
from transformers import AutoModelForCausalLM

from sae_variants.language_model.folders import register_model_folder
from sae_variants.language_model.hooks import hook_activations, hook_width
from sae_variants.language_model.load import load_model
from sae_variants.language_model.target import make_local_target


@pytest.mark.parametrize(
    ("kind", "folder"),
    [
        ("neox", "plain"),
        ("gpt2", "my-llama-and-bert-t5"),
        ("llama", "Llama-2-7b"),
        ("gemma2", "gemma-2-2b"),
        ("mistral", "m"),
        ("qwen2", "q"),
        ("qwen3", "q"),
        ("opt", "o"),
        ("phi", "p"),
        ("gptj", "g"),
        # these run in TransformerLens' bridge
        ("gemma", "gemma-2b"),
        ("gemma3", "g"),
        ("falcon", "f"),
        ("olmo2", "o"),
    ],
)
def test_a_local_model_gives_the_numbers_of_hugging_face(kind, folder, tmp_path, text_file):
    path = make_model(tmp_path / folder, kind, scale=3, biases=0.3)
    before = {file: file.read_bytes() for file in path.iterdir()}
    target = make_local_target(str(path), "blocks.1.hook_resid_post", str(text_file))
    model = load_model(target.model_name, "cpu", "float32")
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokens = torch.randint(1, theirs.config.vocab_size, (3, 20))
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens).log_softmax(-1), theirs(tokens).logits.log_softmax(-1), rtol=1e-5, atol=1e-4
        )
    assert hook_width(model, target.hook_name) == 32
    assert {file: file.read_bytes() for file in path.iterdir()} == before, "nothing is written into a model's folder"


def test_a_name_follows_the_content(tmp_path, model_folder):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    assert register_model_folder(copy) == register_model_folder(model_folder)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rotary_pct": 0.5}))
    assert register_model_folder(copy) != register_model_folder(model_folder)


def test_the_sandbox_is_known_to_transformer_lens_by_its_short_name():
    import sae_lens  # noqa: F401
    from transformer_lens import HookedTransformer

    import sae_variants  # noqa: F401

    assert HookedTransformer.from_pretrained_no_processing("sandbox").cfg.n_layers == 6


def test_activations_stop_at_the_hook(target):
    model = load_model(target.model_name, "cpu", "float32")
    tokens = torch.randint(1, 50, (5, 16))
    _, cache = model.run_with_cache(tokens)
    for hook in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"):
        torch.testing.assert_close(hook_activations(model, hook, contexts_per_pass=2)(tokens), cache[hook])
