"""Oracles: a planted hierarchy, independent levels, and ablations whose effect is known."""

from __future__ import annotations

import math

import pytest
import sae_lens  # noqa: F401  registers
import torch
from conftest import evaluate, identity, linear_sae

from eval_runners.measures.ablation import Ablation, projection_share
from eval_runners.measures.causal_trace import summarize_traces
from eval_runners.measures.clustering import compare_partitions
from eval_runners.measures.information import (
    joint_beyond_best,
    joint_counts,
    level_information,
    mutual_information,
    shuffled_groups,
)
from sae_variants.two_level.saved import TwoLevelSAE, TwoLevelSAEConfig

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def entropy(p: float) -> float:
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def test_mutual_information_by_hand():
    # 8 tokens: both fire on 2, the upper alone on 2, the lower alone on none, neither on 4
    bits, bias = mutual_information(torch.tensor([[2.0]]), torch.tensor([4]), torch.tensor([2]), 8)
    assert bits.item() == pytest.approx(entropy(0.25) - 0.5 * entropy(0.5), abs=1e-9)
    assert bias.item() == 0  # three cells that are not empty, of 2 x 2
    bits, bias = mutual_information(torch.tensor([[1.0]]), torch.tensor([4]), torch.tensor([2]), 8)
    assert bits.item() == pytest.approx(0, abs=1e-9)
    assert bias.item() == pytest.approx(1 / (16 * math.log(2)))  # all four cells


def test_the_bias_equals_the_mean_over_permuted_tokens():
    torch.manual_seed(0)
    upper, lower = torch.rand(500, 1) < 0.3, torch.rand(500, 1) < 0.4
    estimates = []
    for _ in range(3000):
        both = joint_counts(upper[torch.randperm(500)], lower)
        estimates.append(mutual_information(both, upper.sum(0), lower.sum(0), 500))
    bits, bias = (torch.stack(side).mean().item() for side in zip(*estimates, strict=True))
    assert bits == pytest.approx(bias, rel=0.1)


def planted(n: int = 40_000, parents: int = 4, children: int = 3):
    """Parents fire on a tenth of the tokens each; a child fires on half of its parent's tokens and nowhere else."""
    torch.manual_seed(0)
    upper = torch.rand(n, parents) < 0.1
    lower = upper.repeat_interleave(children, 1) & (torch.rand(n, parents * children) < 0.5)
    return upper, lower, torch.arange(parents).repeat_interleave(children)


def test_a_planted_hierarchy_has_its_analytic_information():
    upper, lower, parent_L = planted()
    information, measured_U = level_information(upper, lower, parent_L, permutations=3, seed=0)
    expected = entropy(0.05) - 0.1 * entropy(0.5)
    assert measured_U.all()
    assert information.total_corrected.mean().item() / 3 == pytest.approx(expected, rel=0.02)
    assert information.best_child_corrected.mean().item() == pytest.approx(expected, rel=0.03)
    assert information.best_child.mean().item() == pytest.approx(expected, rel=0.03)
    torch.testing.assert_close(information.best_of_all, information.best_child_corrected, rtol=1e-3, atol=0)
    assert 0 < information.best_child_null.mean().item() < 0.01 * expected


def test_children_that_share_their_parent_tell_more_than_the_best_of_them():
    upper, _, parent_L = planted(children=2)
    half = torch.rand(len(upper), 4) < 0.5
    sharing = torch.stack([upper & half, upper & ~half], 2).flatten(1)  # together they fire wherever the parent does
    expected = entropy(0.1) - (entropy(0.05) - 0.1 * entropy(0.5))
    assert joint_beyond_best(upper, sharing, parent_L) == pytest.approx(expected, rel=0.03)
    copies = upper.repeat_interleave(2, 1)
    assert joint_beyond_best(upper, copies, parent_L) == pytest.approx(0, abs=1e-9)
    ungated = sharing | (torch.rand(len(upper), 8) < 0.3)  # what fires elsewhere does not count
    assert joint_beyond_best(upper, ungated, parent_L) < expected
    shuffled = shuffled_groups(parent_L, seed=1)
    assert shuffled.sort().values.equal(parent_L)
    assert joint_beyond_best(upper, sharing, shuffled) < 0.3 * expected
    assert joint_beyond_best(upper, torch.zeros_like(sharing), parent_L) is None


def test_the_best_of_many_independent_latents_is_not_above_chance():
    torch.manual_seed(0)
    upper, lower = torch.rand(4000, 20) < 0.1, torch.rand(4000, 200) < 0.1
    information, _ = level_information(upper, lower, torch.arange(200) % 20, permutations=20, seed=0)
    raw = (information.best_child - information.best_child_null).mean().item()
    assert information.best_of_all.mean().item() == pytest.approx(0, abs=1e-4)  # the largest of 200 is 1e-3 by chance
    assert raw == pytest.approx(0, abs=1e-4)


def test_independent_levels_share_no_information():
    upper, lower, parent_L = planted()
    information, _ = level_information(upper[torch.randperm(len(upper))], lower, parent_L, permutations=20, seed=1)
    assert information.total_corrected.abs().max() < 5e-4
    assert information.total_corrected.mean().item() == pytest.approx(0, abs=2e-4)
    per_latent = information.best_child - information.best_child_null
    assert per_latent.abs().mean().item() < 3 * information.best_child_null.mean().item()
    assert information.best_child_corrected.abs().max().item() < 5e-4


def test_an_upper_latent_without_children_is_not_measured():
    upper, lower, parent_L = planted()
    _, measured_U = level_information(upper, lower, torch.where(parent_L == 2, 1, parent_L), 1, seed=0)
    assert measured_U.tolist() == [True, True, False, True]


def test_every_clustering_recovers_planted_groups():
    _, lower, parent_L = planted()
    rows = torch.eye(8)[parent_L] + 0.05 * torch.randn(12, 8)
    values = compare_partitions(rows, lower, parent_L, seed=0)
    for by in ("kmeans", "agglomerative"):
        assert values[f"ari_{by}"] == 1
        assert values[f"nmi_{by}"] == pytest.approx(1)
    assert values["silhouette_learned"] > 0.9 > 0.1 > values["silhouette_shuffled"]
    # two children of one parent fire together on a quarter of its tokens, and at all on three quarters
    assert values["coactivation_learned"] == pytest.approx(1 / 3, abs=0.03)
    assert values["coactivation_shuffled"] < 0.15


def test_latents_that_never_fire_are_not_clustered():
    _, lower, parent_L = planted()
    lower = lower.clone()
    lower[:, parent_L > 0] = False
    assert compare_partitions(torch.eye(12), lower, parent_L, seed=0) == {}  # one group is left


def tree(target, d: int = 32) -> TwoLevelSAE:
    """Upper latent j fires with channels 2j and 2j + 1, its children, and writes the sum of what they write."""
    cfg = TwoLevelSAEConfig(d_in=d, d_sae=d // 2, d_lower=d, apply_b_dec_to_input=False)
    sae = TwoLevelSAE(cfg)
    parent_L = torch.arange(d) // 2
    links = torch.zeros(d // 2, d).index_put((parent_L, torch.arange(d)), torch.tensor(1.0))
    state = sae.state_dict()
    state |= {
        "W_enc_lower": torch.eye(d), "W_dec_lower": torch.eye(d), "W_enc_upper": 0.5 * links.T, "W_links": links,
        "W_dec": links, "parent_digits_3L": torch.stack([parent_L, 0 * parent_L, 0 * parent_L]).float(),
    }  # fmt: skip
    sae.load_state_dict(state)
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = target.model_name, target.hook_name
    return sae


SMALL = {"n_contexts": 8, "context_size": 32, "n_latents": 6, "contexts_per_latent": 3}


def metrics(sae, target, model, **settings):
    return evaluate("hierarchy", sae, target, model, **{**SMALL, **settings}).metrics


def test_a_planted_tree(target, model):
    values = metrics(tree(target), target, model)
    assert values["information"]["parents"] == 16
    assert values["information"]["childless"] == 0
    assert values["information"]["best_child_ratio"] > 10
    assert values["causes"]["traced"] == 6
    assert values["causes"]["children_share"] > 3 * values["causes"]["other_children_share"]


def test_one_latent_has_no_other_to_compare_its_children_with(target, model):
    values = metrics(tree(target), target, model, n_latents=1)["causes"]
    assert values["children_share"] > 0
    assert values["other_children_share"] is None


def test_upper_latents_without_children_that_fire_are_a_failure(target, model):
    sae = tree(target)
    sae.threshold_lower.data[2:] = 1e9
    sae.W_enc_upper.data[0, 3] = 1.0  # latent 3 fires by a child of latent 0
    sae.parent_digits_3L.data[0, :2] = 5.0
    small = {**SMALL, "n_latents": 2, "contexts_per_latent": 2}
    evaluation = evaluate("hierarchy", sae, target, model, **small)
    assert any("has a child that does" in reason for reason in evaluation.failures)


def test_an_sae_of_one_level_has_causes_only(target, model):
    values = metrics(identity(target), target, model)
    assert values["causes"]["kl"] > 0
    assert values["causes"]["kl_low"] <= values["causes"]["kl"] <= values["causes"]["kl_high"]
    assert values["causes"]["kl_children"] is None
    assert set(values["information"].values()) == set(values["clustering"].values()) == {None}


def test_an_sae_that_writes_nothing_has_no_effect(target, model):
    eye = torch.eye(32)
    values = metrics(linear_sae(target, eye, torch.zeros(32, 32)), target, model)
    assert values["causes"]["traced"] > 0
    assert values["causes"]["kl"] == pytest.approx(0, abs=1e-9)
    assert values["causes"]["top_change"] == pytest.approx(0, abs=1e-6)


def test_the_effect_of_an_ablation_by_hand(target, model):
    measured = torch.zeros(2, 6, dtype=torch.bool)
    measured[0, 3] = measured[1, 5] = True
    ablation = Ablation(model, target.hook_name, TOKENS, measured)
    # the hook is the last residual stream: a change of it reaches the logits through the last norm alone
    written = torch.zeros(2, 6, 32)
    written[0, 3], written[1, 5] = torch.randn(32), torch.randn(32)
    _, cached = model.run_with_cache(TOKENS, names_filter=target.hook_name, prepend_bos=False)
    logits = model.unembed(model.ln_final(cached[target.hook_name] - written)).log_softmax(-1)
    clean = model(TOKENS, prepend_bos=False).log_softmax(-1)
    torch.testing.assert_close(ablation.clean_PV.log_softmax(-1), clean[measured])
    effect = ablation.effect(ablation.without(written))
    expected = (clean.exp() * (clean - logits)).sum(-1)[measured].mean()
    assert effect.kl == pytest.approx(expected.item(), rel=1e-3)
    top = clean[measured].argmax(-1)
    change = (logits[measured] - clean[measured]).gather(-1, top[:, None]).abs().mean()
    assert effect.top == pytest.approx(change.item(), rel=1e-3)


def test_effects_are_compared_latent_by_latent():
    # latents differ by far more than each does from its random direction
    rows = [{"kl": 2.0**i + 0.5, "kl_random": 2.0**i, "top_change": 0.0, "top_change_random": 0.0} for i in range(10)]
    summary = summarize_traces(rows, seed=0)
    assert summary["kl_low"] < summary["kl_random_high"]
    assert summary["kl_excess"] == summary["kl_excess_low"] == summary["kl_excess_high"] == pytest.approx(0.5)


def test_a_share_that_is_undefined_is_left_out():
    effects = {"kl": 1.0, "kl_random": 0.5, "top_change": 0.0, "top_change_random": 0.0}
    rows = [{**effects, "children_share": share} for share in (0.6, math.nan, 0.8)]
    summary = summarize_traces(rows, seed=0)
    assert summary["children_share"] == pytest.approx(0.7)
    assert 0.6 <= summary["children_share_low"] < summary["children_share_high"] <= 0.8
    undefined = summarize_traces([{**effects, "children_share": math.nan}] * 2, seed=0)
    assert undefined["children_share"] is None


def test_a_share_is_a_projection():
    whole = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    assert projection_share(whole, whole) == 1
    assert projection_share(torch.tensor([[1.0, 5.0], [7.0, 0.0]]), whole) == pytest.approx((0.5 + 0) / 2)
    assert math.isnan(projection_share(whole, 0 * whole))
