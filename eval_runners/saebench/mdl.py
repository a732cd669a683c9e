"""SAEBench's minimum description length of one SAE, each adaptation beside the fault it answers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from unittest import mock

from eval_runners.contract.contract import Context
from eval_runners.saebench.run import in_own_folder
from eval_runners.saebench.shared import brief_bars, serving_text
from sae_variants.language_model.contexts import heldout_text_name
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from sae_lens import SAE


def score_mdl(sae: SAE[Any], target: Target, settings: Mapping[str, Any], context: Context) -> list[dict[str, Any]]:
    """Run SAEBench's evaluation of one SAE.

    Args:
        sae: In inference form.
        target: Names the model, the hook and the held-out text.
        settings: Those of the evaluator.
        context: The loaded model and the device.

    Returns:
        For each number of bins: description length, whether the error is below the threshold, and the error.
    """
    import torch
    from loguru import logger
    from sae_bench.evals.mdl import main
    from sae_bench.evals.mdl.eval_config import MDLEvalConfig
    from sae_bench.sae_bench_utils.general_utils import str_to_dtype

    text = heldout_text_name(target)
    names = {"context_size": "context_length", "batches": "sae_batch_size"}
    config = MDLEvalConfig(
        **{names.get(name, name): value for name, value in settings.items()},
        k_values=[None],  # pyright: ignore[reportArgumentType]  as SAEBench's command line does
        dataset_name=text,
        model_name=target.model_name,
        llm_dtype=target.dtype,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(in_own_folder(main, context, config.random_seed))
        stack.enter_context(brief_bars(main))
        stack.enter_context(serving_text(target, text, context.model.tokenizer))
        # it takes the length of contexts from the SAE, which may have none, and not from its config
        stack.enter_context(mock.patch.object(sae.cfg.metadata, "context_size", config.context_length))
        # its functions read a variable that only its command line sets
        stack.enter_context(mock.patch.object(main, "config", config, create=True))
        # and move the entropies to CUDA, whatever the device
        stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda values: values.to(context.device)))
        logger.disable(main.__name__)  # it logs to the terminal by itself
        stack.callback(logger.enable, main.__name__)
        sae = sae.to(device=context.device, dtype=str_to_dtype(target.dtype))  # as its `run_eval` does
        found: Any = main.run_eval_single_sae(config, sae, context.model, context.device, text)
    return found
