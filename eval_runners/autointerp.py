"""SAEBench's automatic interpretation: does a judge's explanation of a latent tell where the latent fires?

The judge sees passages in which a latent fires, explains it in a sentence, and then says in which of 14 other passages
it fires; the score is its accuracy. A judge is any language model behind an endpoint that speaks OpenAI's API (--url
and --model-name; a key is read from OPENAI_API_KEY and never written). Without one, the words that are marked most
often stand for an explanation, which needs no network and is no language model. Replies are kept: a killed run asks
nothing twice.

Source: Paulo et al., arXiv 2410.13928; SAEBench, arXiv 2503.09532.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import UNSTRUCTURED, Context, Evaluation, Evaluator, Metric, Result
from eval_runners.data.judges import PEOPLE
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target

TOKENS_OF_LATENT = 1_400
"""Tokens, about, of the two questions on a latent."""


@dataclass(frozen=True)
class Settings:
    """Settings of SAEBench's automatic interpretation."""

    url: str = ""
    """Address of an endpoint that speaks OpenAI's API, such as http://localhost:8000/v1; the default is no network."""
    model_name: str = ""
    """The endpoint's name of the language model."""
    budget: int | None = None
    """Tokens, about, that the questions on an SAE may take."""
    n_latents: int = 100
    """Latents that are explained, drawn from those that are alive."""
    total_tokens: int = 2_000_000
    """Tokens of held-out text in which passages are looked for."""
    llm_context_size: int = 128
    """Tokens in a context."""
    llm_batch_size: int = 32
    """Contexts in a batch of the language model."""
    dead_latent_threshold: float = 15.0
    """Tokens on which a latent must fire to count as alive."""
    random_seed: int = 42
    """Seed of the latents and passages."""


METRICS = (
    Metric(
        "autointerp",
        "autointerp_score",
        "accuracy of the judge",
        "higher",
        short="autointerp",
        trust="with care",
        why_trust=f"depends on the judge, and rewards explanations that are too general (arXiv 2506.05774); {PEOPLE}",
    ),
    Metric("autointerp", "autointerp_std_dev", "its standard deviation over latents", "neither"),
)


class AutoInterp(Evaluator[Settings]):
    """SAEBench's automatic interpretation."""

    settings_class = Settings
    metrics = METRICS
    detail = "latent"

    def host_output_class(self) -> type:
        """SAEBench's class of these results."""
        from sae_bench.evals.autointerp.eval_output import AutoInterpEvalOutput

        return AutoInterpEvalOutput

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Check the endpoint, and that the budget is enough."""
        from eval_runners.data.judges import WORDS, check_judge

        if settings.n_latents < 2:
            raise UsageError("--n-latents must be at least 2: SAEBench also gives the standard deviation over latents")
        check_judge(settings.url, settings.model_name, settings.budget, settings.n_latents, TOKENS_OF_LATENT)
        return replace(settings, budget=None), {"judge": settings.model_name or WORDS}  # no result depends on a budget

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Run SAEBench's automatic interpretation of one SAE."""
        from eval_runners.data.judges import WORDS, EndpointJudge, WordsJudge
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.saebench.autointerp import score_autointerp

        require_finite_weights(sae)
        host_settings = asdict(settings)
        url, model, _ = (host_settings.pop(name) for name in ("url", "model_name", "budget"))
        judge = EndpointJudge(url, model) if url else WordsJudge()
        output = score_autointerp(sae, target, host_settings, context, judge)
        latents = output.pop("eval_result_unstructured") or {}
        numbers = output["eval_result_metrics"]["autointerp"]
        numbers |= {name: -1.0 for name, value in numbers.items() if not isfinite(value)}  # as SAEBench does in core
        rows = [{key: one[key] for key in KEPT} for one in latents.values() if "score" in one]
        if isinstance(judge, EndpointJudge) and judge.asked + judge.reused and not rows:
            raise UsageError(f"the replies of {model or WORDS} hold no answers to any question: check --model-name")
        failures = [] if rows else ["no latent fires often enough to be explained"]
        kept: dict[str, Any] = {"judge": model or WORDS, "latents": rows}
        if isinstance(judge, EndpointJudge):
            kept |= {"tokens_asked": judge.tokens, "replies_reused": judge.reused, "refused": len(judge.refused)}
        return Evaluation(unstructured=kept, failures=failures, host_output=output)

    def summary_lines(self, result: Result) -> list[str]:
        """The judge, the latents that it explained, and what people reach."""
        found = result[UNSTRUCTURED]
        return [f"judge: {found['judge']}, {len(found['latents'])} latents with an answer; {PEOPLE}"]

    def detail_rows(self, result: Result) -> Iterator[dict[str, Any]]:
        """One row per latent: its explanation and score."""
        for row in result[UNSTRUCTURED]["latents"]:
            yield {"latent": row["latent"], "score": row["score"], "explanation": row["explanation"]}


KEPT = ("latent", "explanation", "predictions", "correct seqs", "score")
"""What is kept of SAEBench's record of a latent."""


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
