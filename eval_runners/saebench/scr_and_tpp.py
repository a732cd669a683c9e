"""SAEBench's SCR and TPP of one SAE, each adaptation beside the fault it answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from eval_runners.contract.contract import CannotDo, Context, Result
from eval_runners.data.labelled_pairs import FIRST, PAIRED, PAIRS, SECOND, TEXT, labels_of, paired_texts
from eval_runners.saebench.padding import skipped_by_model
from eval_runners.saebench.run import in_own_folder, lasting_folder, run_eval
from eval_runners.saebench.shared import hide_output, layer_of, to_lists
from eval_runners.saebench.sparse_probing import serving_tasks
from sae_variants.common.console import progress
from sae_variants.common.hashing import hash_value
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
    from sae_lens import SAE

LEAST_ACCURACY = 0.6
"""Accuracy of the language model's probes from which an SAE can be scored."""


class _ArtifactsSaved(Exception):
    """Raised once SAEBench has written activations and probes, and turns to the SAE."""


class _Nothing:
    """Stand-in for an SAE."""

    def __getattr__(self, name: str) -> Any:
        raise _ArtifactsSaved


_artifacts: dict[str, tuple[Path, dict[str, float]]] = {}
"""Folder with SAEBench's activations and probes, and accuracy by dataset, for each key."""


def runs_of(config: ScrAndTppEvalConfig) -> list[tuple[str, tuple[str, str] | None]]:
    """Return the datasets of a config, for SCR each with every pair of values of its first label."""
    if not config.perform_scr:
        return [(name, None) for name in config.dataset_names]
    return [(name, pair) for name in config.dataset_names for pair in config.column1_vals_lookup[name]]


@contextlib.contextmanager
def serving_pairs() -> Iterator[None]:
    """Serve our texts with two labels where SAEBench loads its own, and asserts that they are its own."""
    from sae_bench.evals.scr_and_tpp import dataset_creation, main
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    load = dataset_creation.get_train_test_data
    first, second = labels_of(PAIRED)
    columns = {"text_column_name": TEXT, "column1_name": FIRST, "column2_name": SECOND}
    mappings = {"column1_mapping": {v: v for v in first}, "column2_mapping": {v: v for v in second}}

    def get(name: str, spurious: bool, train: int, test: int, seed: int, *values: Any) -> Any:
        if not spurious or name != PAIRED:
            return load(name, spurious, train, test, seed, *values)
        parts = zip(paired_texts(name), (train, test), strict=True)
        make: Any = dataset_creation.get_spurious_corr_data
        sets = [make(df, *values, name, size // 4, seed) for df, size in parts]
        return dataset_utils.ensure_shared_keys(*sets)

    class SecondValues(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            return second if name == PAIRED else None  # TPP has no second label, and does not ask for it

    with (
        mock.patch.dict(dataset_info.dataset_metadata, {PAIRED: columns | mappings}),
        mock.patch.object(main, "COLUMN2_VALS_LOOKUP", SecondValues(main.COLUMN2_VALS_LOOKUP)),
        mock.patch.object(dataset_creation, "get_train_test_data", get),
    ):
        yield


def score_scr_or_tpp(
    sae: SAE[Any], target: Target, settings: Mapping[str, Any], context: Context, perform_scr: bool
) -> tuple[Result, dict[str, float], bool]:
    """Run SAEBench's SCR or TPP of one SAE.

    Its numbers depend on whether its files of activations and probes existed, because making them draws random
    numbers. So they are made first, once for all SAEs, and every SAE is scored when they exist.

    Args:
        sae: In inference form.
        target: Names the model and the hook.
        settings: Fields of SAEBench's config.
        context: The loaded model and the device.
        perform_scr: Whether it is SCR.

    Returns:
        The result as SAEBench wrote it; accuracy of the language model's probes by dataset; whether it ablated latents.

    Raises:
        UsageError: the probes are at chance, so that an SAE cannot be scored.
    """
    from sae_bench.evals.scr_and_tpp import main
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
    from sae_bench.sae_bench_utils import activation_collection, dataset_utils

    config = ScrAndTppEvalConfig(
        **to_lists(settings), perform_scr=perform_scr, model_name=target.model_name, llm_dtype=target.dtype
    )
    config.column1_vals_lookup = {**config.column1_vals_lookup, PAIRED: list(PAIRS)}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(in_own_folder(main, context, config.random_seed))
        stack.enter_context(serving_tasks())
        stack.enter_context(serving_pairs())
        stack.enter_context(skipped_by_model(context.model))
        stack.enter_context(hide_output(activation_collection, dataset_utils))
        made, accuracies = _artifacts_of(config, target, context)
        artifacts = folder / "artifacts" / ("scr" if perform_scr else "tpp") / target.model_name / target.hook_name
        artifacts.parent.mkdir(parents=True)
        artifacts.symlink_to(made)
        run_one, bar = main.run_eval_single_dataset, progress(runs_of(config), "ablations")
        select, ablated = main.select_top_n_features, []

        def watched(*args: Any, **kwargs: Any) -> Any:
            next(bar)
            return run_one(*args, **kwargs)

        def watched_select(*args: Any) -> Any:
            mask_S = select(*args)
            ablated.append(bool(mask_S.any()))
            return mask_S

        stack.enter_context(mock.patch.object(main, "run_eval_single_dataset", watched))
        stack.enter_context(mock.patch.object(main, "select_top_n_features", watched_select))
        output = run_eval(main, config, sae, context, folder, artifacts_path=str(folder / "artifacts"))
        next(bar, None)
    return output, accuracies, any(ablated)


def _artifacts_of(config: ScrAndTppEvalConfig, target: Target, context: Context) -> tuple[Path, dict[str, float]]:
    """Make SAEBench's activations and probes, or find those that this process has made."""
    from sae_bench.evals.scr_and_tpp import main

    key = hash_value([asdict(config), target.hook_name, context.device])
    if key not in _artifacts:
        folder, accuracies, test = lasting_folder(), {}, main.get_probe_test_accuracy
        sae: Any = _Nothing()

        def watched(*args: Any) -> Any:
            found.append(test(*args))
            return found[-1]

        for name, pair in progress(runs_of(config), "language model"):
            found: list[dict[str, float]] = []
            where = (context.model, layer_of(target.hook_name), target.hook_name, context.device, str(folder))
            with mock.patch.object(main, "get_probe_test_accuracy", watched), contextlib.suppress(_ArtifactsSaved):
                main.run_eval_single_dataset(name, config, sae, *where, True, pair)
            own = [value for label, value in found[0].items() if " probe on " not in label]
            accuracies[f"{name} {' '.join(pair)}" if pair else name] = sum(own) / len(own)
        _artifacts[key] = folder, accuracies
    folder, accuracies = _artifacts[key]
    worst = min(accuracies, key=lambda name: accuracies[name])
    if accuracies[worst] < LEAST_ACCURACY:
        raise CannotDo(
            f"{target.model_name} cannot do the task: probes on all its channels reach an accuracy of "
            f"{accuracies[worst]:.2f} on {worst}, below {LEAST_ACCURACY}: choose other --dataset-names"
        )
    return folder, accuracies
