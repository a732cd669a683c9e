"""Groups of lower latents: which fire together by hand, what an upper latent starts as, and what training keeps apart."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny
from sae_lens.saes.sae import TrainStepInput

import sae_variants
from sae_variants.training.plan import make_plan
from sae_variants.training.train import train_plans
from sae_variants.two_level import groups
from sae_variants.two_level.groups import (
    containers,
    firing_correlation,
    group_links,
    largest_groups,
    parents_by_container,
)
from sae_variants.two_level.saved import NO_PARENT, lower_level_of

# latents on ten tokens: 0 fires on six of them, 1 and 2 only where 0 does, 3 on its own, 4 never
FIRES = torch.tensor(
    [
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
).T.float()
PAIRS = FIRES.T @ FIRES


def test_the_correlation_is_that_of_the_firing():
    expected = torch.corrcoef(FIRES[:, :4].T.double())
    found = firing_correlation(PAIRS, PAIRS.diagonal(), PAIRS.diagonal(), 10)
    torch.testing.assert_close(found[:4, :4], expected)
    assert not found[4].any()


@pytest.mark.parametrize("rows", [2, 1024])
def test_a_container_is_the_more_frequent_latent_that_fires_where_another_does(rows, monkeypatch):
    monkeypatch.setattr(groups, "ROWS_AT_ONCE", rows)
    assert containers(PAIRS, 10).tolist() == [NO_PARENT, 0, 0, NO_PARENT, NO_PARENT]
    assert containers(PAIRS, 10, torch.tensor([3])).tolist() == [NO_PARENT] * 5


def test_groups_and_what_they_write_by_hand():
    container_L = containers(PAIRS, 10)
    container_U = largest_groups(container_L, PAIRS.diagonal(), 2)
    assert container_U.tolist() == [0, 3]
    links = group_links(PAIRS, torch.tensor([2.0, 4.0, 3.0, 5.0, 0.0]), container_L, container_U)
    torch.testing.assert_close(links, torch.tensor([[2.0, 4 * 3 / 6, 3 * 2 / 6, 0, 0], [0, 0, 0, 5.0, 0]]))
    assert parents_by_container(container_L, container_U).tolist() == [NO_PARENT, 0, 0, NO_PARENT, NO_PARENT]


@pytest.mark.parametrize("separate", [True, False])
def test_the_upper_level_has_no_gradient_at_the_lower_one(separate):
    gradients = []
    for upper_coefficient in (1.0, 0.0):
        sae = sae_variants.build("hierarchical", d_in=6, d_sae=5, k=2, seed=0, separate=separate,
                                 upper_coefficient=upper_coefficient, aux_loss_coefficient=0.0)  # fmt: skip
        torch.manual_seed(0)
        sae.training_forward_pass(TrainStepInput(torch.randn(32, 6), {}, None, 0, False)).loss.backward()
        gradients.append({name: getattr(sae, name).grad for name in ("W_enc_lower", "b_enc_lower", "W_dec_lower")})
        assert sae.W_links.grad is None or upper_coefficient
    assert all(torch.equal(gradients[0][name], gradients[1][name]) is separate for name in gradients[0])


@pytest.fixture(scope="module")
def trained(target, tmp_path_factory):
    fields = {"k": 3, "training_tokens": 128 * 400, "batch_tokens": 128}
    plan = make_plan("hierarchical", target, {**tiny("hierarchical"), **fields}, tmp_path_factory.mktemp("trained"))
    train_plans([plan])
    return plan


def test_children_fire_with_their_parent_and_some_latents_have_none(trained):
    sae = sae_variants.load(trained.folder)
    parent_L = sae.parent_L
    assert (parent_L == NO_PARENT).any()
    assert (parent_L != NO_PARENT).any()
    assert parent_L.max() < sae.cfg.d_sae
    assert not (sae.W_links[parent_L.clamp(min=0), torch.arange(len(parent_L))] == 0).all()


def test_both_levels_are_saved_with_their_refinement(trained):
    sae, lower = sae_variants.load(trained.folder), sae_variants.load(trained.folder / "lower")
    assert lower.cfg.architecture() == "refined"
    x = torch.randn(64, sae.cfg.d_in)
    torch.testing.assert_close(sae.encode_lower(x), lower.encode(x))
    torch.testing.assert_close(lower_level_of(sae).encode(x), lower.encode(x))
    f = lower.encode(x)
    pre = f @ sae.W_enc_upper + sae.b_enc
    torch.testing.assert_close(sae.encode(x), pre.relu() * (pre > sae.threshold))


def test_the_counts_of_latents_that_fire_together_are_in_the_memory_of_a_training():
    by_start = {start: build_config(start).step_bytes(16, "cpu") for start in ("groups", "random")}
    assert by_start["groups"] - by_start["random"] == 4 * 20 * 20


def build_config(start):
    return sae_variants.build("hierarchical", d_in=6, d_sae=5, k=2, start=start).cfg
