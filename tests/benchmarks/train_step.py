"""A training step of `topk` against those of others, and against its one dense product; then whole trainings.

    python tests/benchmarks/train_step.py [--rounds 7] [--threads 1] [--tokens 4096] [--d-in 512] [--d-sae 16384] [-k 32]
    python tests/benchmarks/train_step.py --loop [--rounds 3]

A step is forward, backward and optimiser on random activations; every round takes each step once, in turn, and ratios are
of one round: medians, with the smallest and the largest. The product is PyTorch's, x @ W_enc, and oneDNN's, which `topk`
takes. Dead latents are reconstructed on one token in eight, the sandbox's `aux_every`, or on all. Units are multiplications as PyTorch counts them, in encoder products; those of sums over k rows are not counted. Our commands let glibc keep freed memory, from which all would
profit: `--keep-memory` does so here, else memory is as in any Python process. Extra memory is the most that a process of
its own takes in a step beyond what it holds between steps. `dictionary_learning` and `sparsify` take part where they are
installed (`pip install -e '.[benchmark]'`). `--loop` trains on the sandbox's language model from start to
saved SAE, by SAELens' `LanguageModelSAETrainingRunner` with its TopK, and by `sae_variants.train`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

OURS, DEAD, ALL_DEAD, REFINED = "topk", "topk, 20 % dead", "topk, 20 % dead, all", "topk, refined"
SAE_LENS, PRODUCT, ONEDNN = "SAELens", "encoder product", "by oneDNN"
OTHERS = ("dictionary_learning", "sparsify")


def contender(name: str, args: argparse.Namespace) -> Callable[[Any], Any] | None:
    """A step on a batch [tokens, d_in]; None where its package is not installed."""
    import torch

    torch.manual_seed(0)
    if name == PRODUCT:
        W_enc = torch.randn(args.d_in, args.d_sae)
        return lambda x: x @ W_enc
    if name == ONEDNN:
        from sae_variants.ops import products

        W_enc = torch.randn(args.d_sae, args.d_in).T
        return (lambda x: products.encoder_product(x, W_enc)) if products.ONEDNN else None
    if name in (OURS, DEAD, ALL_DEAD, REFINED):
        more = {ALL_DEAD: {"aux_every": 1}, REFINED: {"refine": 1}}.get(name, {})
        return own_step(args, 0.2 if name in (DEAD, ALL_DEAD) else 0.0, more)
    if name == SAE_LENS:
        return trainer_of("stock:topk", args).step
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dictionary_learning(args) if name == "dictionary_learning" else sparsify(args)
        except ImportError:
            return None


def trainer_of(name: str, args: argparse.Namespace, more: dict[str, Any] | None = None) -> Any:
    import sae_lens  # noqa: F401  registers

    from sae_variants.language_model.target import load_target
    from sae_variants.training.plan import make_plan
    from sae_variants.training.trainer import make_trainer

    fields = {"k": args.k, "d_sae": args.d_sae, "batch_tokens": args.tokens, "training_tokens": 10_000 * args.tokens}
    fields |= more or {}
    return make_trainer(make_plan(name, load_target("sandbox"), fields), args.d_in, "cpu")


def own_step(args: argparse.Namespace, dead: float, more: dict[str, Any]) -> Callable[[Any], Any]:
    import torch

    trainer = trainer_of("topk", args, more)
    sae, asleep = trainer.sae, torch.arange(round(dead * args.d_sae))
    sae.b_enc.data[asleep] = -100.0

    def step(x: Any) -> None:
        sae.tokens_since_fired[asleep] = sae.cfg.dead_after_tokens + 1
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def dictionary_learning(args: argparse.Namespace) -> Callable[[Any], Any]:
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(100_000, args.d_in, args.d_sae, args.k, layer=0, lm_name="", device="cpu")
    return lambda x: trainer.update(1, x)


def sparsify(args: argparse.Namespace) -> Callable[[Any], Any]:
    import torch
    from sparsify import SparseCoder, SparseCoderConfig, sparse_coder, utils

    sparse_coder.decoder_impl = utils.eager_decode  # Triton's, which it takes where Triton is installed, needs a GPU
    sae = SparseCoder(args.d_in, SparseCoderConfig(num_latents=args.d_sae, k=args.k))
    adam = torch.optim.Adam(sae.parameters(), lr=1e-4)

    def step(x: Any) -> None:  # as its trainer does
        sae.set_decoder_norm_to_unit_norm()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step


def memory(name: str, args: argparse.Namespace) -> float:
    """MB that steps take at most, beyond what is held between them; for a process of its own."""
    import torch

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

    step, x = contender(name, args), torch.randn(args.tokens, args.d_in)
    assert step is not None
    for _ in range(2):
        step(x)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free is not held
    held = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most begins anew
    step(x)
    return status("VmHWM") - held


def steps(args: argparse.Namespace) -> None:
    import torch

    from sae_variants.language_model.load import reuse_freed_memory

    if args.keep_memory:
        reuse_freed_memory()
    made = {name: contender(name, args) for name in (PRODUCT, ONEDNN, OURS, REFINED, DEAD, ALL_DEAD, SAE_LENS, *OTHERS)}
    for name in [name for name, step in made.items() if step is None]:
        print(f"{name}: not on this machine, left out")
        del made[name]
    times: dict[str, list[float]] = {name: [] for name in made}
    for number in range(args.rounds + 1):  # the first round warms up
        x = torch.randn(args.tokens, args.d_in)
        for name, step in made.items():
            started = time.perf_counter()
            step(x)
            if number:
                times[name].append(time.perf_counter() - started)
    print(f"{args.tokens} tokens, d_in {args.d_in}, d_sae {args.d_sae}, k {args.k}, {torch.get_num_threads()} threads")
    print(f"{'':22}{'over the product':>26}{'over topk':>26}{'units':>8}{'extra memory':>16}")
    for name in made:
        said = [spread([t / o for t, o in zip(times[name], times[base], strict=True)]) for base in (PRODUCT, OURS)]
        print(f"{name:22}{said[0]:>26}{said[1]:>26}{units(made[name], args):>8}{extra(name):>16}")


def units(step: Callable[[Any], Any], args: argparse.Namespace) -> str:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    by_onednn = {torch.ops.mkldnn._linear_pointwise: lambda x, W, *_, **__: 2 * x[0] * x[1] * W[0]}
    with FlopCounterMode(display=False, custom_mapping=by_onednn) as counter:
        step(torch.randn(args.tokens, args.d_in))
    return f"{counter.get_total_flops() / (2 * args.tokens * args.d_in * args.d_sae):.2f}"


def extra(name: str) -> str:
    if name in (PRODUCT, ONEDNN) or not Path("/proc/self/clear_refs").exists():
        return "-"
    command = [sys.executable, *sys.argv, "--memory", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{float(done.stdout.splitlines()[-1]):.0f} MB" if done.returncode == 0 else "failed"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def loop(args: argparse.Namespace) -> None:
    """Tokens per second of whole trainings, the language model's part included."""
    from sae_variants.language_model.load import load_model
    from sae_variants.language_model.target import load_target
    from sae_variants.training.plan import make_plan
    from sae_variants.training.train import train_plans

    target = load_target("sandbox")
    tokens = 32 * 2048
    model = load_model(target.model_name, "cpu", target.dtype)
    fields = {"k": args.k, "d_sae": args.d_sae, "training_tokens": tokens, "buffer_contexts": 256}
    trainings = {
        OURS: lambda folder: train_plans([make_plan("topk", target, fields, folder)]),
        SAE_LENS: lambda folder: by_sae_lens(args, target, model, tokens, folder),
    }
    ratios = []
    for number in range(args.rounds + 1):  # the first round warms up; who begins changes
        taken = {}
        print(f"round {number} of {args.rounds}" if number else "warming up", file=sys.stderr)
        for name in sorted(trainings, reverse=number % 2 == 1):
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
                started = time.perf_counter()
                trainings[name](folder)
                taken[name] = time.perf_counter() - started
        if number:
            ratios.append(taken[SAE_LENS] / taken[OURS])
            print(", ".join(f"{name} {tokens / seconds:,.0f} tokens/s" for name, seconds in sorted(taken.items())))
    print(f"topk trains {spread(ratios)} times as fast as SAELens' runner its TopK, d_sae {args.d_sae}, k {args.k}")


def by_sae_lens(args: argparse.Namespace, target: Any, model: Any, tokens: int, folder: str) -> None:
    from datasets import Dataset
    from sae_lens import (
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        LoggingConfig,
        TopKTrainingSAEConfig,
    )

    from sae_variants.sandbox.corpus import documents

    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(
            d_in=model.cfg.d_model, d_sae=args.d_sae, k=args.k, normalize_activations="expected_average_only_in"
        ),
        model_name=target.model_name, hook_name=target.hook_name, training_tokens=tokens, train_batch_size_tokens=2048,
        context_size=128, n_batches_in_buffer=16, store_batch_size_prompts=32, n_checkpoints=0, checkpoint_path=None,
        output_path=f"{folder}/out", save_final_checkpoint=False, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    dataset = Dataset.from_dict({"text": [document.text for document in documents("train")]})
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        LanguageModelSAETrainingRunner(config, override_dataset=dataset, override_model=model).run()


def main() -> None:
    from sae_variants.cli.options import parse_positive

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=parse_positive, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--tokens", type=parse_positive, default=4096)
    parser.add_argument("--d-in", type=parse_positive, default=512)
    parser.add_argument("--d-sae", type=parse_positive, default=16384)
    parser.add_argument("-k", type=parse_positive, default=32)
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("--loop", action="store_true")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.k > args.d_sae:
        parser.error(f"-k {args.k} exceeds --d-sae {args.d_sae}")
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory:
        print(memory(args.memory, args))
    else:
        (loop if args.loop else steps)(args)


if __name__ == "__main__":
    main()
