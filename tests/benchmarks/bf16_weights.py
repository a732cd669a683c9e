"""Does training in bfloat16, which halves the memory, cost explained variance?

    python tests/benchmarks/bf16_weights.py [--seeds 2,3,4] [--activations FOLDER]

`topk` is trained on the sandbox in float32, in bfloat16 as `--train.dtype bfloat16` does it, with steps that are rounded
at random, and in bfloat16 with Adam's own steps, which are rounded to the nearest. Explained variance is that of `core`,
on held-out text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from unittest import mock

HOW = {"float32": "float32", "at random": "bfloat16", "to the nearest": "bfloat16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="2,3,4")
    parser.add_argument("--activations", default=tempfile.mkdtemp())
    args = parser.parse_args()

    from eval_runners.commands import evaluate
    from sae_variants.training import trainer

    found: dict[str, list[float]] = {}
    for seed in args.seeds.split(","):
        for how, dtype in HOW.items():
            round_steps = (lambda *_: None) if how == "to the nearest" else trainer.round_steps
            with tempfile.TemporaryDirectory() as folder, mock.patch.object(trainer, "round_steps", round_steps):
                words = ["--sae", "topk", "--seeds", seed, "--activations", args.activations, "--train.dtype", dtype]
                evaluate.main("core", [*words, "--trained", f"{folder}/trained", "--output", f"{folder}/runs"])
                (path,) = Path(folder, "runs").rglob("*.json")
                result = json.loads(path.read_text())
            found.setdefault(how, []).append(result["eval_result_unstructured"]["explained_variance_corrected"])
            print(f"seed {seed}, {how}: explained variance {found[how][-1]:.4f}", flush=True)
    for how in list(HOW)[1:]:
        differences = [b - a for a, b in zip(found["float32"], found[how], strict=True)]
        mean, spread = statistics.mean(differences), statistics.stdev(differences)
        print(f"rounded {how} minus float32: {mean:.4f}, standard deviation {spread:.4f}, of {len(differences)} seeds")


if __name__ == "__main__":
    main()
