"""Skipping padding: the same bits, fewer tokens, and SAEBench's own way as soon as a bit differs."""

from __future__ import annotations

import pytest
import torch
from conftest import identity, make_tasks
from sae_bench.sae_bench_utils import activation_collection as collection

from eval_runners.saebench.padding import Agreement, skipped_by_model, skipped_by_sae
from sae_variants.language_model.load import load_model


@pytest.fixture(scope="module", params=["tiny", "sandbox"])
def model(request, target):
    return load_model(target.model_name if request.param == "tiny" else "sandbox", "cpu", "float32")


@pytest.fixture
def tokens(model):
    texts = [
        text[:size] for texts in make_tasks().values() for size, text in zip(range(5, 200, 4), texts, strict=False)
    ]
    padded = model.tokenizer(texts, padding="max_length", truncation=True, max_length=64, return_tensors="pt")[
        "input_ids"
    ]
    padded[0] = model.tokenizer.pad_token_id  # a document of padding alone
    padded[1, 2] = model.tokenizer.pad_token_id  # an end-of-text token inside a document
    return padded


def count_tokens(model, monkeypatch) -> list[int]:
    seen: list[int] = []
    forward = type(model).run_with_hooks
    monkeypatch.setattr(
        type(model), "run_with_hooks", lambda self, x, *a, **k: seen.append(x.numel()) or forward(self, x, *a, **k)
    )
    return seen


def test_the_model_s_activations_are_the_same_to_the_bit_for_fewer_tokens(model, tokens, monkeypatch):
    own = collection.get_llm_activations(tokens, model, 16, 1, "blocks.1.hook_resid_post", True, show_progress=False)
    seen = count_tokens(model, monkeypatch)
    with skipped_by_model(model) as agreement:
        checked = collection.get_llm_activations(tokens, model, 16, 1, "blocks.1.hook_resid_post", True)
        del seen[:]
        trusted = collection.get_llm_activations(tokens, model, 16, 1, "blocks.1.hook_resid_post", True)
    assert own.equal(checked)
    assert own.equal(trusted)
    assert agreement.broken or sum(seen) < 0.8 * tokens.numel()


def test_without_a_mask_or_with_padding_on_the_left_all_is_as_it_was(model, tokens, monkeypatch):
    seen = count_tokens(model, monkeypatch)
    with skipped_by_model(model):
        collection.get_llm_activations(tokens, model, 16, 1, "blocks.1.hook_resid_post", False)
        monkeypatch.setattr(model.tokenizer, "padding_side", "left")
        collection.get_llm_activations(tokens, model, 16, 1, "blocks.1.hook_resid_post", True)
    assert sum(seen) == 2 * tokens.numel()


@pytest.mark.parametrize("real", [(50, 5, 10), (1, 2, 3), (64, 64, 0)], ids=str)
def test_latents_are_the_same_to_the_bit_however_many_tokens_are_real(target, real):
    sae = identity(target)
    batches = torch.randn(3, 5, 64, 32)
    for batch, count in zip(batches, real, strict=True):
        batch[:, count:] = 0
    acts = batches.flatten(0, 1)
    own = collection.get_sae_meaned_activations({"a": acts}, sae, 5)["a"].nan_to_num(7)
    with skipped_by_sae(sae):
        for _ in range(2):
            assert collection.get_sae_meaned_activations({"a": acts}, sae, 5)["a"].nan_to_num(7).equal(own)


def test_an_sae_that_needs_whole_contexts_gets_them(target):
    sae = identity(target)
    encode = sae.encode

    def whole_only(x):
        if x.shape[1] != 64:
            raise ValueError("not enough positions")
        return encode(x)

    sae.encode = whole_only
    acts = torch.randn(10, 64, 32)
    acts[:, 9:] = 0
    with skipped_by_sae(sae) as agreement:
        found = collection.get_sae_meaned_activations({"a": acts}, sae, 5)["a"]
    assert agreement.broken
    assert found.equal(collection.get_sae_meaned_activations({"a": acts}, sae, 5)["a"])


def test_a_differing_bit_ends_the_short_cut():
    agreement = Agreement()
    one, other = torch.tensor([1.0]), torch.tensor([1.0 + 1e-7])
    assert agreement.result((1,), lambda: one.clone(), lambda: one).equal(one)
    assert agreement.result((2,), lambda: other, lambda: one).equal(one)
    assert agreement.broken
    assert agreement.result((1,), lambda: pytest.fail("not taken again"), lambda: one).equal(one)
