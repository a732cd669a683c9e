"""SAEBench's sparse probing of one SAE, each adaptation beside the fault it answers."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from eval_runners.contract.contract import Context, Result
from eval_runners.data.labelled import dataset_version, distinct_classes, is_local_dataset, split_dataset
from eval_runners.saebench.padding import skipped_by_model, skipped_by_sae
from eval_runners.saebench.probe_f1 import F1Recorder, ProbeScores
from eval_runners.saebench.shared import Preloaded, hide_output, layer_of, to_lists
from eval_runners.store.cache import cached_folder, evict_unused
from eval_runners.store.envelope import sae_bench_release
from sae_variants.common.console import progress
from sae_variants.common.errors import UsageError
from sae_variants.language_model.hooks import activation_key
from sae_variants.language_model.hub_text import dataset_commit, dataset_errors
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
    from sae_lens import SAE

LLM_F1 = "llm_f1.json"
"""File beside SAEBench's activations that holds the F1 of the language model's probes."""
REVISION = "revision.txt"
"""File beside SAEBench's activations that holds the commit of a dataset on the Hub."""
CACHE_SETTINGS = (
    "probe_train_set_size",
    "probe_test_set_size",
    "random_seed",
    "context_length",
    "llm_batch_size",
    "k_values",
)
"""Settings on which the cached activations and the language model's probes depend; the first three set the split."""


class _ActivationsSaved(Exception):
    """Raised once SAEBench has written its activations and the language model's probes, and turns to the SAE."""


@contextlib.contextmanager
def serving_tasks() -> Iterator[None]:
    """Serve our datasets where SAEBench loads those that it knows, eight of them and all from the Hub."""
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    load = dataset_utils.get_multi_label_train_test_data
    classes = _ClassesOfDatasets(dataset_info.chosen_classes_per_dataset)

    def get(name: str, train_set_size: int, test_set_size: int, random_seed: int) -> Any:
        if is_local_dataset(name):
            return split_dataset(name, train_set_size, test_set_size, random_seed)
        with dataset_errors(name):
            return load(name, train_set_size, test_set_size, random_seed)

    with (
        mock.patch.object(dataset_utils, "get_multi_label_train_test_data", get),
        mock.patch.object(dataset_info, "chosen_classes_per_dataset", classes),
    ):
        yield


class _ClassesOfDatasets(dict[str, list[str]]):
    """SAEBench's table of classes, which reads the classes of a dataset that it lacks from our data."""

    def __missing__(self, name: str) -> list[str]:
        return list(distinct_classes(name))


def score_sparse_probing(
    sae: SAE[Any], target: Target, settings: Mapping[str, Any], context: Context
) -> tuple[Result, dict[str, ProbeScores], dict[str, str]]:
    """Run SAEBench's sparse probing of one SAE.

    Its numbers depend on whether its file of activations existed: the seed is set once, and the language model's
    probes draw random numbers only when they are fitted. So the files are written first, each from the seed, and every
    SAE is scored when all of them exist, whatever the order and number of SAEs.

    Args:
        sae: in inference form.
        target: names the model and the hook.
        settings: fields of SAEBench's config.
        context: the loaded model and the device.

    Returns:
        The result as SAEBench wrote it; dataset -> F1 of every probe; dataset -> its commit on the Hub, where known.
    """
    from sae_bench.evals.sparse_probing import main
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
    from sae_bench.sae_bench_utils import activation_collection, dataset_utils

    config = SparseProbingEvalConfig(**to_lists(settings), model_name=target.model_name, llm_dtype=target.dtype)
    f1: dict[str, ProbeScores] = {}
    revisions: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(serving_tasks())
        stack.enter_context(mock.patch.object(main, "HookedTransformer", Preloaded(context.model)))
        recorder = stack.enter_context(F1Recorder().recording())
        stack.enter_context(skipped_by_model(context.model))
        stack.enter_context(skipped_by_sae(sae))
        stack.enter_context(hide_output(main, activation_collection, dataset_utils))
        artifacts = temporary / "artifacts" / main.EVAL_TYPE_ID_SPARSE_PROBING / target.model_name / target.hook_name
        artifacts.mkdir(parents=True)
        used: list[Path] = []
        for name in progress(config.dataset_names, "language model"):
            folder = _activations_folder(name, config, target, context, recorder)
            (file,) = folder.glob("*.pt")
            (artifacts / f"{name}_activations.pt".replace("/", "_")).symlink_to(file)
            f1[name] = json.loads((folder / LLM_F1).read_text())
            if (folder / REVISION).is_file():
                revisions[name] = (folder / REVISION).read_text()
            used.append(folder)
        evict_unused(keep=used)

        run_one_dataset = main.run_eval_single_dataset
        bar = progress(config.dataset_names, "probes")

        def recorded(dataset_name: str, *args: Any, **kwargs: Any) -> Any:
            next(bar)
            scores = run_one_dataset(dataset_name, *args, **kwargs)
            f1[dataset_name] |= recorder.pop_scores("sae")
            return scores

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise UsageError("activations vanished while an SAE was scored: run the command again")

        stack.enter_context(mock.patch.object(main, "run_eval_single_dataset", recorded))
        stack.enter_context(mock.patch.object(main, "get_dataset_activations", refuse))
        main.run_eval(
            config,
            [("sae", sae)],
            context.device,
            output_path=str(temporary / "result"),
            force_rerun=True,
            artifacts_path=str(temporary / "artifacts"),
        )
        next(bar, None)
        (file,) = (temporary / "result").glob("*.json")
        output = json.loads(file.read_text())
    output["sae_bench_commit_hash"] = sae_bench_release()
    return output, f1, revisions


def _activations_folder(
    name: str, config: SparseProbingEvalConfig, target: Target, context: Context, recorder: F1Recorder
) -> Path:
    """Folder with SAEBench's file of activations of one dataset, and the F1 of the language model's probes."""
    import torch
    from sae_bench.evals.sparse_probing import main
    from sae_bench.sae_bench_utils import activation_collection

    def fill(folder: Path) -> None:
        random.seed(config.random_seed)
        torch.manual_seed(config.random_seed)
        no_sae: Any = None
        with mock.patch.object(activation_collection, "get_sae_meaned_activations", side_effect=_ActivationsSaved):
            try:
                main.run_eval_single_dataset(
                    name,
                    config,
                    no_sae,
                    context.model,
                    layer_of(target.hook_name),
                    target.hook_name,
                    context.device,
                    str(folder),
                    save_activations=True,
                )
            except _ActivationsSaved:
                pass
            except ValueError as error:
                if "contains NaN" not in str(error):
                    raise
                raise UsageError(
                    f"{name} has a document whose first {config.context_length} tokens are all special tokens: "
                    "remove it, or give a larger --context-length"
                ) from error
        (folder / LLM_F1).write_text(json.dumps(recorder.pop_scores("llm")))
        if not is_local_dataset(name) and (commit := dataset_commit(_repository(name))):
            (folder / REVISION).write_text(commit)

    key = {
        "evaluation": f"sparse_probing, sae-bench {version('sae-bench')}",
        "dataset": [name, dataset_version(name, *[getattr(config, field) for field in CACHE_SETTINGS[:3]])],
        "settings": {field: getattr(config, field) for field in CACHE_SETTINGS},
        **activation_key(target, context.model, context.device, "scikit-learn"),
    }
    return cached_folder(key, fill)


def _repository(name: str) -> str:
    """Return the repository of a dataset by SAEBench's name, which may name a part of it."""
    return name.partition("_class_set")[0].removesuffix("_sentiment")
