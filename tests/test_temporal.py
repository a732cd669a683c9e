"""The consistency terms by hand, and what a window may and may not do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

import sae_variants
from sae_variants.ops.consistency import EPSILON, contrastive_loss, similarity_loss, variance_loss
from sae_variants.ops.shards import Shards


def test_variance_by_hand():
    # two windows of two tokens, two latents; in window 0 latent 0 is 1, 3 and latent 1 is 0, 2; in window 1 only
    # latent 0 fires, and it is constant
    slow = torch.tensor([[[1.0, 0.0], [3.0, 2.0]], [[4.0, 0.0], [4.0, 0.0]]])
    expected = ((1 / 5) + (1 / 2) + 0) / 3  # var / mean square: 1/5, 1/2, 0/16
    assert variance_loss(slow).item() == pytest.approx(expected, abs=1e-5)


def test_variance_does_not_fall_when_activations_shrink():
    slow = torch.rand(6, 4, 5)
    for scale in (1e-3, 1e-12, 1e6):
        assert variance_loss(slow * scale).item() == pytest.approx(variance_loss(slow).item(), rel=1e-5)


def test_variance_has_a_finite_gradient_where_nothing_fires():
    slow = torch.zeros(2, 4, 5, requires_grad=True)
    variance_loss(slow.relu()).backward()
    assert slow.grad is not None
    assert slow.grad.isfinite().all()


def test_similarity_by_hand():
    slow = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])  # cosines 1 and 0
    assert similarity_loss(slow).item() == pytest.approx(0.5)


def test_contrastive_by_hand():
    # two windows whose codes are the two axes: the right partner has cosine 1, the wrong one 0
    slow = torch.tensor([[[2.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]])
    expected = -math.log(math.exp(2) / (math.exp(2) + 1))
    assert contrastive_loss(slow, "cosine", temperature=0.5).item() == pytest.approx(expected, rel=1e-5)
    # dot products: later·earlier = 2, 3 for the right ones, 0 for the wrong ones
    dots = [-math.log(math.exp(d) / (math.exp(d) + 1)) for d in (2, 3)]
    assert contrastive_loss(slow, "dot").item() == pytest.approx(sum(dots) / 2, rel=1e-5)


def test_contrastive_negatives_are_other_windows_only():
    # within a window every code is the same: were its own tokens negatives, the loss could not approach 0
    slow = torch.eye(4).unsqueeze(1).expand(4, 8, 4)
    assert contrastive_loss(slow, "cosine", temperature=0.01).item() < 1e-6


def test_windows_of_one_context_are_no_negatives_of_each_other():
    # windows 0 and 1 hold what lasts through their context; as negatives they could not be told apart
    slow = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).unsqueeze(1).expand(3, 4, 2)
    context = torch.tensor([7, 7, 9])
    assert contrastive_loss(slow, temperature=0.01, context_n=context).item() < 1e-6
    assert contrastive_loss(slow, temperature=0.01).item() > 0.4
    sae, acts = build(), torch.randn(32, 6)
    alone = losses(sae, acts)["consistency_loss"].item()
    sae.context_N = torch.arange(8).repeat_interleave(4) // 2
    assert losses(sae, acts)["consistency_loss"].item() < alone


class OneGroup(Shards):
    """One of several groups of windows, all of whose codes and sums are known."""

    def __init__(self, parts: tuple[Tensor, ...], group: int, sums: list[Tensor]) -> None:
        self.parts, self.groups, self.group, self.sums = parts, len(parts), group, sums
        self.own_sum = torch.empty(0)

    def of_all_groups(self, codes_mWL: Tensor) -> tuple[Tensor, int]:
        every = [self.normalized(part, EPSILON) for part in self.parts]
        torch.testing.assert_close(codes_mWL, every[self.group])
        return torch.cat(every), sum(map(len, self.parts[: self.group]))

    def of_other_groups(self, values: Tensor, purpose: str) -> Tensor:
        self.own_sum = values
        return torch.stack([s for group, s in enumerate(self.sums or [values] * self.groups) if group != self.group])


@pytest.mark.parametrize("sizes", [(3, 5), (1, 7), (0, 6, 2)])
def test_the_mean_over_groups_of_windows_is_the_loss_of_all(sizes):
    """The first windows are of one context: the first group alone has no negatives for its own."""
    slow = torch.rand(8, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    options: Any = {"pairs": "earlier", "context_n": torch.tensor([7, 7, 7, 7, 1, 2, 2, 3])}
    expected = contrastive_loss(slow, **options)
    (expected_gradient,) = torch.autograd.grad(expected, slow)
    parts = slow.split(sizes)
    sums: list[Tensor] = []
    for _ in range(2):  # the second time, the sums of the others are known
        groups = [OneGroup(parts, group, sums) for group in range(len(parts))]
        each = [contrastive_loss(part, **options, shards=group) for part, group in zip(parts, groups, strict=True)]
        sums = [group.own_sum for group in groups]
    mean = torch.stack(each).mean()
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(torch.autograd.grad(mean, slow)[0], expected_gradient)


def test_a_batch_without_a_mask_of_special_tokens_leaves_none_behind():
    sae = build()
    for rows in (32, 16):
        with pytest.warns(UserWarning, match="special tokens"):
            sae.training_forward_pass(TrainStepInput(torch.randn(rows, 6), {}, None, 0, False))


def test_every_earlier_token_by_hand():
    # cosines of (1, 0), (2, 0), (2, 1) are 1, 0, 0
    slow = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])
    assert similarity_loss(slow, "earlier").item() == pytest.approx(2 / 3)
    # two windows on two axes: every pair within a window has cosine 1, across windows 0
    axes = torch.eye(2).unsqueeze(1).expand(2, 3, 2)
    expected = -math.log(math.exp(2) / (math.exp(2) + 1))
    assert contrastive_loss(axes, "cosine", 0.5, "earlier").item() == pytest.approx(expected, rel=1e-5)


FIRST = {"slow": "first", "refine": 0, "slow_fraction": 0.1}
"""The first latents are slow, as in T-SAE, and the encoder is not refined."""


def build(**overrides):
    return sae_variants.build("temporal", d_in=6, d_sae=20, seed=0, **{"k": 4, "window": 4, **FIRST, **overrides})


def losses(sae, acts, special=None):
    sae.special_N = torch.zeros(len(acts), dtype=torch.bool) if special is None else special
    return sae.training_forward_pass(TrainStepInput(acts, {}, None, 0, False)).losses


def test_each_term_is_switched_off_by_one_field():
    acts = torch.randn(32, 6)
    assert {"slow_mse_loss", "consistency_loss"} <= set(losses(build(nested_coefficient=0.25), acts))
    assert "slow_mse_loss" not in losses(build(nested_coefficient=0.0), acts)
    assert "consistency_loss" not in losses(build(consistency_coefficient=0.0), acts)


def test_slow_reconstruction_uses_the_slow_latents_alone():
    sae, acts = build(nested_coefficient=0.5), torch.randn(32, 6)
    latents = sae.encode(acts)
    latents[:, sae.cfg.n_slow :] = 0
    expected = 0.5 * (sae.decode(latents) - acts).pow(2).sum(-1).mean()
    torch.testing.assert_close(losses(sae, acts)["slow_mse_loss"], expected)


def test_free_latents_get_no_gradient_from_consistency():
    sae, acts = build(), torch.randn(32, 6)
    losses(sae, acts)["consistency_loss"].backward()
    assert sae.W_enc.grad[:, : sae.cfg.n_slow].abs().sum() > 0
    assert not sae.W_enc.grad[:, sae.cfg.n_slow :].any()


@pytest.mark.parametrize("form", ["contrastive", "variance", "similarity"])
def test_a_window_with_a_special_token_is_left_out_of_consistency_only(form):
    acts = torch.randn(32, 6)
    special = torch.zeros(32, dtype=torch.bool)
    special[5] = True  # window 1
    sae = build(consistency=form, k=20)  # every positive latent fires, whatever the other rows are
    before = losses(sae, acts, special)
    changed = acts.clone()
    changed[4:8] = torch.randn(4, 6)
    after = losses(sae, changed, special)
    torch.testing.assert_close(after["consistency_loss"], before["consistency_loss"])
    assert after["mse_loss"] != before["mse_loss"]


def test_correlations_within_windows_by_hand():
    sae = build(slow="measured")
    acts = torch.rand(32, 20)
    acts[:, 3] = acts[::4, 3].repeat_interleave(4)  # constant within each window
    acts[:, 5] = 0  # never fires
    sae._measure(acts, step=0)
    windows = acts.double().unflatten(0, (8, 4))
    pairs = [(t, u) for t in range(4) for u in range(4) if t != u]
    products = torch.stack([(windows[:, t] * windows[:, u]).mean(0) for t, u in pairs]).mean(0)
    mean, variance = acts.double().mean(0), acts.double().var(0, unbiased=False)
    expected = torch.where(variance > 0, (products - mean**2) / variance.clamp(min=1e-30), 0)
    torch.testing.assert_close(sae.correlation_S.double(), expected, atol=1e-5, rtol=1e-4)
    assert sae.correlation_S[3].item() == pytest.approx(1, abs=1e-5)
    assert sae.correlation_S[5] == 0
    assert 3 in sae.slow_L.tolist()
    before = sae.moments_3S.clone()
    sae._measure(torch.rand(32, 20), step=1)  # only one in four steps is measured
    assert torch.equal(sae.moments_3S, before)


def test_slow_latents_are_saved_as_the_first_ones(tmp_path):
    sae, x = build(slow="measured", refine=1), torch.randn(64, 6)
    for number in range(8):
        sae.special_N = torch.zeros(32, dtype=torch.bool)
        sae.training_forward_pass(TrainStepInput(torch.randn(32, 6), {}, None, number, False))
    sae.calibrate([torch.randn(512, 6)])
    sae.save_inference_model(tmp_path)
    saved, order = sae_variants.load(tmp_path), sae.in_saved_order(torch.arange(20))
    assert sorted(order[:2].tolist()) == sorted(sae.slow_L.tolist())
    assert sorted(order.tolist()) == list(range(20))
    rows = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    torch.testing.assert_close(saved.W_dec, rows[order])
    assert saved.inner_thresholds.shape == (1, 20)
    assert saved.encode(x).any()


def test_fed_by_someone_who_knows_no_windows_it_warns():
    sae = build()
    with pytest.warns(UserWarning, match="activations_mixing_fraction=0"):
        sae.training_forward_pass(TrainStepInput(torch.randn(32, 6), {}, None, 0, False))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("window", 1, "at least 2"),
        ("base", "topk", "base"),
        ("l1_coefficient", -1.0, "l1_coefficient"),
        ("slow_fraction", 0.0, "slow_fraction"),
        ("slow_fraction", 1.5, "slow_fraction"),
        ("consistency", "contrastiv", "consistency"),
        ("contrast", "cos", "contrast"),
        ("temperature", 0.0, "temperature"),
        ("nested_coefficient", -1.0, "nested_coefficient"),
        ("k", 21, "k must be above 0"),
    ],
)
def test_contradictions_are_refused(field, value, says):
    with pytest.raises(sae_variants.UsageError, match=says):
        sae_variants.build("temporal", d_in=6, d_sae=20, **{"k": 4, field: value})


def test_relu_base_by_hand():
    sae = build(base="relu", l1_coefficient=0.5, consistency_coefficient=0.0)
    x = torch.randn(8, 6)
    output = sae.training_forward_pass(TrainStepInput(x, {}, None, 0, False))
    rows = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    l1 = (rows.relu() * sae.W_dec.norm(dim=1)).sum(-1).mean()
    assert output.losses["l1_loss"].item() == pytest.approx(0.5 * l1.item(), rel=1e-5)
    assert (output.feature_acts > 0).float().sum(-1).mean() > 4  # k has no say


def test_relu_base_is_saved_as_the_relu_it_is(tmp_path):
    sae = build(base="relu", consistency_coefficient=0.0)
    x = torch.randn(8, 6)
    for _ in range(3):
        output = sae.training_forward_pass(TrainStepInput(x, {}, None, 0, False))
    sae.save_inference_model(tmp_path)
    assert torch.allclose(sae_variants.load(tmp_path)(x), output.sae_out, atol=1e-5)


@pytest.mark.parametrize("rescale", [True, False])
def test_its_products_are_those_of_sae_lens(rescale):
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE

    sae = sae_variants.build("temporal", d_in=8, d_sae=64, seed=0, k=3, refine=0, rescale_acts_by_decoder_norm=rescale)
    torch.manual_seed(0)
    with torch.no_grad():
        sae.W_dec *= torch.rand(64, 1) + 0.5
        sae.b_dec += torch.randn(8)
        sae.b_enc += torch.randn(64)
    x, found = torch.randn(32, 8), []
    for encode, decode in (
        (sae.encode_with_hidden_pre, sae.decode),
        (lambda x: BatchTopKTrainingSAE.encode_with_hidden_pre(sae, x), lambda f: BatchTopKTrainingSAE.decode(sae, f)),
    ):
        sae.zero_grad()
        acts, pre = encode(x)
        out = decode(acts)
        (out - x).pow(2).sum().backward()
        found.append([acts, pre, out, *(p.grad.clone() for p in sae.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
