"""The stream of a synthetic target against SAELens' own iterator over the same model, in tokens a second.

    python tests/benchmarks/synthetic_stream.py [--target synthetic] [--rounds 7] [--tokens 32768]

Every round takes the same number of tokens from each, in turn; ratios are of one round: the median, with the smallest and
the largest. Batches are those of the target's recipe. SAELens has no sequences, so the target must have no half-lives.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


def rate_of(batches: Iterator[Any], count: int, rows: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * rows / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="synthetic")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=32768)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    from sae_lens.synthetic.training import SyntheticActivationIterator

    from sae_variants.language_model.target import load_target
    from sae_variants.synthetic.config import HALF_LIVES
    from sae_variants.synthetic.model import load_synthetic
    from sae_variants.training.plan import make_plan
    from sae_variants.training.source import open_source

    target = load_target(args.target)
    if target.synthetic is None or HALF_LIVES in target.synthetic:
        parser.error(f"--target {args.target} is no synthetic target, or one with half-lives: SAELens has none")
    plan = make_plan("stock:batchtopk", target)
    rows = plan.settings.batch_tokens
    data = load_synthetic(target.synthetic, "cpu")
    model = data.model
    streams: dict[str, Callable[[], Iterator[Any]]] = {
        "ours": lambda: open_source(plan, "cpu").stream.batches(),
        "SAELens": lambda: SyntheticActivationIterator(model.feature_dict, model.activation_generator, rows),
    }
    running = {name: start() for name, start in streams.items()}
    for batches in running.values():
        next(batches)
    count = max(1, args.tokens // rows)
    rates: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(args.rounds):
        for name, batches in running.items():
            rates[name].append(rate_of(batches, count, rows))
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print(f"{names[0].partition(': ')[2] if names else platform.processor()}, {torch.get_num_threads()} threads")
    for name, found in rates.items():
        print(f"{name:8} {statistics.median(found):10,.0f} tokens/s  ({min(found):,.0f} to {max(found):,.0f})")
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["SAELens"], strict=True)]
    print(f"ratio    {statistics.median(ratios):10.2f}           ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
