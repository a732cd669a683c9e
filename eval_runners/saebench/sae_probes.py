"""SAEBench's probing on the sae-probes data of one SAE, each adaptation beside the fault it answers."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from eval_runners.data.labelled import probe_dataset_version
from eval_runners.saebench.shared import hide_output, to_lists
from eval_runners.store.cache import MANIFEST, cached_folder, evict_unused
from eval_runners.store.envelope import sae_bench_release
from sae_variants.common.console import progress
from sae_variants.language_model.hooks import activation_key
from sae_variants.language_model.target import Target


def score_sae_probes(sae: Any, model: Any, target: Target, settings: dict[str, Any], device: str) -> dict[str, Any]:
    """SAEBench's `sparse_probing_sae_probes` of one SAE, as SAEBench wrote it."""
    from sae_bench.evals.sparse_probing_sae_probes import main
    from sae_bench.evals.sparse_probing_sae_probes.eval_config import SparseProbingSaeProbesEvalConfig

    # the package's names for its modules stand for functions in them
    generate, baselines, evals = (
        import_module(f"sae_probes.{name}") for name in ("generate_model_activations", "run_baselines", "run_sae_evals")
    )
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = SparseProbingSaeProbesEvalConfig(
            **to_lists(settings),
            model_name=target.model_name,
            results_path=str(temporary / "made"),
            model_cache_path=str(temporary / "made"),
        )
        # the package sets this on the tokenizer, which other evaluations share
        for side in ("truncation_side", "padding_side"):
            stack.callback(setattr, model.tokenizer, side, getattr(model.tokenizer, side))
        stack.enter_context(hide_output(main, generate, baselines, evals))
        used: list[Path] = []
        for name in progress(config.dataset_names, "language model"):
            folder = _stored(name, config, model, target, device)
            for file in folder.rglob("*"):
                if file.is_file() and file.name != MANIFEST:
                    link = temporary / "made" / file.relative_to(folder)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(file)
            used.append(folder)
        evict_unused(keep=used)

        one_dataset = evals.run_sae_eval
        bar = progress(config.dataset_names, "probes")

        def observed(*args: Any, **kwargs: Any) -> Any:
            next(bar)
            return one_dataset(*args, **kwargs)

        stack.enter_context(mock.patch.object(evals, "run_sae_eval", observed))
        main.run_eval(config, [("sae", sae)], device, str(temporary / "result"), force_rerun=True)
        next(bar, None)
        (written,) = (temporary / "result").glob("*.json")
        output = json.loads(written.read_text())
    found = {detail["dataset_name"] for detail in output["eval_result_details"]}
    if found != set(config.dataset_names):
        raise RuntimeError(f"sae-probes gave no result for {', '.join(set(config.dataset_names) - found)}")
    # SAEBench writes asdict(cfg): no architecture, and metadata as the text of an object; its own plots fail on it
    output["sae_cfg_dict"] = json.loads(json.dumps(sae.cfg.to_dict(), default=str))
    output["eval_config"] |= {"results_path": "", "model_cache_path": None}
    output["sae_bench_commit_hash"] = sae_bench_release()
    return output


def _stored(name: str, config: Any, model: Any, target: Target, device: str) -> Path:
    """Folder with the package's files for one dataset: last-token activations, and the probe on all channels."""
    import torch
    from sae_probes import generate_model_activations as generate
    from sae_probes import run_baseline_evals

    # the package assumes that every model reads 1,024 tokens
    longest = min(1024, model.cfg.n_ctx)
    collect = generate._process_activations

    def collect_float(*args: Any, **kwargs: Any) -> Any:
        # it hands bfloat16 to scikit-learn, which has no such numbers
        return {hook: activations.to(torch.float32) for hook, activations in collect(*args, **kwargs).items()}

    def make(folder: Path) -> None:
        with mock.patch.object(generate, "_process_activations", collect_float):
            generate.ensure_dataset_activations(
                target.model_name, [name], [target.hook_name], folder, device, max_seq_len=longest, model=model
            )
        run_baseline_evals(
            model_name=target.model_name,
            hook_name=target.hook_name,
            setting=config.setting,
            method=config.baseline_method,
            results_path=folder,
            model_cache_path=folder,
            datasets=[name],
            device=device,
            seed=config.random_seed,
        )
        for pickled in folder.glob("baseline_results_*/normal"):
            shutil.rmtree(pickled)

    key = {
        "evaluation": "sae_probes",
        "dataset": [name, probe_dataset_version(name)],
        "longest": longest,
        "random_seed": config.random_seed,
        "method": [config.setting, config.baseline_method],
        **activation_key(target, model, device, "scikit-learn", "sae-probes", "sae-bench"),
    }
    return cached_folder(key, make)
