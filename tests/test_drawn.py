"""Latents are sampled from those that fire often enough in both halves, and documents are averaged over their tokens."""

from __future__ import annotations

import torch
from conftest import identity

from eval_runners.data.documents import document_means, one_against_others
from eval_runners.data.heldout import heldout_tokens, special_mask
from eval_runners.measures.sampled_latents import sample_latents
from sae_variants.language_model.hooks import hook_activations


def test_a_latent_must_fire_in_both_halves(target, model):
    sae = identity(target)
    ids = heldout_tokens(target, model, 16, 32)
    x = hook_activations(model, target.hook_name)(ids)[:, 1:]
    acts = sae.encode(x) * ~special_mask(ids, model)[:, 1:, None]
    contexts = (acts > 0).any(1)
    sae.b_enc.data[0] = -(acts[8:, :, 0].max() + 1e-3)  # fires in the first half only, if at all
    counts = torch.stack([contexts[:8].sum(0), contexts[8:].sum(0)])
    found = sample_latents(sae, target, model, 16, 32, n_latents=1000, n_min=3, seed=0)
    expected = (counts >= 3).all(0)
    expected[0] = False
    assert found.latents == expected.nonzero().squeeze(1).tolist()
    assert found.acts_CTP.shape == (16, 31, len(found.latents))
    torch.testing.assert_close(found.acts_CTP, acts[..., found.latents], rtol=1e-4, atol=1e-4)
    few = sample_latents(sae, target, model, 16, 32, n_latents=3, n_min=3, seed=0)
    assert len(few.latents) == 3
    assert set(few.latents) < set(found.latents)


def test_documents_are_means_over_their_tokens():
    x, lengths = torch.arange(12.0).view(6, 2), torch.tensor([1, 3, 2])
    means = document_means(lambda rows: rows * 2, x, lengths, "cpu")
    torch.testing.assert_close(means, torch.tensor([[0.0, 2.0], [8.0, 10.0], [18.0, 20.0]]))


def test_a_class_stands_against_as_many_of_the_others():
    classes = {"a": torch.zeros(3, 2), "b": torch.ones(3, 2), "c": 2 * torch.ones(3, 2)}
    x, y = one_against_others(classes, "a", seed=0)
    assert y.tolist() == [1, 1, 1, 0, 0, 0]
    assert not x[:3].any()
    assert (x[3:] > 0).all()
