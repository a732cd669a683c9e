"""What several of SAEBench's evaluations need to be given; SAEBench's own code computes its numbers.

`_core`, `_sparse_probing` and `_sae_probes` adapt one evaluation each, every piece beside the fault it answers. Faults
are those of sae-bench 0.6.0 and sae-probes 0.4.2; the tests fail when one of them is gone.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

from sae_variants.common.errors import UsageError
from sae_variants.language_model.contexts import text_dataset
from sae_variants.language_model.target import Target

KS = (1, 2, 5, 10, 20, 50, 100)
"""The numbers of latents that SAEBench's probing results have fields for."""


class OneModel:
    """SAEBench loads the language model by name for every call; this hands it the one that is loaded already."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def from_pretrained_no_processing(self, name: str, **kwargs: Any) -> Any:
        return self.model


def to_lists(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as SAEBench's configs take them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


@contextlib.contextmanager
def serving_text(target: Target, name: str) -> Iterator[None]:
    """SAEBench's store asks the Hub for a dataset by name; the name of local text is answered with that text."""
    from sae_lens.training import activations_store

    load = activations_store.load_dataset

    def load_dataset(path: str, *args: Any, **kwargs: Any) -> Any:
        if path == name and target.is_local:
            return text_dataset(target, "heldout")
        return load(path, *args, **kwargs)

    with mock.patch.object(activations_store, "load_dataset", load_dataset):
        yield


@contextlib.contextmanager
def hide_output(*modules: Any) -> Iterator[None]:
    """Without SAEBench's prints, its bars within bars, and scikit-learn's notices about how it is called."""
    from sklearn.exceptions import ConvergenceWarning
    from tqdm import tqdm

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        for category in (FutureWarning, ConvergenceWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", message="Inconsistent values: penalty")
        for module in modules:
            hidden = mock.patch.object(
                module, "tqdm", lambda *args, **kwargs: tqdm(*args, **{**kwargs, "disable": True})
            )
            stack.enter_context(hidden)
        yield


@contextlib.contextmanager
def mute_loggers(*names: str) -> Iterator[None]:
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
    """The layer in a hook's name. UsageError for a hook that has none, which SAEBench's probing needs."""
    found = re.search(r"\d+", hook_name)
    if found is None:
        raise UsageError(f"probing needs a hook inside a layer, such as blocks.3.hook_resid_post, not {hook_name}")
    return int(found[0])
