"""Models that are damaged, converted wrongly or do not fit their tokenizer: right numbers, or one line before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import evaluate, identity, make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval_runners.measures.ablation import Ablation
from sae_variants.common.errors import UsageError
from sae_variants.language_model.folders import model_id, register_model_folder
from sae_variants.language_model.hooks import hook_activations, hook_width, usable_hooks
from sae_variants.language_model.load import load_model
from sae_variants.language_model.target import choose_target


def load(folder: Path):
    return load_model(register_model_folder(folder), "cpu", "float32")


def edit(path: Path, **fields) -> None:
    """Set fields of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture
def copy(model_folder, tmp_path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}}),
        ("neox", {"rope_parameters": {"rope_theta": 50.0, "rope_type": "default", "partial_rotary_factor": 0.25}}),
        ("gpt2", {"n_inner": 48}),
        ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": True}),
        ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    ],
)
def test_what_transformer_lens_converts_wrongly_has_the_numbers_of_hugging_face(kind, fields, tmp_path):
    folder = make_model(tmp_path / "m", kind, scale=8, biases=0.5, **fields)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.randint(1, theirs.config.vocab_size, (2, 40))
    try:
        model = load(folder)
    except UsageError as error:
        assert fields.get("do_layer_norm_before") is False, error  # noqa: PT017
        return
    if kind == "opt":
        with pytest.raises(UsageError, match="reads 16 dimensions of a projection of it, not 32"):
            Ablation(model, "blocks.0.hook_resid_post", tokens, tokens > 0)
    with torch.no_grad():
        expected = theirs(tokens, output_hidden_states=True)
        torch.testing.assert_close(
            model(tokens, prepend_bos=False).log_softmax(-1), expected.logits.log_softmax(-1), rtol=1e-4, atol=1e-4
        )
    acts = hook_activations(model, "blocks.0.hook_resid_post")(tokens)
    torch.testing.assert_close(acts, expected.hidden_states[1], rtol=1e-4, atol=1e-4)


def test_a_bridged_model_answers_like_a_converted_one(target, model, copy, text_file, tasks_file, monkeypatch):
    import transformer_lens.loading_from_pretrained as loading

    def refuse(*args, **kwargs):
        raise NotImplementedError("not converted")

    edit(copy / "config.json", note="another name")
    monkeypatch.setattr(loading, "convert_neox_weights", refuse)
    other = choose_target("sandbox", str(copy), target.hook_name, str(text_file))
    bridged = load_model(other.model_name, "cpu", "float32")
    assert type(bridged).__name__ == "Bridge"
    tokens = torch.randint(1, 300, (2, 12))
    for layers in (1, 2):
        torch.testing.assert_close(
            bridged(tokens, stop_at_layer=layers, prepend_bos=False),
            model(tokens, stop_at_layer=layers, prepend_bos=False),
        )
    settings = {"context_size": 32, "n_eval_reconstruction_batches": 1, "n_eval_sparsity_variance_batches": 1}
    for name, chosen in (("core", settings), ("downstream_loss", {"n_contexts": 16, "context_size": 32})):
        ours, theirs = (
            evaluate(name, identity(t), t, m, **chosen).values for t, m in ((target, model), (other, bridged))
        )
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert value is theirs[key] is None or value == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key
    sizes = {"probe_train_set_size": 40, "probe_test_set_size": 20, "k_values": (1,)}
    probed = evaluate("sparse_probing", identity(other), other, bridged, prepare=True, tasks=str(tasks_file), **sizes)
    assert probed.values["sae_test_accuracy"] is not None


def damage(folder: Path, fault: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    if fault == "missing tensor":
        change_weights(folder, lambda w: w.pop("gpt_neox.layers.0.mlp.dense_h_to_4h.weight"))
    elif fault == "unused weight":
        change_weights(folder, lambda w: w.update({"gpt_neox.layers.0.mlp.gate.weight": torch.zeros(3)}))
    elif fault == "other shape":
        change_weights(folder, lambda w: w.update({"gpt_neox.final_layer_norm.weight": torch.ones(31)}))
    elif fault == "NaN":
        change_weights(folder, lambda w: w["gpt_neox.final_layer_norm.weight"].fill_(float("nan")))
    elif fault == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    elif fault == "pickle":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    elif fault == "shard":
        model = AutoModelForCausalLM.from_pretrained(folder)
        weights.unlink()
        model.save_pretrained(folder, max_shard_size="40KB")
        sorted(folder.glob("model-*.safetensors"))[1].unlink()
    elif fault == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif fault == "no model_type":
        edit(config, model_type=None)
    elif fault == "unknown model_type":
        edit(config, model_type="newest")
    elif fault == "list":
        config.write_text("[]")
    elif fault == "field":
        edit(config, num_attention_heads="two")
    elif fault == "tokenizer":
        (folder / "tokenizer.json").write_text("{")
    elif fault == "encoder":
        edit(config, model_type="bert", architectures=["BertForMaskedLM"])
    elif fault == "seq2seq":
        edit(config, model_type="t5")
    elif fault == "added tokens":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["<new>"])
        tokenizer.save_pretrained(folder)
    elif fault == "no special tokens":
        edit(folder / "tokenizer_config.json", bos_token=None, eos_token=None, pad_token=None)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("missing tensor", "lacks the tensor gpt_neox.layers.0.mlp.dense_h_to_4h.weight"),
        ("unused weight", "does not use: gpt_neox.layers.0.mlp.gate.weight"),
        ("other shape", "gpt_neox.final_layer_norm.weight, [31] instead of [32]"),
        ("NaN", "not finite"),
        ("pointer", "model.safetensors is a Git LFS pointer"),
        ("pickle", "cannot load the model"),
        ("shard", "lacks model-00002-of-"),
        ("no model_type", "names no model_type"),
        ("unknown model_type", "unknown model_type in"),
        ("adapter", "holds an adapter (adapter_config.json), which would not be applied: merge it"),
        ("list", "is not a JSON object"),
        ("field", "cannot load the model"),
        ("tokenizer", "cannot load the tokenizer of"),
        ("encoder", "is no causal language model: its model_type is bert"),
        ("seq2seq", "is no causal language model: its model_type is t5"),
        ("added tokens", "'<new>' has the id"),
        ("no special tokens", "neither a BOS nor an EOS"),
    ],
)
def test_a_damaged_model_is_one_line(fault, says, copy):
    damage(copy, fault)
    with pytest.raises(UsageError) as raised:
        load(copy)
    assert says in str(raised.value)
    assert str(copy) in str(raised.value)
    assert "Hub" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_config_without_architectures_is_read_by_its_model_type(copy):
    edit(copy / "config.json", architectures=None)
    assert load(copy).cfg.original_architecture == "GPTNeoXForCausalLM"


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"bos_token": None}, ("<|end|>", "<|end|>", "<|end|>")),
        ({"eos_token": None, "pad_token": None}, ("<|end|>", "<|end|>", "<|end|>")),
        ({"pad_token": "cat"}, ("<|end|>", "<|end|>", "cat")),
        ({"padding_side": "left"}, ("<|end|>", "<|end|>", "<|end|>")),
        ({"add_bos_token": True}, ("<|end|>", "<|end|>", "<|end|>")),
    ],
)
def test_missing_special_tokens_are_filled_by_those_that_the_model_knows(fields, tokens, copy, text_file):
    from sae_variants.language_model.contexts import read_contexts

    edit(copy / "tokenizer_config.json", **fields)
    target = choose_target("sandbox", str(copy), "blocks.1.hook_resid_post", str(text_file))
    model = load_model(target.model_name, "cpu", "float32")
    tokenizer = model.tokenizer
    if fields.get("pad_token") != "cat":
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == tokens
    context = next(read_contexts(target, model, 33))
    assert context[0] == tokenizer.bos_token_id == 0
    assert context[1] != tokenizer.bos_token_id, "one BOS, not two"


def test_a_vocabulary_larger_than_the_tokenizer_works(tmp_path):
    model = load(make_model(tmp_path / "m", "neox", vocab_size=512))
    assert model(torch.tensor([[1, 2, 3]])).shape[-1] == 512


def test_every_file_that_decides_tokens_counts(model_folder, copy):
    same = register_model_folder(model_folder)
    assert model_id("sandbox") == "424eabc276b87785"
    for name in ("generation_config.json", "chat_template.jinja", "README.md"):
        (copy / name).write_text("{}")
    assert register_model_folder(copy) == same
    seen = {same}
    for name in ("special_tokens_map.json", "added_tokens.json", "merges.txt"):
        (copy / name).write_text("{}")
        seen.add(register_model_folder(copy))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ("blocks.0.hook_mlp_in", "does not fire; did you mean blocks.0.hook_mlp_out (32 wide)"),
        ("blocks.1.attn.hook_result", "does not fire"),
        ("blocks.1.attn.hook_pattern", "has the shape [2, 2, 3, 3]"),
        ("blocks.1.ln1.hook_scale", "single number per token"),
        ("blocks.1.mlp.hook_pots", "blocks.1.mlp.hook_post (64 wide)"),
        ("blocks.7.hook_resid_post", "unknown hook"),
    ],
)
def test_a_wrong_hook_lists_near_ones_with_their_width(hook, says, model):
    with pytest.raises(UsageError) as raised:
        hook_width(model, hook)
    assert says in str(raised.value)
    assert "hook_resid_post (32)" in str(raised.value)


def test_hook_z_has_its_heads_concatenated(model):
    tokens = torch.randint(1, 300, (2, 9))
    _, cache = model.run_with_cache(tokens)
    acts = hook_activations(model, "blocks.1.attn.hook_z")(tokens)
    assert torch.equal(acts, cache["blocks.1.attn.hook_z"].flatten(2))
    assert hook_width(model, "blocks.1.attn.hook_z") == 32
    for name, width in usable_hooks(model).items():
        assert hook_activations(model, name)(tokens).shape == (2, 9, width)


@pytest.mark.parametrize("hook", ["blocks.1.attn.hook_z", "blocks.1.hook_mlp_out", "blocks.1.hook_attn_out"])
def test_an_identity_loses_nothing_at_any_hook_of_a_layer(hook, model_folder, text_file, model):
    target = choose_target("sandbox", str(model_folder), hook, str(text_file))
    settings = {"context_size": 32, "n_eval_reconstruction_batches": 1, "n_eval_sparsity_variance_batches": 1}
    values = evaluate("core", identity(target), target, model, **settings).values
    assert values["ce_loss_score"] == pytest.approx(1, abs=1e-3)
    loss = evaluate("downstream_loss", identity(target), target, model, n_contexts=16, context_size=32).values
    assert loss["ce_increase"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("core", "hook_embed"),
        ("core", "ln_final.hook_normalized"),
        ("ablation_sparsity", "ln_final.hook_normalized"),
        ("hierarchy", "unembed.hook_in"),
        ("sparse_probing", "hook_embed"),
        ("sparse_probing", "blocks.1.attn.hook_z"),
        ("sae_probes", "blocks.1.attn.hook_z"),
    ],
)
def test_evaluations_refuse_hooks_that_they_cannot_use_before_training(name, hook, model_folder, text_file):
    from eval_runners.contract.registry import load_evaluator

    evaluator = load_evaluator(name)
    target = choose_target("sandbox", str(model_folder), hook, str(text_file))
    with pytest.raises(UsageError, match="needs a hook"):
        evaluator.prepare(target, evaluator.settings_class())


@pytest.mark.parametrize(
    ("name", "other", "same"),
    [
        ("gpt2-small", "gpt2", True),
        ("gpt2", "openai-community/gpt2", True),
        ("pythia-70m", "EleutherAI/pythia-70m", True),
        ("EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-70m", False),
        ("ORG/model@abc", "ORG/model", True),
        ("gpt2-medium", "gpt2", False),
    ],
)
def test_models_are_compared_after_resolving_aliases(name, other, same):
    from eval_runners.harness.fit import _short_name

    assert (_short_name(name) == _short_name(other)) is same
