"""Compare the time of SAEBench's core evaluation of several SAEs with that of SAEBench as shipped.

    python tests/benchmarks/core_eval.py [--repeats 3] [--saes 1,3,8] [--reconstruction 2] [--variance 20]

The language model has the shape of Pythia-70M and random weights, with the sandbox's tokenizer and text; the hook is
that of its fifth layer of six, the SAEs have 4096 latents. SAEBench takes ten times as many batches for variance as for
reconstruction by default, and so do we here, fewer of both. Each repeat runs SAEBench's `multiple_evals` and ours one
after the other; the ratio is taken within it, and the median is reported with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
HOOK, D_SAE, K = "blocks.4.hook_resid_post", 4096, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--saes", default="1,3,8")
    parser.add_argument("--reconstruction", type=int, default=2)
    parser.add_argument("--variance", type=int, default=20)
    args = parser.parse_args()

    from sae_bench.evals.core import main as core
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    import sae_variants
    from eval_runners.contract.contract import Context
    from eval_runners.contract.located import LocatedSAE
    from eval_runners.core import Settings
    from eval_runners.saebench import memo
    from eval_runners.saebench.core import score_core
    from eval_runners.saebench.shared import Preloaded, mute_loggers, serving_text
    from sae_variants.language_model.contexts import heldout_text_name
    from sae_variants.language_model.load import load_model
    from sae_variants.language_model.target import load_target

    sandbox = load_target("sandbox")
    target = replace(sandbox, hook_name=HOOK)
    shape = {"n_layers": 6, "d_model": 512, "n_ctx": 2048, "d_head": 64, "d_mlp": 2048, "d_vocab": 50304}
    kind = {"act_fn": "gelu", "normalization_type": "LN", "positional_embedding_type": "rotary", "rotary_dim": 16}
    cfg = HookedTransformerConfig(**shape, **kind, parallel_attn_mlp=True, seed=0, default_prepend_bos=True)
    model = HookedTransformer(cfg, load_model(sandbox.model_name, "cpu", sandbox.dtype).tokenizer)
    settings = Settings(
        n_eval_reconstruction_batches=args.reconstruction, n_eval_sparsity_variance_batches=args.variance
    )

    def build(number: int, folder: str) -> tuple[LocatedSAE, Any]:
        located = LocatedSAE(f"sae{number}", Path(folder, str(number)))
        sae_variants.build("stock:topk", d_in=512, d_sae=D_SAE, k=K, seed=number).save_inference_model(located.folder)
        sae = located.load("cpu")
        sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = target.model_name, HOOK
        sae.cfg.metadata.context_size, sae.cfg.metadata.prepend_bos = settings.context_size, True
        sae.cfg.metadata.model_from_pretrained_kwargs = {}
        return located, sae

    def theirs(saes: list) -> float:
        with (
            tempfile.TemporaryDirectory() as folder,
            serving_text(target, heldout_text_name(target), model.tokenizer),
            mock.patch.object(core, "HookedTransformer", Preloaded(model)),
            contextlib.redirect_stdout(io.StringIO()),
            mute_loggers("sae_bench", "sae_lens"),
        ):
            started = time.perf_counter()
            results = core.multiple_evals(
                [(f"sae{number}", sae) for number, sae in enumerate(saes)],
                eval_batch_size_prompts=settings.batch_size_prompts,
                n_eval_reconstruction_batches=settings.n_eval_reconstruction_batches,
                n_eval_sparsity_variance_batches=settings.n_eval_sparsity_variance_batches,
                compute_featurewise_density_statistics=True,
                compute_featurewise_weight_based_metrics=True,
                exclude_special_tokens_from_reconstruction=True,
                dataset=heldout_text_name(target),
                context_size=settings.context_size,
                output_folder=folder,
                device="cpu",
                verbose=False,
                force_rerun=True,
            )
            assert len(results) == len(saes)  # it logs errors and goes on
            return time.perf_counter() - started

    def ours(saes: list, located: list) -> float:
        memo._memories.clear()
        started = time.perf_counter()
        for number, sae in enumerate(saes):
            context = Context(model, "cpu", located[number], following=located[number + 1 :])
            score_core(sae, target, vars(settings), context)
        return time.perf_counter() - started

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    print(f"{cpu}, {os.cpu_count()} cores")
    counts = [int(count) for count in args.saes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        located, saes = zip(*(build(number, folder) for number in range(max(counts))), strict=True)
        for count in counts:
            first = list(saes[:count])
            pairs = [(theirs(first), ours(first, list(located[:count]))) for _ in range(args.repeats)]
            ratios = sorted(a / b for a, b in pairs)
            seconds = " and ".join(f"{statistics.median(side):.1f} s" for side in zip(*pairs, strict=True))
            span = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            print(f"{count} SAEs: {statistics.median(ratios):.2f} times as fast ({span}), {seconds}", flush=True)


if __name__ == "__main__":
    main()
