"""SAEBench's core evaluation of one SAE, each adaptation beside the fault it answers."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from eval_runners.contract.contract import Context, Result
from eval_runners.contract.located import LocatedSAE
from eval_runners.saebench.memo import reusing_model_runs, room_for_saes
from eval_runners.saebench.shared import Preloaded, mute_loggers, serving_text
from eval_runners.store.envelope import sae_bench_release
from sae_variants.common.errors import UsageError
from sae_variants.language_model.contexts import heldout_text_name
from sae_variants.language_model.target import Target
from sae_variants.ops.explained_variance import ExplainedVariance
from sae_variants.registry.saved_config import WEIGHTS

if TYPE_CHECKING:
    from sae_lens import SAE


@contextlib.contextmanager
def observing_variance() -> Iterator[ExplainedVariance]:
    """Observe the SAE and the tokens while SAEBench computes sparsity and variance.

    SAEBench's `explained_variance` averages the per-dimension means into one scalar before squaring them, and takes the
    mean of x² for the mean of x: on real activations it can exceed 1. The sums here are taken in float64 from the same
    tensors that SAEBench encodes and decodes. Special tokens are left out, as SAEBench leaves them out.
    """
    import torch
    from sae_bench.evals.core import main as core

    variance = ExplainedVariance()
    original = core.get_sparsity_and_variance_metrics

    def observed(sae: Any, model: Any, store: Any, *args: Any, **kwargs: Any) -> Any:
        ignored = [token for token in kwargs.get("ignore_tokens", ()) if token is not None]
        seen: dict[str, Any] = {}
        encode, decode, tokens = sae.encode, sae.decode, store.get_batch_tokens

        def get_batch_tokens(*a: Any, **k: Any) -> Any:
            seen["tokens"] = tokens(*a, **k)
            return seen["tokens"]

        def watch_encode(x: Any) -> Any:
            seen["x"] = x
            return encode(x)

        def watch_decode(acts: Any) -> Any:
            out = decode(acts)
            keep = ~torch.isin(seen["tokens"], torch.tensor(ignored, device=seen["tokens"].device))
            keep = keep.to(out.device)
            variance.add(seen["x"][keep], (seen["x"] - out)[keep])
            return out

        with (
            mock.patch.object(sae, "encode", watch_encode),
            mock.patch.object(sae, "decode", watch_decode),
            mock.patch.object(store, "get_batch_tokens", get_batch_tokens),
        ):
            return original(sae, model, store, *args, **kwargs)

    with mock.patch.object(core, "get_sparsity_and_variance_metrics", observed):
        yield variance


@contextlib.contextmanager
def catching_errors() -> Iterator[list[BaseException]]:
    """Keep the errors of an SAE, which `multiple_evals` logs and ignores, with exit code 0."""
    from sae_bench.evals.core import main as core

    caught: list[BaseException] = []
    original = core.run_evals

    def run_evals(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except Exception as error:
            caught.append(error)
            raise

    with mock.patch.object(core, "run_evals", run_evals):
        yield caught


def _others(target: Target, context: Context) -> dict[str, Callable[[], SAE[Any]]]:
    """Return what loads the SAEs that come next, as SAEBench has them, by the hash of their weights."""
    from sae_lens.util import str_to_dtype

    def load(located: LocatedSAE) -> SAE[Any]:
        return located.load(context.device).to(dtype=str_to_dtype(target.dtype))

    room, others = room_for_saes(context.device), {}
    for located in context.following:
        if (file := located.folder / WEIGHTS).exists() and (room := room - file.stat().st_size) > 0:
            others[located.weight_hash] = cache(partial(load, located))
    return others


def score_core(
    sae: SAE[Any], target: Target, settings: Mapping[str, Any], context: Context
) -> tuple[Result, float, list[str]]:
    """Run SAEBench's core evaluation of one SAE.

    Args:
        sae: in inference form.
        target: names the model, the hook and the held-out text.
        settings: fields of the evaluator's settings.
        context: the loaded model and the device.

    Returns:
        The result as SAEBench wrote it; the corrected explained variance; the metrics that were NaN, which SAEBench
        writes as -1.

    Raises:
        UsageError: zeroing the activation changes nothing, so that the scores divide by zero.
    """
    from sae_bench.evals.core import main as core

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(serving_text(target, heldout_text_name(target), context.model.tokenizer))
        stack.enter_context(mock.patch.object(core, "HookedTransformer", Preloaded(context.model)))
        located = context.located
        own = located.weight_hash if located and (located.folder / WEIGHTS).exists() else ""
        stack.enter_context(reusing_model_runs(context.model, target.hook_name, own, _others(target, context)))
        variance = stack.enter_context(observing_variance())
        caught = stack.enter_context(catching_errors())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(mute_loggers("sae_bench", "sae_lens"))
        stack.enter_context(mock.patch.object(core, "tqdm", partial(core.tqdm, leave=False)))
        raw = core.multiple_evals(
            selected_saes=[("sae", sae)],
            eval_batch_size_prompts=settings["batch_size_prompts"],
            n_eval_reconstruction_batches=settings["n_eval_reconstruction_batches"],
            n_eval_sparsity_variance_batches=settings["n_eval_sparsity_variance_batches"],
            # both must be True: without them the output lacks fields that SAEBench's output class requires
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            exclude_special_tokens_from_reconstruction=settings["exclude_special_tokens_from_reconstruction"],
            dataset=heldout_text_name(target),
            context_size=settings["context_size"],
            # an empty folder each time: SAEBench skips an existing result even if the SAE was retrained
            output_folder=folder,
            verbose=True,
            dtype=target.dtype,
            device=context.device,
            force_rerun=True,
        )
        if caught and isinstance(caught[0], ZeroDivisionError):
            raise UsageError(
                f"the KL and CE scores on {target.name} divide by zero: the language model predicts exactly as well "
                f"when the activation at {target.hook_name} is zeroed; choose another hook, or a dtype of more digits "
                f"than {target.dtype}"
            ) from caught[0]
        if caught:
            raise caught[0]
        files = list(Path(folder).glob("*.json"))
        if len(files) != 1 or len(raw) != 1:
            raise RuntimeError("SAEBench's core evaluation wrote no result and gave no reason")
        output = json.loads(files[0].read_text())
    output["sae_bench_commit_hash"] = sae_bench_release()
    missing = sorted(
        f"{group}.{name}"
        for group, values in raw[0]["metrics"].items()
        for name, value in values.items()
        if isinstance(value, float) and not math.isfinite(value)
    )
    return output, variance.value, missing
