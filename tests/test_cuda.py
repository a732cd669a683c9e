"""On a device: steps of every variant, sparse products and the stream give what they give on the CPU.

    pytest -m cuda

Without a CUDA device the same tests run on the CPU, where they check themselves.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import tiny

from sae_variants.ops.sparse import decode, encode
from sae_variants.registry.contract import hooks_of
from sae_variants.registry.variants import own_variant_names
from sae_variants.training.plan import make_plan
from sae_variants.training.source import open_source
from sae_variants.training.trainer import make_trainer

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")],
)
on_devices = pytest.mark.parametrize("device", ["cpu", CUDA])


@on_devices
@pytest.mark.parametrize("name", own_variant_names())
def test_losses_are_those_of_the_cpu_and_no_step_waits(name, device, target, tmp_path):
    """Four steps; the first may initialise something, so that the last two are watched."""
    plan, losses = make_plan(name, target, tiny(name), tmp_path), []
    N, generator = plan.settings.batch_tokens, torch.Generator().manual_seed(0)
    batches = torch.randn(4, N, 32, generator=generator).unbind()
    on_cpu = make_trainer(plan, 32, "cpu")
    trainer = make_trainer(plan, 32, device)
    trainer.sae.load_state_dict(on_cpu.sae.state_dict())
    for each, where in ((on_cpu, "cpu"), (trainer, device)):
        each.activation_scaler.scaling_factor = 1.0
        hooks = hooks_of(each.sae)
        hooks.special_N, hooks.context_N = torch.arange(N) % 50 == 0, torch.arange(N) // 16
        moved = [batch_ND.to(where) for batch_ND in batches]
        for step, batch_ND in enumerate(moved):
            if where == "cuda":
                torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
            try:
                output = each.step(batch_ND)
            finally:
                if where == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        losses.append({key: loss.item() for key, loss in output.losses.items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-5)


@on_devices
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_sparse_products_are_the_dense_ones(device, dtype, error):
    generator = torch.Generator().manual_seed(0)
    D, S, k = 16, 1024, 8
    shapes = (500, D), (S, D), (S,), (S, D), (D,)
    x, W_enc_SD, b_enc, W_dec, b_dec = (torch.randn(shape, generator=generator) for shape in shapes)
    pre_NS = (x - b_dec) @ W_enc_SD.T + b_enc
    ours = [values.to(device, dtype) for values in (x, W_enc_SD, b_enc, W_dec, b_dec)]
    values_Nk, ids_Nk, _ = encode(ours[0], ours[1].T, ours[2], ours[4], k)
    out, _ = decode(values_Nk, ids_Nk, ours[3], ours[4])
    ids_Nk, values_Nk, fires_NS = ids_Nk.cpu(), values_Nk.float().cpu(), torch.zeros_like(pre_NS)
    largest_Nk = pre_NS.topk(k, dim=-1).indices
    assert (ids_Nk[:, :, None] == largest_Nk[:, None]).any(-1).float().mean() > 1 - error
    expected_Nk = pre_NS.gather(-1, ids_Nk).relu()
    assert (values_Nk - expected_Nk).norm() / expected_Nk.norm() < error
    expected_ND = fires_NS.scatter(-1, ids_Nk, values_Nk) @ W_dec + b_dec
    assert (out.float().cpu() - expected_ND).norm() / expected_ND.norm() < error


@on_devices
def test_batches_made_ahead_are_the_same(device, target, tmp_path):
    stream = open_source(make_plan("topk", target, tiny("topk"), tmp_path), device).stream
    found = [
        list(itertools.islice(replace(stream, ahead_on=ahead).batches(), 2 * stream.batches_per_buffer + 1))
        for ahead in (None, device)
    ]
    for plain, ahead in zip(*found, strict=True):
        assert torch.equal(plain.acts_ND, ahead.acts_ND)
        assert torch.equal(plain.special_N, ahead.special_N)
