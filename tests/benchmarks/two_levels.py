"""Time of training `hierarchical` over that of `stock:standard` of its lower level's size, on the sandbox, interleaved.

python tests/benchmarks/two_levels.py [--rounds 7] [--steps 4]

Steps of each phase are weighted by its share. Two ratios: of the steps alone, and with the language model's part, which
both share, as users pay it. Then the share of a step of `learnable_dual`, both levels training, that its trace takes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import sae_lens  # noqa: F401  registers
import torch

from sae_variants.language_model.contexts import read_contexts
from sae_variants.language_model.hooks import hook_activations, hook_width
from sae_variants.language_model.load import load_model
from sae_variants.language_model.target import load_target
from sae_variants.training.plan import make_plan
from sae_variants.training.trainer import make_trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    target = load_target("sandbox")
    model = load_model(target.model_name, "cpu", target.dtype)
    with tempfile.TemporaryDirectory() as folder:
        plans = {name: make_plan(name, target, {}, folder) for name in ("stock:standard", "hierarchical")}
        d_in = hook_width(model, target.hook_name)
        trainers = {"stock:standard": make_trainer(plans["stock:standard"], d_in, "cpu")}
        settings = plans["hierarchical"].settings
        cfg = trainers["stock:standard"].sae.cfg
        shares = {}
        for phase in (1, 2, 3):
            trainer = make_trainer(plans["hierarchical"], d_in, "cpu")
            starts = [step for step in range(settings.steps) if trainer.sae.cfg.phase(step) == phase]
            if starts:  # levels that train apart have no second phase
                trainer.n_training_steps = starts[0]
                trainers[f"phase {phase}"] = trainer
                shares[phase] = len(starts) / settings.steps
        made = make_plan("learnable_dual", target, {"curriculum": False}, folder)
        trainers["learnable_dual"] = make_trainer(made, d_in, "cpu")
        traced = _timed(trainers["learnable_dual"].sae, "_trace_level", "_trace_step")
        assert trainers["phase 1"].sae.cfg.d_lower == cfg.d_sae, "not of one size"
        contexts = read_contexts(target, model, settings.context_size)
        per_batch = settings.batch_tokens // (settings.context_size - 1) + 1
        activations = hook_activations(model, target.hook_name)
        times: dict[str, list[float]] = {name: [] for name in (*trainers, "language model", "trace")}
        for number in range(args.rounds + 1):  # the first round warms up
            started = time.perf_counter()
            tokens = [torch.stack([next(contexts) for _ in range(per_batch)]) for _ in range(args.steps)]
            batches = [activations(ids)[:, 1:].flatten(0, 1)[: settings.batch_tokens] for ids in tokens]
            spent = {"language model": time.perf_counter() - started}
            for name, trainer in trainers.items():
                started = time.perf_counter()
                for acts in batches:
                    trainer.step(acts)
                spent[name] = time.perf_counter() - started
            spent["trace"] = sum(traced)
            traced.clear()
            if number:
                for name, seconds in spent.items():
                    times[name].append(seconds)
    rounds = [{name: column[i] for name, column in times.items()} for i in range(args.rounds)]
    for title, shared in (("steps alone", 0.0), ("with the language model", 1.0)):
        ratios = [
            (sum(shares[phase] * one[f"phase {phase}"] for phase in shares) + shared * one["language model"])
            / (one["stock:standard"] + shared * one["language model"])
            for one in rounds
        ]
        print(f"{title}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    traces = [one["trace"] / one["learnable_dual"] for one in rounds]
    print(
        f"trace: {statistics.median(traces):.2%} ({min(traces):.2%} to {max(traces):.2%}) of a step of learnable_dual"
    )
    for phase in shares:
        alone = [one[f"phase {phase}"] / one["stock:standard"] for one in rounds]
        print(
            f"phase {phase}, {shares[phase]:.0%} of the steps: {statistics.median(alone):.2f} of a step of stock:standard"
        )


def _timed(owner: object, *names: str) -> list[float]:
    """Seconds of each call of these methods from now on."""
    seconds: list[float] = []

    def timed(method):
        def call(*args: object) -> None:
            started = time.perf_counter()
            method(*args)
            seconds.append(time.perf_counter() - started)

        return call

    for name in names:
        setattr(owner, name, timed(getattr(owner, name)))
    return seconds


if __name__ == "__main__":
    main()
