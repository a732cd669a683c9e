"""SAEBench's automatic interpretation of one SAE, each adaptation beside the fault it answers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from unittest import mock

from eval_runners.contract.contract import Context, Result
from eval_runners.data.judges import REFUSED, Judge
from eval_runners.saebench.run import in_own_folder, run_eval
from eval_runners.saebench.shared import hide_output
from sae_variants.common.errors import UsageError
from sae_variants.language_model.contexts import heldout_text_name, text_dataset
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from sae_lens import SAE


@contextlib.contextmanager
def answered_by(judge: Judge, questions: int) -> Iterator[list[BaseException]]:
    """Let a judge answer SAEBench's questions, in place of one model of one provider; yield the errors of its threads.

    The example of a reply in SAEBench's question is drawn in the order in which earlier replies arrive. Here the
    question decides it, so that the same command asks the same.
    """
    from sae_bench.evals.autointerp import main
    from tqdm import tqdm

    errors: list[BaseException] = []
    prompts = main.AutoInterp.get_scoring_prompts

    def respond(_: Any, messages: Any, max_tokens: int, n_completions: int = 1) -> tuple[list[str], str]:
        if errors:  # the others would only add to the bill
            return [REFUSED], ""
        try:
            reply = judge.answer(messages, max_tokens)
        except Exception as error:  # raised when all threads have ended, or each would print a traceback of its own
            errors.append(error)
            return [REFUSED], ""
        bar.update()
        return [reply], ""

    def scoring_prompts(self: Any, explanation: str, scoring_examples: Any) -> Any:
        state = random.getstate()
        random.seed(explanation)
        try:
            return prompts(self, explanation, scoring_examples)
        finally:
            random.setstate(state)

    with (
        tqdm(total=questions, desc="questions", leave=False) as bar,
        mock.patch.object(main.AutoInterp, "get_api_response", respond),
        mock.patch.object(main.AutoInterp, "get_scoring_prompts", scoring_prompts),
    ):
        yield errors


def score_autointerp(
    sae: SAE[Any], target: Target, settings: Mapping[str, Any], context: Context, judge: Judge
) -> Result:
    """Run SAEBench's automatic interpretation of one SAE.

    Args:
        sae: In inference form.
        target: Names the model, the hook and the held-out text.
        settings: Fields of SAEBench's config.
        context: The loaded model and the device.
        judge: Answers the questions.

    Raises:
        UsageError: the text is too short, or the judge does not answer.
    """
    from sae_bench.evals.autointerp import main
    from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig
    from sae_bench.sae_bench_utils import activation_collection, dataset_utils

    text = heldout_text_name(target)
    config = AutoInterpEvalConfig(**settings, dataset_name=text, model_name=target.model_name, llm_dtype=target.dtype)

    def texts(*_: Any, **__: Any) -> list[str]:
        return [row["text"] for row in text_dataset(target, "heldout", context.model.tokenizer)]

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(in_own_folder(main, context, config.random_seed))
        stack.enter_context(hide_output(activation_collection))
        stack.enter_context(mock.patch.object(dataset_utils, "get_dataset_list_of_strs", texts))
        errors = stack.enter_context(answered_by(judge, 2 * settings["n_latents"]))
        try:
            output = run_eval(main, config, sae, context, folder, api_key="", artifacts_path=str(folder / "artifacts"))
        except AssertionError as error:
            if str(error):  # another than that of the text's length
                raise
            raise UsageError(
                f"the held-out text of {target.title} has fewer than {config.total_tokens} tokens: lower --total-tokens"
            ) from error
        except Exception:
            if errors:
                raise errors[0] from None
            raise
        if errors:
            raise errors[0]
        return output
