"""The sparse products equal the three dense lines, in values and in gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae_variants.ops.mostly_zero import decode_sparse, sparse_gradient_product
from sae_variants.ops.sparse import decode, encode, sparse_codes, top_k


def weights(D: int, S: int, dtype=torch.float32, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    W_enc, W_dec = torch.randn(S, D).T, torch.randn(S, D)
    return [w.to(dtype).requires_grad_() for w in (W_enc, torch.randn(S), W_dec, torch.randn(D))]


def dense(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int) -> tuple[Tensor, Tensor]:
    top = ((x - b_dec) @ W_enc + b_enc).topk(k, dim=-1)
    f = torch.zeros(*x.shape[:-1], W_enc.shape[1], dtype=x.dtype).scatter(-1, top.indices, top.values.relu())
    return f, f @ W_dec + b_dec


def sparse(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, ids, _ = encode(x, W_enc, b_enc, b_dec, k)
    return sparse_codes(values, ids, W_enc.shape[1]).to_dense(), decode(values, ids, W_dec, b_dec)[0]


SHAPES = [
    ("rows", (70, 16), 512, 4),
    ("blocks of rows, groups of latents", (300, 8), 1024, 4),
    ("three dimensions", (3, 20, 8), 64, 5),
    ("one latent", (40, 8), 512, 1),
    ("every latent", (10, 4), 7, 7),
    ("one token", (1, 4), 32, 3),
]


@pytest.mark.parametrize(("shape", "S", "k"), [case[1:] for case in SHAPES], ids=[case[0] for case in SHAPES])
@pytest.mark.parametrize("shift", [0.0, -100.0], ids=["mixed", "all negative"])
def test_values_and_gradients_are_those_of_the_dense_lines(shape, S, k, shift):
    found = []
    for way in (sparse, dense):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        own = weights(shape[-1], S)
        own[1].data += shift
        f, out = way(x, *own, k)
        (out - x.detach()).pow(2).sum().backward()
        found.append([f, out, x.grad, *(w.grad for w in own)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
    assert found[0][0].any() == (shift == 0)


def test_some_latents_on_some_tokens_join_the_others():
    tokens, some, found = slice(1, None, 3), torch.tensor([2, 5, 30]), []
    for way in ("sparse", "dense"):
        x = torch.randn(20, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        W_enc, b_enc, W_dec, b_dec = own = weights(8, 32)
        if way == "sparse":
            values, ids, pre = encode(x, W_enc, b_enc, b_dec, 3, tokens, some)
            out, written = decode(values, ids, W_dec, b_dec, pre.square(), some)
        else:
            out = dense(x, *own, 3)[1]
            pre = ((x - b_dec) @ W_enc + b_enc)[tokens][:, some]
            written = pre.square() @ W_dec[some]
        (out.pow(2).sum() + (written * torch.arange(8.0)).sum()).backward()
        found.append([out, written, pre, x.grad, *(w.grad for w in own)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_gradients_are_those_of_finite_differences():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    own = weights(3, 6, torch.float64)

    def out(x: Tensor, *own: Tensor) -> Tensor:
        return sparse(x, *own, 2)[1]

    assert torch.autograd.gradcheck(out, (x, *own))


def test_of_latents_that_tie_any_may_fire_but_only_k():
    pre = torch.tensor([[1.0] * 256 + [2.0] * 3 + [1.0] * 253]).repeat(4, 1)
    values, ids = top_k(pre, 2)
    assert values.tolist() == [[2.0, 2.0]] * 4
    assert all(len(set(row)) == 2 and set(row) <= {256, 257, 258} for row in ids.tolist())
    values, ids = top_k(torch.zeros(3, 512), 2)
    assert not values.any()
    assert all(len(set(row)) == 2 for row in ids.tolist())


@pytest.mark.parametrize("S", [640, 1000])
def test_two_stages_find_the_largest(S):
    pre = torch.randn(50, S)
    values, ids = top_k(pre, 2)
    assert torch.equal(values.sort(descending=True).values, pre.topk(2).values)
    assert torch.equal(pre.gather(1, ids), values)


def test_bfloat16_is_near_float32():
    x = torch.randn(64, 16)
    own = weights(16, 128)
    low = [w.detach().bfloat16().requires_grad_() for w in own]
    same = [w.detach().float().requires_grad_() for w in low]
    found = []
    for given, ws in ((x.bfloat16(), low), (x.bfloat16().float(), same)):
        values, ids, _ = encode(given, *ws[:2], ws[3], 4)
        if ws is same:  # rounding may change which latents fire: compare the rest on the same ones
            ids = found[0][1]
            values = ((given - ws[3]) @ ws[0] + ws[1]).gather(1, ids).relu()
        out, _ = decode(values, ids, ws[2], ws[3])
        out.sum().backward()
        found.append((out, ids, [w.grad for w in ws]))
    assert found[0][0].dtype == torch.bfloat16
    for ours, theirs in zip([found[0][0], *found[0][2]], [found[1][0], *found[1][2]], strict=True):
        assert (ours.float() - theirs).norm() <= 0.03 * theirs.norm()


def test_autocast_trains():
    x, own = torch.randn(64, 16), weights(16, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, out = sparse(x, *own, 4)
        loss = (out - x).pow(2).mean()
    loss.backward()
    assert all(w.grad.dtype == torch.float32 and w.grad.any() for w in own)


def by_onednn(x, W, *_args, out_shape=None, **_kwargs) -> int:
    """Multiplications and additions of x W^T, by the shapes of both."""
    return 2 * x[0] * x[1] * W[0]


def test_only_one_product_is_dense():
    """Multiplications counted by PyTorch: the encoder's, and what is far below another of its size."""
    from torch.utils.flop_counter import FlopCounterMode

    N, D, S, k = 512, 32, 2048, 4
    x, own = torch.randn(N, D), weights(D, S)
    units = {}
    for way in (sparse, dense):
        with FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: by_onednn}) as counter:
            way(x, *own, k)[1].sum().backward()
        units[way] = counter.get_total_flops() / (2 * N * D * S)
    assert units[sparse] == pytest.approx(1, abs=0.05)
    assert units[dense] == pytest.approx(6, abs=0.05)  # the sixth is only for b_dec's gradient


def test_no_dense_latents_live_through_the_step():
    x, own = torch.randn(600, 8), weights(8, 4096)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        sparse(x, *own, 4)
    assert max(kept) <= max(w.numel() for w in own)


@pytest.mark.parametrize("share", [0.02, 0.6], ids=["few fire", "many fire"])
def test_products_of_what_fires_are_the_dense_ones(share):
    torch.manual_seed(0)
    found, mask = [], torch.rand(40, 50) < share
    for way in ("sparse", "dense"):
        x = torch.randn(40, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        W_enc, b_enc, W_dec, _ = own = [w.detach().contiguous().requires_grad_() for w in weights(8, 50)]
        pre = sparse_gradient_product(x, W_enc, b_enc) if way == "sparse" else x @ W_enc + b_enc
        acts = torch.where(mask, pre.relu(), 0.0)
        out = decode_sparse(acts, W_dec) if way == "sparse" else acts @ W_dec
        (out - 1).pow(2).sum().backward()
        found.append([pre, out, x.grad, *(w.grad for w in own[:3])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_nothing_fires():
    W = torch.randn(8, 50, requires_grad=True)
    acts = sparse_gradient_product(torch.randn(5, 8), W, torch.full((50,), -1e3)).relu()
    out = decode_sparse(acts, torch.randn(50, 8))
    out.sum().backward()
    assert not out.any()
    assert not W.grad.any()


def test_many_firings_add_up_in_bfloat16():
    x, W = torch.randn(4096, 4).bfloat16(), torch.randn(4, 2).bfloat16().requires_grad_()
    b_enc = torch.full((2,), 100.0).bfloat16().requires_grad_()
    values, _, _ = encode(x, W, b_enc, torch.zeros(4).bfloat16(), 2)
    values.float().sum().backward()
    assert b_enc.grad.tolist() == [4096, 4096]


def test_a_large_input_bias_costs_no_digits():
    torch.manual_seed(0)
    b_in = 1000 * torch.randn(16)
    x, (W_enc, b_enc, _, _) = b_in + torch.randn(64, 16), weights(16, 128)
    values, ids, _ = encode(x, W_enc, b_enc, b_in, 4)
    values.sum().backward()
    exact_W = W_enc.detach().double().requires_grad_()
    exact = ((x.double() - b_in.double()) @ exact_W + b_enc.double()).topk(4, dim=-1)
    assert torch.equal(ids.sort().values, exact.indices.sort().values)
    exact.values.relu().sum().backward()
    assert (W_enc.grad - exact_W.grad).norm() < 1e-5 * exact_W.grad.norm()
