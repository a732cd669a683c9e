"""SAEBench's sparse probing of one SAE, each adaptation beside the fault it answers."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

from eval_runners.data.labelled import dataset_version, distinct_classes, is_local_dataset, split_dataset
from eval_runners.saebench.padding import skipped_by_model, skipped_by_sae
from eval_runners.saebench.shared import OneModel, hide_output, layer_of, to_lists
from eval_runners.store.cache import cached_folder, evict_unused
from eval_runners.store.envelope import sae_bench_release
from sae_variants.common.console import progress
from sae_variants.common.errors import UsageError
from sae_variants.language_model.hooks import activation_key
from sae_variants.language_model.hub import hub_errors
from sae_variants.language_model.target import Target

Scores = dict[str, dict[str, float]]
"""Metric name, as in `llm_top_1_test_f1` -> class -> value."""
LLM_F1 = "llm_f1.json"


class _Cached(Exception):
    """Raised where SAEBench has written its activations and the language model's probes, and turns to the SAE."""


class _Recorder:
    """F1 of every probe, from the very probe whose accuracy SAEBench reports.

    SAEBench has no F1. It scores a probe where it fits it, so F1 is taken there, from the same inputs; the accuracy is
    taken again as well and must be SAEBench's. Nothing here draws random numbers.
    """

    def __init__(self) -> None:
        self.f1: dict[int | None, dict[str, float]] = {}
        self._scores: list[float] = []

    def _record(self, labels: Any, predictions: Any, accuracy: float) -> None:
        from sklearn.metrics import accuracy_score, f1_score

        if abs(accuracy_score(labels, predictions) - accuracy) > 1e-6:
            raise RuntimeError("F1 would not be that of the probe whose accuracy SAEBench reports")
        f1: Any = f1_score(labels, predictions, zero_division=0)  # pyright: ignore[reportArgumentType]
        self._scores.append(float(f1))

    @contextlib.contextmanager
    def watching(self) -> Iterator[_Recorder]:
        import torch
        from sae_bench.evals.sparse_probing import probe_training

        # beartype refuses this function's own arguments on a fresh install (it is decorated with beartype alone and
        # called from a jaxtyped one), so its body is called without the check
        fit_sklearn: Any = probe_training.train_sklearn_probe
        fit_sklearn = getattr(fit_sklearn, "__wrapped__", fit_sklearn)
        fit_torch, fit_all = probe_training.train_probe_gpu, probe_training.train_probe_on_activations

        def sklearn_probe(x: Any, y: Any, test_x: Any, test_y: Any, **kwargs: Any) -> Any:
            probe, accuracy = fit_sklearn(x, y, test_x, test_y, **kwargs)
            self._record(test_y.cpu().numpy(), probe.predict(test_x.float().cpu().numpy()), accuracy)
            return probe, accuracy

        def torch_probe(x: Any, y: Any, test_x: Any, test_y: Any, *, batch_size: int, **kwargs: Any) -> Any:
            probe, accuracy = fit_torch(x, y, test_x, test_y, batch_size=batch_size, **kwargs)
            with torch.no_grad():
                logits = torch.cat([probe(part) for part in test_x.split(batch_size)])
            self._record(test_y.cpu().numpy(), (logits > 0).int().cpu().numpy(), accuracy)
            return probe, accuracy

        def every_class(train: Any, test: Any, select_top_k: int | None = None, **kwargs: Any) -> Any:
            self._scores = []
            probes, accuracies = fit_all(train, test, select_top_k=select_top_k, **kwargs)
            self.f1[select_top_k] = dict(zip(accuracies, self._scores, strict=True))
            return probes, accuracies

        with (
            mock.patch.object(probe_training, "train_sklearn_probe", sklearn_probe),
            mock.patch.object(probe_training, "train_probe_gpu", torch_probe),
            mock.patch.object(probe_training, "train_probe_on_activations", every_class),
        ):
            yield self

    def named(self, representation: str) -> Scores:
        """The F1 since the last call, under names like SAEBench's."""
        found = {f"{representation}_{'' if k is None else f'top_{k}_'}test_f1": scores for k, scores in self.f1.items()}
        self.f1 = {}
        return found


@contextlib.contextmanager
def serving_tasks() -> Iterator[None]:
    """SAEBench loads eight datasets that it knows, from the Hub; ours are served where it loads them."""
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    load = dataset_utils.get_multi_label_train_test_data
    chosen = _OurClasses(dataset_info.chosen_classes_per_dataset)

    def get(name: str, train_set_size: int, test_set_size: int, random_seed: int) -> Any:
        if is_local_dataset(name):
            return split_dataset(name, train_set_size, test_set_size, random_seed)
        with hub_errors(f"the dataset {name}"):
            return load(name, train_set_size, test_set_size, random_seed)

    with (
        mock.patch.object(dataset_utils, "get_multi_label_train_test_data", get),
        mock.patch.object(dataset_info, "chosen_classes_per_dataset", chosen),
    ):
        yield


class _OurClasses(dict[str, list[str]]):
    def __missing__(self, name: str) -> list[str]:
        return list(distinct_classes(name))


def score_sparse_probing(
    sae: Any, model: Any, target: Target, settings: dict[str, Any], device: str
) -> tuple[dict[str, Any], dict[str, Scores]]:
    """SAEBench's sparse probing of one SAE.

    Its numbers depend on whether its file of activations was there: the seed is set once, and the language model's own
    probes draw random numbers only when they are fitted. So the files are made first, each from the seed, and every SAE
    is scored with all of them there, whatever the order and number of SAEs.

    Returns:
        The result as SAEBench wrote it; dataset -> F1 of every probe.
    """
    from sae_bench.evals.sparse_probing import main
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
    from sae_bench.sae_bench_utils import activation_collection, dataset_utils

    config = SparseProbingEvalConfig(**to_lists(settings), model_name=target.model_name, llm_dtype=target.dtype)
    f1: dict[str, Scores] = {}
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(serving_tasks())
        stack.enter_context(mock.patch.object(main, "HookedTransformer", OneModel(model)))
        recorder = stack.enter_context(_Recorder().watching())
        stack.enter_context(skipped_by_model(model))
        stack.enter_context(skipped_by_sae(sae))
        stack.enter_context(hide_output(main, activation_collection, dataset_utils))
        artifacts = temporary / "artifacts" / main.EVAL_TYPE_ID_SPARSE_PROBING / target.model_name / target.hook_name
        artifacts.mkdir(parents=True)
        used: list[Path] = []
        for name in progress(config.dataset_names, "language model"):
            folder = _stored_probing(name, config, model, target, device, recorder)
            (file,) = folder.glob("*.pt")
            (artifacts / f"{name}_activations.pt".replace("/", "_")).symlink_to(file)
            f1[name] = json.loads((folder / LLM_F1).read_text())
            used.append(folder)
        evict_unused(keep=used)

        one_dataset = main.run_eval_single_dataset
        bar = progress(config.dataset_names, "probes")

        def observed(dataset_name: str, *args: Any, **kwargs: Any) -> Any:
            next(bar)
            found = one_dataset(dataset_name, *args, **kwargs)
            f1[dataset_name] |= recorder.named("sae")
            return found

        def never(*args: Any, **kwargs: Any) -> Any:
            raise UsageError("activations vanished while an SAE was scored: give the command again")

        stack.enter_context(mock.patch.object(main, "run_eval_single_dataset", observed))
        stack.enter_context(mock.patch.object(main, "get_dataset_activations", never))
        main.run_eval(
            config,
            [("sae", sae)],
            device,
            output_path=str(temporary / "result"),
            force_rerun=True,
            artifacts_path=str(temporary / "artifacts"),
        )
        next(bar, None)
        (written,) = (temporary / "result").glob("*.json")
        output = json.loads(written.read_text())
    output["sae_bench_commit_hash"] = sae_bench_release()
    return output, f1


def _stored_probing(name: str, config: Any, model: Any, target: Target, device: str, recorder: _Recorder) -> Path:
    """Folder with SAEBench's file of activations of one dataset, and the F1 of the language model's own probes."""
    import torch
    from sae_bench.evals.sparse_probing import main
    from sae_bench.sae_bench_utils import activation_collection

    def make(folder: Path) -> None:
        random.seed(config.random_seed)
        torch.manual_seed(config.random_seed)
        no_sae: Any = None
        layer = layer_of(target.hook_name)
        with mock.patch.object(activation_collection, "get_sae_meaned_activations", side_effect=_Cached):
            try:
                main.run_eval_single_dataset(
                    name, config, no_sae, model, layer, target.hook_name, device, str(folder), save_activations=True
                )
            except _Cached:
                pass
            except ValueError as error:
                if "contains NaN" not in str(error):
                    raise
                raise UsageError(
                    f"{name} has a document without a token of its own among the first {config.context_length}: "
                    "remove it, or give a larger --context-length"
                ) from error
        (folder / LLM_F1).write_text(json.dumps(recorder.named("llm")))

    decisive = (
        "probe_train_set_size", "probe_test_set_size", "random_seed", "context_length", "llm_batch_size", "k_values",
    )  # fmt: skip
    key = {
        "evaluation": f"sparse_probing, sae-bench {version('sae-bench')}",
        "dataset": [name, dataset_version(name, *[getattr(config, field) for field in decisive[:3]])],
        "settings": {field: getattr(config, field) for field in decisive},
        **activation_key(target, model, device, "scikit-learn"),
    }
    return cached_folder(key, make)
