"""Adaptations that several of SAEBench's evaluations need. SAEBench's code computes SAEBench's numbers.

`core`, `sparse_probing` and `sae_probes` each adapt an evaluation. Every adaptation lies beside the fault it answers.
The faults are those of sae-bench 0.6.0 and sae-probes 0.4.2; a test fails when one of them is gone.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

from sae_variants.common.errors import UsageError
from sae_variants.language_model.contexts import text_dataset
from sae_variants.language_model.hooks import layer_of_hook, require_hook
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KS = (1, 2, 5, 10, 20, 50, 100)
"""Numbers of latents for which SAEBench's probing results have fields."""


class Preloaded:
    """Stand-in for a class such as `HookedTransformer`, from which SAEBench loads by name in every call."""

    def __init__(self, loaded: Any) -> None:
        """Keep the model or tokenizer that is loaded already."""
        self.loaded = loaded

    def from_pretrained(self, name: str, **kwargs: Any) -> Any:
        """Return what is loaded, whatever the name."""
        return self.loaded

    from_pretrained_no_processing = from_pretrained


def to_lists(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as SAEBench's configs take them: lists in place of tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


@contextlib.contextmanager
def serving_text(target: Target, name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Iterator[None]:
    """Serve the target's held-out text under a dataset name, which SAEBench's store asks the Hub for.

    SAELens also looks there for the tokenizer of text that is tokenised already. That is an error offline, and
    no repository has the name. Our reader has compared the tokens with the model.
    """
    from sae_lens.training import activations_store

    load, validate = activations_store.load_dataset, activations_store.validate_pretokenized_dataset_tokenizer

    def validate_tokenizer(dataset_path: str, model_tokenizer: PreTrainedTokenizerBase) -> None:
        if dataset_path != name:
            validate(dataset_path, model_tokenizer)

    def load_dataset(path: str, *args: Any, **kwargs: Any) -> Any:
        if path == name:
            return text_dataset(target, "heldout", tokenizer)
        return load(path, *args, **kwargs)

    with (
        mock.patch.object(activations_store, "load_dataset", load_dataset),
        mock.patch.object(activations_store, "validate_pretokenized_dataset_tokenizer", validate_tokenizer),
    ):
        yield


@contextlib.contextmanager
def hide_output(*modules: ModuleType) -> Iterator[None]:
    """Hide SAEBench's prints, the nested progress bars of these modules, and notices on arguments of others."""
    from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning
    from tqdm import tqdm

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        for category in (FutureWarning, ConvergenceWarning, UndefinedMetricWarning):
            warnings.simplefilter("ignore", category)
        for message in (
            "Inconsistent values: penalty",
            r"torch\.searchsorted\(\): input value",
            r"std\(\): degrees of freedom",
        ):
            warnings.filterwarnings("ignore", message=message)
        for module in modules:
            hidden = mock.patch.object(
                module, "tqdm", lambda *args, **kwargs: tqdm(*args, **{**kwargs, "disable": True})
            )
            stack.enter_context(hidden)
        yield


def too_many_of(option: str, wanted: int, d_sae: int) -> str:
    """Return why an SAE of that width cannot be scored by so many latents, or "" if it can."""
    return f"{option} asks for {wanted} of d_sae = {d_sae}" if wanted > d_sae else ""


@contextlib.contextmanager
def brief_bars(*modules: ModuleType) -> Iterator[None]:
    """Let the progress bars of these modules vanish when they are full."""
    from tqdm import tqdm

    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, "tqdm", partial(tqdm, leave=False)))
        yield


@contextlib.contextmanager
def mute_loggers(*names: str) -> Iterator[None]:
    """Let these loggers report critical events only."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def layer_of(hook_name: str) -> int:
    """The layer in a hook's name.

    Raises:
        UsageError: SAEBench's probing cannot use the hook: it is in no layer, or gives a vector per head.
    """
    require_hook(hook_name, "probing", heads=False)
    layer = layer_of_hook(hook_name)
    assert layer is not None
    return layer


def check_ks(ks: Iterable[int], option: str) -> None:
    """Check that SAEBench's results have fields for these numbers of latents.

    Raises:
        UsageError: names the option and the numbers that are possible.
    """
    for k in ks:
        if k not in KS:
            raise UsageError(f"{option} may hold {', '.join(map(str, KS))}, not {k}")
