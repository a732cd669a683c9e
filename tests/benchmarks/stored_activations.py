"""The stream of activations from the language model, and from --activations, beside the steps of a training.

    python tests/benchmarks/stored_activations.py [--rounds 5] [--buffers 2]

Every round takes the same batches from the language model, from a folder that holds them (opened anew, so that every
checksum is compared), and from that folder while `topk` trains on them, which tells whether steps wait for the disk.
Median tokens a second with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--buffers", type=int, default=2, help="Buffers of the recipe in a round.")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    from sae_variants.language_model.target import load_target
    from sae_variants.training.job import Job
    from sae_variants.training.plan import make_plan
    from sae_variants.training.source import open_source
    from sae_variants.training.trainer import make_trainer

    with tempfile.TemporaryDirectory() as folder:
        target = load_target("sandbox")
        kept = replace(target, activations=Path(folder))
        plan = make_plan("topk", target, root=folder)
        batches = open_source(plan, "cpu").stream.batches_per_buffer * args.buffers
        tokens = batches * plan.settings.batch_tokens

        def take(target: Any, step: Callable[[Any], None] = lambda batch: None) -> float:
            source = open_source(make_plan("topk", target, root=folder), "cpu")
            started = time.perf_counter()
            for batch in itertools.islice(source.stream.batches(), batches):
                step(batch)
            return tokens / (time.perf_counter() - started)

        def steps_alone() -> float:
            source = open_source(plan, "cpu")
            rows, job = next(source.stream.batches()), Job(plan, make_trainer(plan, source.d_in, "cpu"))
            started = time.perf_counter()
            for _ in range(batches):
                job.step(rows)
            return tokens / (time.perf_counter() - started)

        def train_on_kept() -> float:
            job = Job(plan, make_trainer(plan, open_source(plan, "cpu").d_in, "cpu"))
            return take(kept, job.step)

        take(kept)
        kinds: dict[str, Callable[[], float]] = {
            "language model": lambda: take(target),
            "kept": lambda: take(kept),
            "steps of topk": steps_alone,
            "steps on kept": train_on_kept,
        }
        rates: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(args.rounds):
            for name, rate in kinds.items():
                rates[name].append(rate())
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print(f"{names[0].partition(': ')[2] if names else platform.processor()}, {torch.get_num_threads()} threads")
    for name, found in rates.items():
        print(f"{name:15} {statistics.median(found):10,.0f} tokens/s  ({min(found):,.0f} to {max(found):,.0f})")


if __name__ == "__main__":
    main()
