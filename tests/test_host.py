"""A training step does not wait for the device, and numbers that it reads on the host are counted by the step before."""

from __future__ import annotations

import contextlib
import copy
import traceback
from pathlib import Path

import pytest
import torch
from conftest import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from sae_variants import refined_gated
from sae_variants.ops import largest, mostly_zero
from sae_variants.ops.host import Counted
from sae_variants.registry.contract import hooks_of
from sae_variants.registry.variants import own_variant_names
from sae_variants.training.plan import make_plan
from sae_variants.training.trainer import make_trainer


class Reads(TorchDispatchMode):
    """Collects the operations that wait for a device, with the lines of code that ask for them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        waits = name in ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "equal")
        if name in ("index", "index_put", "index_put_"):  # a mask that one number replaces is filled, without waiting
            mask_takes_one = name != "index" and args[2].numel() == 1
            waits = any(i is not None and i.dtype == torch.bool for i in args[1]) and not mask_takes_one
        if waits and all(str(getattr(value, "device", "cpu")) == "cpu" for value in args):
            frames = [f for f in traceback.extract_stack() if "sae_variants" in f.filename or "sae_lens" in f.filename]
            self.found.add(f"{name}: {Path(frames[-1].filename).name}, {frames[-1].line}")
        return func(*args, **(kwargs or {}))


OF_SAELENS = {  # of its AuxK, and of Adam, whose counters lie on the host
    "_local_scalar_dense: topk_sae.py, if dead_neuron_mask is None or (num_dead := int(dead_neuron_mask.sum())) == 0:",
    "_local_scalar_dense: sae_trainer.py, self.optimizer.step()",
    # selections by the mask of special tokens, which lies on the host
    "nonzero: temporal.py, clean_n = is_clean_n.nonzero().squeeze(1)",
    "nonzero: temporal.py, own_clean_m = self.shards.rows(is_clean_n).nonzero().squeeze(1)",
}


@pytest.mark.parametrize("name", own_variant_names())
def test_a_step_does_not_wait_for_the_device(name, target, tmp_path, monkeypatch):
    """Watched on the CPU, on the paths of other devices; the losses are those of the paths of the CPU.

    The third of three steps of each phase is watched: the first may initialise something, the second look for it.
    """
    plan = make_plan(name, target, tiny(name), tmp_path)
    N, losses = plan.settings.batch_tokens, []
    generator = torch.Generator().manual_seed(0)
    batches = [
        (step, torch.randn(N, 32, generator=generator)) for step in (0, 1, 2, 12, 13, 14, 20, 21, 22, 29, 30, 31)
    ]
    special_N, reads = torch.arange(N) % 50 == 0, Reads()
    for elsewhere in (False, True):
        if elsewhere:
            for module in (mostly_zero, largest, refined_gated):
                monkeypatch.setattr(module, "reads_are_free", lambda values: False)
        trainer = make_trainer(plan, 32, "cpu")
        trainer.activation_scaler.scaling_factor = 1.0
        hooks = hooks_of(trainer.sae)
        for step, batch_ND in batches:
            trainer.n_training_steps = step
            hooks.special_N, hooks.context_N = special_N, torch.arange(N) // 16
            with reads if elsewhere and step in (2, 14, 22, 31) else contextlib.nullcontext():
                output = trainer.step(batch_ND)
        losses.append({key: loss.item() for key, loss in output.losses.items()})
    assert reads.found <= OF_SAELENS
    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-5)


def test_a_mask_that_changed_since_it_was_counted_is_counted_anew():
    values, counted = torch.tensor([1, 5, 7, 2]), Counted()
    counted.count(values > 4, values)
    assert counted.indices(values > 4, values).tolist() == [1, 2]
    values[0] = 9
    assert counted.indices(values > 4, values).tolist() == [0, 1, 2]
    other = torch.tensor([0, 0, 0, 9])
    assert counted.indices(other > 4, other).tolist() == [3]
    assert copy.deepcopy(counted).number(other > 4, other) == 1
