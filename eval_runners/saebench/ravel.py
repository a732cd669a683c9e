"""SAEBench's RAVEL of one SAE, each adaptation beside the fault it answers."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from eval_runners.contract.contract import CannotDo, Context, Result
from eval_runners.saebench.run import in_own_folder, lasting_folder, run_eval
from eval_runners.saebench.shared import Preloaded, brief_bars, hide_output, mute_loggers
from sae_variants.common.hashing import hash_value
from sae_variants.language_model.load import load_transformers_model
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from sae_lens import SAE
    from transformers import PreTrainedModel

Known = dict[str, dict[str, dict[str, int]]]
"""Kind of entity -> attribute -> prompts, those completed correctly, and different answers among them."""


@dataclass(frozen=True)
class _Task:
    model: PreTrainedModel
    tokenizer: Any
    folder: Path
    """SAEBench's files: the prompts, and those that the language model completes correctly."""
    known: Known


_tasks: dict[str, _Task] = {}


class _Layer:
    """A layer, for hooks that expect its output in a tuple, as layers of `transformers` 4 give it."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def register_forward_hook(self, hook: Callable[..., Any]) -> Any:
        def in_a_tuple(module: Any, inputs: Any, output: Any) -> Any:
            return hook(module, inputs, output) if isinstance(output, tuple) else hook(module, inputs, (output,))[0]

        return self.layer.register_forward_hook(in_a_tuple)


def layer_module(model: PreTrainedModel, layer: int) -> _Layer:
    """Return a layer of any language model; SAEBench knows those of two architectures."""
    from torch.nn import ModuleList

    count = model.config.num_hidden_layers
    layers = next(part for part in model.modules() if isinstance(part, ModuleList) and len(part) == count)
    return _Layer(layers[layer])


@contextlib.contextmanager
def watching(sae: SAE[Any]) -> Iterator[list[bool]]:
    """Yield a list that is not empty once a latent of the SAE has fired."""
    encode, fired = sae.encode, []

    def watched(x: Any) -> Any:
        acts = encode(x)
        if not fired and bool((acts != 0).any()):
            fired.append(True)
        return acts

    with mock.patch.object(sae, "encode", watched):
        yield fired


def score_ravel(
    sae: SAE[Any],
    target: Target,
    settings: DataclassInstance,
    attributes: Mapping[str, Sequence[str]],
    prompts: Path,
    context: Context,
) -> tuple[Result, bool, Known]:
    """Run SAEBench's RAVEL of one SAE.

    Args:
        sae: In inference form.
        target: Names the model and the hook.
        settings: Those of the evaluator.
        attributes: By kind of entity.
        prompts: Folder with the entities and prompts.
        context: The device.

    Returns:
        The result as SAEBench wrote it; whether any latent fires on an entity; what the language model knows.

    Raises:
        UsageError: the language model completes too few prompts correctly.
    """
    from sae_bench.evals.ravel import generation, instance, intervention, main
    from sae_bench.evals.ravel.eval_config import RAVELEvalConfig
    from sae_bench.sae_bench_utils import activation_collection

    fields = {name: value for name, value in asdict(settings).items() if name not in ("prompts", "attributes")}
    selection = {kind: list(names) for kind, names in attributes.items()}
    named = {"model_name": target.model_name, "llm_dtype": target.dtype, "entity_attribute_selection": selection}
    config = RAVELEvalConfig(**fields, **named)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(in_own_folder(main, context, config.random_seed))
        stack.enter_context(mute_loggers("transformers"))
        stack.enter_context(hide_output(instance))
        stack.enter_context(brief_bars(generation, intervention))
        stack.enter_context(mock.patch.object(activation_collection, "get_module", layer_module))
        task = _task_of(config, prompts, context.device)
        # it knows the names of two models, and loads model and tokenizer by name
        stack.enter_context(mock.patch.object(main, "LLM_NAME_MAP", {target.model_name: target.model_name}))
        stack.enter_context(mock.patch.object(main, "AutoModelForCausalLM", Preloaded(task.model)))
        stack.enter_context(mock.patch.object(main, "AutoTokenizer", Preloaded(task.tokenizer)))
        config.artifact_dir = str(task.folder)  # not the folder that it is told, but `artifacts/ravel`
        fired = stack.enter_context(watching(sae))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "(Mean of empty slice|invalid value)", RuntimeWarning)
        output = run_eval(main, config, sae, context, folder, artifacts_path=str(folder / "artifacts"))
        if not all(isfinite(value) for value in output["eval_result_metrics"]["ravel"].values()):
            raise CannotDo(  # a pair counts for the cause if the two answers begin differently, else for isolation
                f"the answers of {config.model_name} begin with the same token, or all with another, in every pair of "
                "an attribute's test: raise --num-pairs-per-attribute"
            )
        output["eval_config"]["artifact_dir"] = RAVELEvalConfig().artifact_dir
        return output, bool(fired), task.known


def _task_of(config: Any, prompts: Path, device: str) -> _Task:
    """Return the model, and the prompts that it completes correctly, which are the same for every SAE.

    Raises:
        UsageError: there are too few.
    """
    from sae_bench.evals.ravel.instance import RAVELInstance

    key = hash_value([asdict(config), str(prompts.resolve()), device])
    if key in _tasks:
        return _tasks[key]
    _tasks.clear()  # one language model at a time
    loaded: tuple[Any, Any] = load_transformers_model(config.model_name, device, config.llm_dtype)
    model, tokenizer = loaded
    model.requires_grad_(False)  # it would sum up gradients of all weights, and use none
    folder = lasting_folder()
    (folder / "base").mkdir()
    for path in prompts.glob("*.json"):  # where they are, it downloads none
        (folder / "base" / path.name).symlink_to(path.resolve())
    asked: list[Any] = []
    keep_correct = RAVELInstance.filter_correct_

    def filter_correct(made: RAVELInstance) -> None:
        asked[:] = made.prompts
        keep_correct(made)

    larger = replace(config, llm_batch_size=config.llm_batch_size * 8, artifact_dir=str(folder))  # as SAEBench does
    known: Known = {}
    with mock.patch.object(RAVELInstance, "filter_correct_", filter_correct):
        for kind, names in config.entity_attribute_selection.items():
            random.seed(config.random_seed)
            made = RAVELInstance.create_from_files(
                larger, kind, str(folder), tokenizer, model, config.model_name, names, config.full_dataset_downsample
            )
            made.create_and_save_filtered_dataset(str(folder), config.top_n_entities)
            known[kind] = {name: _counts(name, asked, made.prompts) for name in names}
            _check_known(config, kind, known[kind])
    _tasks[key] = _Task(model, tokenizer, folder, known)
    return _tasks[key]


def _counts(attribute: str, asked: Sequence[Any], kept: Sequence[Any]) -> dict[str, int]:
    of_attribute = [prompt for prompt in kept if prompt.attribute_type == attribute]
    return {
        "prompts": sum(prompt.attribute_type == attribute for prompt in asked),
        "correct": len(of_attribute),
        "answers": len({prompt.attribute_label for prompt in of_attribute}),
    }


def _check_known(config: Any, kind: str, known: Mapping[str, Mapping[str, int]]) -> None:
    """Check that each attribute has another answer to change to, and pairs for a batch of the fit and one of the test.

    Raises:
        UsageError: one has not; SAEBench would find no other answer, or score NaN.
    """
    for attribute, counts in known.items():
        pairs = min(counts["correct"], config.num_pairs_per_attribute)
        others = sum(
            min(other["correct"], config.num_pairs_per_attribute) for name, other in known.items() if name != attribute
        )
        every = pairs + min(pairs, others)
        fitted = int(every * config.train_test_split)
        if counts["answers"] < 2 or min(fitted, every - fitted) < config.llm_batch_size:
            raise CannotDo(
                f"{config.model_name} cannot do the task: it completes {counts['correct']} of {counts['prompts']} "
                f"prompts on {attribute} of {kind} correctly, with {counts['answers']} different answers; 2 answers "
                f"are needed, and --llm-batch-size {config.llm_batch_size} pairs for the fit and for the test"
            )
