"""Time and memory of training steps of `topk` over the number of latents, up to a million on one machine.

    python tests/benchmarks/large_dictionary.py [--d-in 128] [--k 32] [--d-sae 16384,65536] [--dtype bfloat16] [--picture FILE]

Each width runs in a process of its own, on random activations, with nine latents in ten dead, so that AuxK chooses among
nearly all of them: two steps to warm up, then the median of the others; a checkpoint and the finished SAE in SAELens'
layout. Memory is the largest resident set beyond that before the SAE was built, beside what `training_bytes` predicts.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import torch


def resident() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss)


def measure(d_in: int, k: int, d_sae: int, batch: int, steps: int, dtype: str) -> dict[str, float]:
    from sae_variants.common.memory import reuse_freed_memory
    from sae_variants.language_model.target import load_target
    from sae_variants.training.job import Job
    from sae_variants.training.plan import make_plan
    from sae_variants.training.sharing import training_bytes
    from sae_variants.training.trainer import make_trainer
    from sae_variants.training.windows import Batch

    warnings.simplefilter("ignore")
    reuse_freed_memory()  # as every training does
    with tempfile.TemporaryDirectory() as folder:
        fields = {"d_sae": d_sae, "k": k, "batch_tokens": batch, "training_tokens": batch * (steps + 2), "dtype": dtype}
        plan = make_plan("topk", load_target("sandbox"), fields, folder)
        x_ND, nothing_N = torch.randn(batch, d_in).to(getattr(torch, dtype)), torch.zeros(batch, dtype=torch.bool)
        before = resident()
        job = Job(plan, make_trainer(plan, d_in, "cpu"))
        job.trainer.activation_scaler.scaling_factor = 1.0
        sae = job.trainer.sae
        seconds = []
        for number in range(steps + 2):
            sae.tokens_since_fired[: int(0.9 * d_sae)] = sae.cfg.dead_after_tokens + 1
            sae.b_enc.data[: int(0.9 * d_sae)] = -1.0
            started = time.perf_counter()
            job.step(Batch(x_ND, nothing_N, nothing_N.long()))
            if number > 1:
                seconds.append(time.perf_counter() - started)
        in_steps = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        started = time.perf_counter()
        job.save_checkpoint()
        saved = time.perf_counter()
        job.finish()
        return {
            "d_sae": d_sae,
            "seconds": statistics.median(seconds),
            "least": min(seconds),
            "most": max(seconds),
            "bytes": in_steps,
            "bytes_with_saving": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
            "predicted": sum(training_bytes(plan, d_in, "cpu")),
            "checkpoint": saved - started,
            "finish": time.perf_counter() - saved,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-in", type=int, default=128)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--d-sae", default="16384,32768,65536,131072,262144,524288,1048576")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--picture", help="Draw time and memory over the number of latents.")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.d_in, args.k, int(args.d_sae), args.batch, args.steps, args.dtype)))
        return
    print("| latents | s a step | GB in steps | GB with saving | predicted | checkpoint | save |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for d_sae in args.d_sae.split(","):
        words = [sys.executable, __file__, "--one", "--d-sae", d_sae]
        for name in ("d_in", "k", "batch", "steps", "dtype"):
            words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        r = json.loads(done.stdout.splitlines()[-1])
        rows.append(r)
        gigabytes = " | ".join(f"{r[name] / 1e9:.2f}" for name in ("bytes", "bytes_with_saving", "predicted"))
        span = f"{r['seconds']:.2f} ({r['least']:.2f} to {r['most']:.2f})"
        print(
            f"| {r['d_sae']:,.0f} | {span} | {gigabytes} | {r['checkpoint']:.1f} s | {r['finish']:.1f} s |", flush=True
        )
    if len(rows) > 1:
        slopes = [slope([r["d_sae"] for r in rows], [r[name] for r in rows]) for name in ("seconds", "bytes")]
        print(
            f"time grows with the number of latents to the power {slopes[0]:.2f}, memory to the power {slopes[1]:.2f}"
        )
        if args.picture:
            draw(rows, slopes, args)


def slope(x: list[float], y: list[float]) -> float:
    """Return the slope of a line through the logarithms."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def draw(rows: list[dict[str, float]], slopes: list[float], args: argparse.Namespace) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    widths = [r["d_sae"] for r in rows]
    time_axes.plot(widths, [r["seconds"] for r in rows], "o-", color="#0072b2")
    time_axes.set(title=f"seconds a step (slope {slopes[0]:.2f})")
    memory_axes.plot(widths, [r["bytes"] / 1e9 for r in rows], "o-", color="#0072b2", label="measured")
    memory_axes.plot(widths, [r["predicted"] / 1e9 for r in rows], "x--", color="#d55e00", label="predicted")
    memory_axes.set(title=f"GB (slope {slopes[1]:.2f})")
    memory_axes.legend(frameon=False)
    for axes in (time_axes, memory_axes):
        axes.set(xscale="log", yscale="log", xlabel="latents")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"topk, d_in {args.d_in}, k {args.k}, {args.batch:,} tokens a step, nine latents in ten dead")
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
