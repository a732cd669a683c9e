"""SAEBench's unlearning of one SAE, each adaptation beside the fault it answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from unittest import mock

from eval_runners.contract.contract import CannotDo, Context, Result
from eval_runners.data.unlearning_texts import FORGET, forget_corpus, hub_rows, questions_source
from eval_runners.saebench.run import in_own_folder, lasting_folder, run_eval
from eval_runners.saebench.shared import brief_bars, to_lists
from sae_variants.common.console import progress
from sae_variants.common.errors import UsageError
from sae_variants.common.hashing import hash_value
from sae_variants.language_model.hub_text import Row
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
    from sae_lens import SAE

MODELS = ("gemma-2-2b-it", "gemma-2-9b-it")
"""Models whose format of prompts SAEBench knows."""
_questions: dict[str, tuple[Path, dict[str, int]]] = {}
"""Folder with the questions that a model answers rightly, and their number by dataset, for each key."""


@dataclass(frozen=True)
class Outcome:
    """What SAEBench found about one SAE."""

    output: Result
    """The result as SAEBench wrote it."""
    interventions: list[dict[str, Any]]
    """Rows of SAEBench's table, from which it takes the score."""
    questions: dict[str, int]
    """Number of questions by dataset."""
    passing: dict[str, int]
    """Number of latents that may be ablated, by retain threshold."""
    fires: bool
    """Whether any latent fires on the corpus."""


class InMemory:
    """Stand-in for the module `pickle`, which keeps what SAEBench would write into files that may run code."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._by_file: dict[str, Any] = {}

    def dump(self, value: Any, file: IO[bytes]) -> None:
        """Keep a value under the name of the file."""
        self._by_file[file.name] = value

    def load(self, file: IO[bytes]) -> Any:
        """Return what was kept under the name of the file."""
        return self._by_file[file.name]


def short_name(model_name: str) -> str:
    """Return the name by which SAEBench knows a model, which has neither owner nor revision."""
    return model_name.partition("@")[0].rpartition("/")[2]


@contextlib.contextmanager
def serving_texts(corpus: Path) -> Iterator[None]:
    """Serve the questions and texts that were read beforehand.

    SAEBench loads them anew in every call, and Wikipedia by a name without its owner, which huggingface_hub refuses. It
    opens the corpus below the current folder, and leaves it open.
    """
    from sae_bench.evals.unlearning.utils import feature_activation, metrics

    def load_dataset(path: str, name: str, split: str) -> list[Row]:
        return hub_rows((path, name))[1]

    with (
        corpus.open(encoding="utf-8") as file,
        mock.patch.object(metrics, "load_dataset", load_dataset),
        mock.patch.object(feature_activation, "load_dataset", load_dataset),
        mock.patch.object(feature_activation, "open", create=True, return_value=file),
    ):
        yield


@contextlib.contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy, with which SAEBench splits the questions and which it does not seed, and restore its state."""
    import numpy as np

    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


@contextlib.contextmanager
def refusing_short_texts(seq_len: int) -> Iterator[None]:
    """Refuse texts of less than one sequence, of whose latents SAEBench would take the mean over no token."""
    from sae_bench.evals.unlearning.utils import feature_activation

    by_saebench = feature_activation.get_shuffled_forget_retain_tokens

    def get_tokens(*args: Any, **kwargs: Any) -> Any:
        found = by_saebench(*args, **kwargs)
        for tokens_CT, what in zip(found, ("the forget corpus", "wikitext"), strict=True):
            if not len(tokens_CT):
                raise UsageError(f"{what} has fewer than {seq_len} tokens: lower --seq-len")
        return found

    with mock.patch.object(feature_activation, "get_shuffled_forget_retain_tokens", get_tokens):
        yield


def score_unlearning(sae: SAE[Any], target: Target, settings: Mapping[str, Any], context: Context) -> Outcome:
    """Run SAEBench's unlearning of one SAE.

    Args:
        sae: In inference form.
        target: Names the model and the hook.
        settings: Fields of SAEBench's config, and the name of the registered `forget_corpus`.
        context: The loaded model and the device.

    Raises:
        CannotDo: The model answers none of a dataset's questions rightly.
        UsageError: A text is too short.
    """
    from sae_bench.evals.unlearning import main
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
    from sae_bench.evals.unlearning.utils import eval as of_sae
    from sae_bench.evals.unlearning.utils import metrics
    from sae_bench.sae_bench_utils import activation_collection

    given = {name: value for name, value in settings.items() if name != "forget_corpus"}
    config = UnlearningEvalConfig(**to_lists(given), model_name=target.model_name, llm_dtype=target.dtype)
    if config.seq_len > context.model.cfg.n_ctx:
        raise UsageError(f"--seq-len {config.seq_len} exceeds the model's {context.model.cfg.n_ctx} positions")
    tables: list[Any] = []
    sparsities: list[Any] = []
    read_scores, load_sparsities = main.get_unlearning_scores, of_sae.load_sparsity_data

    def watched_scores(table: Any) -> float:
        tables.append(table.copy())
        return read_scores(table)

    def watched_sparsities(*args: Any) -> Any:
        sparsities.append(load_sparsities(*args))
        return sparsities[-1]

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(in_own_folder(main, context, config.random_seed))
        stack.enter_context(numpy_seed(config.random_seed))
        stack.enter_context(brief_bars(metrics, activation_collection))
        # it tells prompts by the model's name, in which a revision would be a part
        stack.enter_context(mock.patch.object(context.model.cfg, "model_name", short_name(target.model_name)))
        stack.enter_context(serving_texts(forget_corpus(settings["forget_corpus"])))
        stack.enter_context(refusing_short_texts(config.seq_len))
        made, counts = _questions_of(config, target, context)
        # a folder of its own, because it would take latents and metrics that another SAE of this name left there
        artifacts = folder / "artifacts" / main.EVAL_TYPE / config.model_name
        artifacts.mkdir(parents=True)
        (artifacts / "data").symlink_to(made / "data")
        memory = InMemory()
        for module in (main, metrics):
            stack.enter_context(mock.patch.object(module, "pickle", memory))
        stack.enter_context(mock.patch.object(main, "get_unlearning_scores", watched_scores))
        stack.enter_context(mock.patch.object(of_sae, "load_sparsity_data", watched_sparsities))
        output = run_eval(main, config, sae, context, folder, artifacts_path=str(folder / "artifacts"))
    forget_F, retain_F = sparsities[0]
    passing = {str(limit): int(((retain_F < limit) & (forget_F > 0)).sum()) for limit in config.retain_thresholds}
    return Outcome(output, tables[0].to_dict("records"), counts, passing, bool(forget_F.any()))


def _questions_of(config: UnlearningEvalConfig, target: Target, context: Context) -> tuple[Path, dict[str, int]]:
    """Let SAEBench find the questions that the model answers rightly in every order of the answers, once for all SAEs.

    Raises:
        CannotDo: There are none of a dataset, of whose mean SAEBench could take none.
    """
    from sae_bench.evals.unlearning.utils import metrics

    read = [hub_rows(questions_source(name))[0] for name in config.dataset_names]
    key = hash_value([config.model_name, config.llm_dtype, config.llm_batch_size, read, context.device])
    if key not in _questions:
        folder, counts = lasting_folder(), {}
        for name in progress(config.dataset_names, "questions"):
            metrics.save_target_question_ids(context.model, 2 * config.llm_batch_size, str(folder), name)
            full_name = name if name == FORGET else f"mmlu-{name.replace('_', '-')}"
            ids = folder / "data" / "question_ids" / "all" / f"{full_name}_correct.csv"
            counts[name] = len(ids.read_text().split())
        _questions[key] = folder, counts
    folder, counts = _questions[key]
    if none := [name for name, count in counts.items() if not count]:
        raise CannotDo(
            f"{target.model_name} cannot do the task: it answers no question of {', '.join(none)} rightly in all 24 "
            "orders of the answers; leave out --dataset-names, or give a larger model"
        )
    return folder, counts
