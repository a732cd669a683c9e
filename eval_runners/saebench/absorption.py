"""SAEBench's feature absorption of one SAE, each adaptation beside the fault it answers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from string import ascii_lowercase
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

from eval_runners.contract.contract import CannotDo, Context, Result
from eval_runners.saebench.run import in_own_folder, lasting_folder, run_eval
from eval_runners.saebench.shared import brief_bars, layer_of
from sae_variants.common.hashing import hash_value
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer

LEAST_WORDS = 10
"""Words for each first letter, so that SAEBench's sample for training and that for testing are likely to have some."""
_probes: dict[str, tuple[Path, list[float]]] = {}
"""Folder with SAEBench's probes and their F1 by letter, for each key."""


def token_position(model: HookedTransformer, template: str) -> int:
    """Return the position of the word in a prompt, from the end; SAEBench's default is that of its own tokenizers."""
    tokenizer: Any = model.tokenizer
    after = template.partition("{word}")[2]
    return -1 - len(tokenizer(after, add_special_tokens=False)["input_ids"])


def score_absorption(
    sae: SAE[Any], target: Target, settings: Mapping[str, Any], context: Context
) -> tuple[Result, bool]:
    """Run SAEBench's feature absorption of one SAE.

    Args:
        sae: In inference form.
        target: Names the model and the hook.
        settings: Fields of SAEBench's config.
        context: The loaded model and the device.

    Returns:
        The result as SAEBench wrote it; whether any latent fires on the words: if none does, nothing is absorbed.

    Raises:
        UsageError: the language model's probes find too few first letters.
    """
    import torch
    from sae_bench.evals.absorption import common, feature_absorption, k_sparse_probing, main, probing
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    given = {**settings}
    given["prompt_token_pos"] = given["prompt_token_pos"] or token_position(context.model, given["prompt_template"])
    config = AbsorptionEvalConfig(**given, model_name=target.model_name, llm_dtype=target.dtype)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(in_own_folder(main, context, config.random_seed))
        stack.enter_context(contextlib.chdir(folder))  # where it writes a file that nobody asked for
        stack.enter_context(brief_bars(common, feature_absorption, k_sparse_probing, probing))
        prompt = {"base_template": config.prompt_template, "pos_idx": config.prompt_token_pos}
        layer, key = layer_of(target.hook_name), hash_value([asdict(config), target.hook_name, context.device])
        if key not in _probes:  # made before any SAE is scored, because making them draws random numbers
            made = lasting_folder()
            _probes[key] = made, _f1_of_probes(common, context, {"layer": layer, "probes_dir": made, **prompt})
        made, scores = _probes[key]
        found = sum(score > config.min_GT_probe_f1 for score in scores)
        if found < config.min_feats_for_eval:  # it prints so, and writes nothing
            raise CannotDo(
                f"{target.model_name} cannot do the task: probes on all its channels find {found} of {len(scores)} "
                f"first letters with an F1 above {config.min_GT_probe_f1} (mean {sum(scores) / len(scores):.2f}), and "
                f"{config.min_feats_for_eval} are needed"
            )
        random.seed(config.random_seed)
        torch.manual_seed(config.random_seed)
        # it would write into its own package, where it would also read what another SAE of the same name has left
        where = {"experiment_dir": folder / "probing", "probes_dir": made}
        probe = partial(main.run_k_sparse_probing_experiment, **where)
        also = {"experiment_dir": folder / "absorption", "sparse_probing_experiment_dir": folder / "probing"}
        absorb = partial(main.run_feature_absortion_experiment, probes_dir=made, **also)
        stack.enter_context(mock.patch.object(main, "run_k_sparse_probing_experiment", probe))
        stack.enter_context(mock.patch.object(main, "run_feature_absortion_experiment", absorb))
        acts_ND, _ = common.load_probe_data_split(context.model, layer, probes_dir=made, device=context.device)
        with torch.no_grad():
            fires = any(bool((sae.encode(x_ND) != 0).any()) for x_ND in acts_ND.to(sae.dtype).split(256))
        return run_eval(main, config, sae, context, folder), fires


def check_words(tokenizer: Any) -> None:
    """Check that SAEBench finds words for every letter.

    Raises:
        CannotDo: a letter has too few.
    """
    from sae_bench.evals.absorption import common

    firsts = [word.strip()[0].lower() for word in common.get_alpha_tokens(tokenizer)]
    rarest = min(ascii_lowercase, key=firsts.count)
    if firsts.count(rarest) < LEAST_WORDS:
        raise CannotDo(
            f"absorption needs {LEAST_WORDS} words of the tokenizer for each first letter, and {firsts.count(rarest)} "
            f"begin with {rarest!r}"
        )


def _f1_of_probes(common: ModuleType, context: Context, options: Mapping[str, Any]) -> list[float]:
    """Make SAEBench's probes, and return the F1 of each letter's on words that it did not see."""
    import torch
    from sklearn.metrics import f1_score

    check_words(context.model.tokenizer)
    torch.set_grad_enabled(True)  # as SAEBench's `run_eval` does
    probe = common.load_or_train_probe(context.model, **options, device=context.device)
    acts_ND, words = common.load_probe_data_split_or_train(context.model, **options, split="test", device="cpu")
    letters_N = torch.tensor([letter for _, letter in words])
    with torch.no_grad():
        finds_NL = (probe(acts_ND.to(context.device)) > 0).cpu()
    return [float(f1_score(letters_N == i, finds)) for i, finds in enumerate(finds_NL.T)]
