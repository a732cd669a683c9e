"""SAEBench's probing of one SAE on the sae-probes data, each adaptation beside the fault it answers."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from eval_runners.contract.contract import Context, Result
from eval_runners.data.labelled import probe_dataset_version
from eval_runners.saebench.shared import hide_output, to_lists
from eval_runners.store.cache import MANIFEST, cached_folder, evict_unused
from eval_runners.store.envelope import sae_bench_release
from sae_variants.common.console import progress
from sae_variants.language_model.hooks import activation_key
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from sae_bench.evals.sparse_probing_sae_probes.eval_config import SparseProbingSaeProbesEvalConfig
    from sae_lens import SAE

LONGEST = 1024
"""Tokens of a document that the package reads, from every model."""


def score_sae_probes(sae: SAE[Any], target: Target, settings: Mapping[str, Any], context: Context) -> Result:
    """Run SAEBench's `sparse_probing_sae_probes` of one SAE.

    Args:
        sae: in inference form.
        target: names the model and the hook.
        settings: fields of SAEBench's config.
        context: the loaded model and the device.

    Returns:
        The result as SAEBench wrote it, with a config of the SAE that SAEBench's plots can read.

    Raises:
        RuntimeError: a dataset has no result.
    """
    from sae_bench.evals.sparse_probing_sae_probes import main
    from sae_bench.evals.sparse_probing_sae_probes.eval_config import SparseProbingSaeProbesEvalConfig

    # the package binds functions to the names of its modules, so the modules are imported by path
    generate, baselines, evals = (
        import_module(f"sae_probes.{name}") for name in ("generate_model_activations", "run_baselines", "run_sae_evals")
    )
    tokenizer = context.model.tokenizer
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        inputs = temporary / "inputs"
        config = SparseProbingSaeProbesEvalConfig(
            **to_lists(settings),
            model_name=target.model_name,
            results_path=str(inputs),
            model_cache_path=str(inputs),
        )
        # the package sets these on the tokenizer, which other evaluations share
        for side in ("truncation_side", "padding_side"):
            stack.callback(setattr, tokenizer, side, getattr(tokenizer, side))
        stack.enter_context(hide_output(main, generate, baselines, evals))
        used: list[Path] = []
        for name in progress(config.dataset_names, "language model"):
            folder = _activations_folder(name, config, target, context)
            for file in folder.rglob("*"):
                if file.is_file() and file.name != MANIFEST:
                    link = inputs / file.relative_to(folder)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(file)
            used.append(folder)
        evict_unused(keep=used)

        run_one_dataset = evals.run_sae_eval
        bar = progress(config.dataset_names, "probes")

        def counted(*args: Any, **kwargs: Any) -> Any:
            next(bar)
            return run_one_dataset(*args, **kwargs)

        stack.enter_context(mock.patch.object(evals, "run_sae_eval", counted))
        main.run_eval(config, [("sae", sae)], context.device, str(temporary / "result"), force_rerun=True)
        next(bar, None)
        (file,) = (temporary / "result").glob("*.json")
        output = json.loads(file.read_text())
    scored = {detail["dataset_name"] for detail in output["eval_result_details"]}
    if missing := set(config.dataset_names) - scored:
        raise RuntimeError(f"sae-probes gave no result for {', '.join(sorted(missing))}")
    # SAEBench writes asdict(cfg): no architecture, and metadata as the text of an object; SAEBench's plots fail on it
    output["sae_cfg_dict"] = json.loads(json.dumps(sae.cfg.to_dict(), default=str))
    output["eval_config"] |= {"results_path": "", "model_cache_path": None}
    output["sae_bench_commit_hash"] = sae_bench_release()
    return output


def _activations_folder(name: str, config: SparseProbingSaeProbesEvalConfig, target: Target, context: Context) -> Path:
    """Folder with the package's files for one dataset: last-token activations, and the probe on all channels."""
    import torch
    from sae_probes import generate_model_activations as generate
    from sae_probes import run_baseline_evals

    # the package assumes that every model reads LONGEST tokens
    longest = min(LONGEST, context.model.cfg.n_ctx)
    collect = generate._process_activations

    def collect_float(*args: Any, **kwargs: Any) -> Any:
        # the package hands bfloat16 to scikit-learn, which has no such type
        return {hook: activations.to(torch.float32) for hook, activations in collect(*args, **kwargs).items()}

    def fill(folder: Path) -> None:
        with mock.patch.object(generate, "_process_activations", collect_float):
            generate.ensure_dataset_activations(
                target.model_name,
                [name],
                [target.hook_name],
                folder,
                context.device,
                max_seq_len=longest,
                model=context.model,
            )
        run_baseline_evals(
            model_name=target.model_name,
            hook_name=target.hook_name,
            setting=config.setting,  # pyright: ignore[reportArgumentType]
            method=config.baseline_method,  # pyright: ignore[reportArgumentType]
            results_path=folder,
            model_cache_path=folder,
            datasets=[name],
            device=context.device,
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
        **activation_key(target, context.model, context.device, "scikit-learn", "sae-probes", "sae-bench"),
    }
    return cached_folder(key, fill)
