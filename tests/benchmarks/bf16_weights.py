"""Do weights and moments of 16 bits, which halve the memory of a training, cost explained variance?

    python tests/benchmarks/bf16_weights.py [--seeds 2,3,4] [--activations FOLDER]

After every step of `topk` on the sandbox, weights and Adam's moments are rounded to bfloat16: not at all, to the nearest
value, or stochastically, up or down with the probabilities that keep the mean. What the steps compute stays in float32,
so that only the kept numbers differ. Explained variance is that of `core`, on held-out text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor


def rounded(values: Tensor, how: str) -> Tensor:
    """Return values that bfloat16 has."""
    if how == "nearest":
        return values.bfloat16().float()
    bits = values.contiguous().view(torch.int32)  # bfloat16 has the upper half of them
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32)
    return ((bits + noise) & -(1 << 16)).view(torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="2,3,4")
    parser.add_argument("--activations", default=tempfile.mkdtemp())
    args = parser.parse_args()

    from eval_runners.commands import evaluate
    from sae_variants.training import train

    make_trainer = train.make_trainer

    def rounding(how: str):
        def make(*given):
            trainer = make_trainer(*given)

            def round_all(optimizer, *_) -> None:
                for group in optimizer.param_groups:
                    for p in group["params"]:
                        state = optimizer.state[p]
                        for values in (p.data, state.get("exp_avg"), state.get("exp_avg_sq")):
                            if values is not None:
                                values.copy_(rounded(values, how))

            if how != "none":
                trainer.optimizer.register_step_post_hook(round_all)
            return trainer

        return mock.patch.object(train, "make_trainer", make)

    found: dict[str, list[float]] = {}
    for seed in args.seeds.split(","):
        for how in ("none", "nearest", "stochastic"):
            with tempfile.TemporaryDirectory() as folder, rounding(how):
                words = ["--sae", "topk", "--seeds", seed, "--activations", args.activations]
                evaluate.main("core", [*words, "--trained", f"{folder}/trained", "--output", f"{folder}/runs"])
                (path,) = Path(folder, "runs").rglob("*.json")
                result = json.loads(path.read_text())
            found.setdefault(how, []).append(result["eval_result_unstructured"]["explained_variance_corrected"])
            print(f"seed {seed}, {how}: explained variance {found[how][-1]:.4f}", flush=True)
    for how in ("nearest", "stochastic"):
        differences = [b - a for a, b in zip(found["none"], found[how], strict=True)]
        mean, spread = statistics.mean(differences), statistics.stdev(differences)
        print(f"{how} minus none: {mean:.4f}, standard deviation {spread:.4f}, of {len(differences)} seeds")


if __name__ == "__main__":
    main()
