"""Compare the time of sparse probing with SAEBench as shipped, for 1 and 4 SAEs, with an empty and with a full cache.

    python tests/benchmarks/sparse_probing.py [--repeats 5] [--datasets NAME,NAME]

Each repeat runs SAEBench's own `run_eval` and ours one after the other on the sandbox; the ratio of a repeat is taken
within it, and the median over the repeats is reported with the smallest and the largest. SAEBench's crash on a fresh
install is avoided (see `saebench.probe_f1`); nothing else is changed for it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--datasets", default="sandbox/ag_news,sandbox/yelp_sentiment,sandbox/term_set1")
    args = parser.parse_args()

    from sae_bench.evals.sparse_probing import main as saebench
    from sae_bench.evals.sparse_probing import probe_training
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

    import sae_variants
    from eval_runners.contract.contract import Context
    from eval_runners.contract.registry import load_evaluator
    from eval_runners.saebench.shared import Preloaded, hide_output
    from eval_runners.saebench.sparse_probing import serving_tasks
    from eval_runners.sparse_probing import Settings
    from sae_variants.language_model.load import load_model
    from sae_variants.language_model.target import load_target

    target = load_target("sandbox")
    model = load_model(target.model_name, "cpu", target.dtype)
    settings = {**target.evaluations["sparse_probing"]}
    settings["dataset_names"] = tuple(args.datasets.split(","))
    evaluator, context = load_evaluator("sparse_probing"), Context(model, "cpu")
    config, _ = evaluator.prepare(target, Settings(**settings))
    host = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items() if k != "tasks"}
    theirs = SparseProbingEvalConfig(**host, model_name=target.model_name, llm_dtype=target.dtype)

    def sae():
        untrained = sae_variants.build("stock:topk", d_in=192, d_sae=1024, k=30)
        untrained.cfg.metadata.model_name, untrained.cfg.metadata.hook_name = target.model_name, target.hook_name
        return untrained

    def shipped(saes: int, folder: Path) -> None:
        body = probe_training.train_sklearn_probe.__wrapped__
        with (
            mock.patch.object(probe_training, "train_sklearn_probe", body),
            mock.patch.object(saebench, "HookedTransformer", Preloaded(model)),
            serving_tasks(),
            hide_output(),
        ):
            listed = [(f"sae{i}", sae()) for i in range(saes)]
            out = tempfile.mkdtemp(dir=folder)
            saebench.run_eval(theirs, listed, "cpu", out, artifacts_path=str(folder / "artifacts"), force_rerun=True)

    def ours(saes: int, folder: Path) -> None:
        with mock.patch.dict(os.environ, {"SAE_VARIANTS_CACHE": str(folder / "cache")}):
            for _ in range(saes):
                evaluator.evaluate(sae(), target, config, context)

    for saes in (1, 4):
        ratios: dict[str, list[float]] = {"empty": [], "full": []}
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as folder:
                for state, of_state in ratios.items():
                    seconds = []
                    for run in (shipped, ours):
                        started = time.perf_counter()
                        run(saes, Path(folder))
                        seconds.append(time.perf_counter() - started)
                    of_state.append(seconds[0] / seconds[1])
                    print(f"{saes} SAEs, {state} cache: {seconds[0]:.1f} s / {seconds[1]:.1f} s", flush=True)
        for state, of_state in ratios.items():
            print(
                f"{saes} SAEs, {state} cache: SAEBench takes {statistics.median(of_state):.2f} times as long "
                f"({min(of_state):.2f} to {max(of_state):.2f}, {args.repeats} repeats)",
                flush=True,
            )


if __name__ == "__main__":
    main()
