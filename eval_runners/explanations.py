"""Does an explanation tell where a latent fires? Detection and fuzzing, beside shuffled labels and random latents.

A judge explains a latent by excerpts in which it fires. Detection asks in which other excerpts it fires, fuzzing
whether the tokens that are marked are those on which it does. Both are asked with the explanation of another latent,
too (shuffled), and of directions drawn at random that fire as often (random): an SAE's explanations say something as
far as they score above these. The judge is any language model behind an endpoint that speaks OpenAI's API (--url and
--model-name; a key is read from OPENAI_API_KEY and never written), and rates from 0 to 10. Without one, N2G's patterns
of tokens explain, and match or do not; that is no language model. Replies are kept: a killed run asks nothing twice.

Source: Paulo et al., arXiv 2410.13928; F1 and the area under the precision-recall curve beside balanced accuracy, which
rewards explanations that are too general, after arXiv 2506.05774.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import UNSTRUCTURED, Context, Evaluation, Evaluator, Metric, Result
from eval_runners.data.judges import PEOPLE
from sae_variants.common.errors import UsageError, check_name

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

    from eval_runners.measures.explanation_tests import Judge
    from sae_variants.language_model.target import Target

CONTROLS = ("shuffled", "random")
TITLES = {"latents": "", "shuffled": ", another latent's explanation", "random": ", random directions"}
NAMES = {"f1": "F1", "auprc": "area under precision-recall", "balanced_accuracy": "balanced accuracy"}


@dataclass(frozen=True)
class Settings:
    """Settings of detection and fuzzing."""

    url: str = ""
    """Address of an endpoint that speaks OpenAI's API, such as http://localhost:8000/v1; the default is no network."""
    model_name: str = ""
    """The endpoint's name of the language model."""
    budget: int | None = None
    """Tokens, about, that the questions on an SAE may take."""
    controls: tuple[str, ...] = CONTROLS
    """Controls: shuffled, random, or both, separated by commas."""
    n_latents: int = 40
    """Latents to sample."""
    n_contexts: int = 512
    """Held-out contexts: explanations come from the first half and are tested on the second."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    excerpt_tokens: int = 32
    """Tokens of an excerpt."""
    n_examples: int = 20
    """Excerpts for an explanation."""
    n_tests: int = 20
    """Excerpts of a test in which the latent fires, and as many in which it does not."""
    n_min: int = 20
    """Contexts of each half in which a latent must fire to be sampled."""
    seed: int = 0
    """Seed of the latents, the excerpts and the random directions."""


METRICS = tuple(
    Metric(
        group,
        f"{measure}_{score}",
        f"{measure}, {name}{TITLES[group]}",
        "higher" if group == "latents" else "neither",
        short=f"{measure} F1" if (group, score) == ("latents", "f1") else "",
        column=f"{group}.{measure}_{score}",
        trust="with care" if group == "latents" else "",
        why_trust=f"depends on the judge; {PEOPLE}" if group == "latents" else "",
    )
    for group in TITLES
    for measure in ("detection", "fuzzing")
    for score, name in NAMES.items()
)


class Explanations(Evaluator[Settings]):
    """Detection and fuzzing."""

    settings_class = Settings
    metrics = METRICS
    detail = "latent"

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Check the endpoint, the budget and the sizes."""
        from eval_runners.data.judges import check_judge
        from eval_runners.measures.explainers import PATTERNS, tokens_of_latent

        for control in settings.controls:
            check_name("control in --controls", control, CONTROLS)
        if settings.excerpt_tokens >= settings.context_size:
            raise UsageError(
                f"--excerpt-tokens {settings.excerpt_tokens} must be below --context-size {settings.context_size}"
            )
        if settings.n_contexts < 2 * settings.n_min:
            raise UsageError(f"--n-contexts {settings.n_contexts} must be at least twice --n-min {settings.n_min}")
        sizes = (settings.excerpt_tokens, settings.n_examples, settings.n_tests)
        each = tokens_of_latent(*sizes, settings.controls)
        check_judge(settings.url, settings.model_name, settings.budget, settings.n_latents, each)
        judge = settings.model_name or PATTERNS
        return replace(settings, budget=None), {"judge": judge}  # no result depends on a budget

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Explain sampled latents, and test the explanations."""
        import torch

        from eval_runners.data.heldout import activations_of, prepend_bos, tokenizer_of
        from eval_runners.data.judges import EndpointJudge
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.measures.explainers import PATTERNS, ModelJudge, pattern_judge
        from eval_runners.measures.explanation_tests import (
            judge_latents,
            judge_shuffled,
            make_all_questions,
            random_latents,
        )
        from eval_runners.measures.sampled_latents import sample_latents
        from eval_runners.measures.statistics import mean_of_known

        require_finite_weights(sae)
        wanted = (settings.n_contexts, settings.context_size, settings.n_latents, settings.n_min)
        sampled = sample_latents(sae, target, context.model, *wanted, settings.seed)
        generator = torch.Generator().manual_seed(settings.seed)
        sizes = (settings.excerpt_tokens, settings.n_examples, settings.n_tests)
        endpoint = EndpointJudge(settings.url, settings.model_name) if settings.url else None
        asked_model = ModelJudge(endpoint, tokenizer_of(context.model)) if endpoint else None

        def judged_by(acts_CTP: Tensor, read: Callable[[Tensor, int], Tensor]) -> Judge:
            return asked_model or pattern_judge(target, context.model, sampled.ids_CT, acts_CTP, read, settings.seed)

        def read_latent(x_ND: Tensor, place: int) -> Tensor:
            return sae.encode(x_ND.to(sae.W_dec))[:, sampled.latents[place]]

        asked = make_all_questions(sampled.ids_CT, sampled.acts_CTP, sampled.special_CT, *sizes, generator)
        judge = judged_by(sampled.acts_CTP, read_latent)
        rows = judged = judge_latents(judge, asked, sampled.latents, "latents")
        if "shuffled" in settings.controls:
            rows = rows + judge_shuffled(judge, asked, judged)
        if "random" in settings.controls and judged:
            directions_DP = torch.randn(sae.cfg.d_in, len(sampled.latents), generator=generator)
            batches = activations_of(prepend_bos(sampled.ids_CT, context.model), target, context.model)
            projected_CTP = torch.cat([x_CTD.float().cpu() @ directions_DP for x_CTD, _ in batches])
            acts_CTP, thresholds_P = random_latents(projected_CTP, sampled.special_CT, sampled.acts_CTP)

            def read_random(x_ND: Tensor, place: int) -> Tensor:
                return (x_ND.float().cpu() @ directions_DP[:, place] - thresholds_P[place]).relu()

            asked = make_all_questions(sampled.ids_CT, acts_CTP, sampled.special_CT, *sizes, generator)
            rows = rows + judge_latents(judged_by(acts_CTP, read_random), asked, sampled.latents, "random")
        values = {
            metric.id: mean_of_known(row[metric.name] for row in rows if row["group"] == metric.category)
            for metric in METRICS
        }
        if asked_model and judged and all(row["fuzzing_f1"] is None for row in judged):
            raise UsageError(f"the replies of {settings.model_name} hold no ratings: check --model-name")
        kept: dict[str, Any] = {"judge": settings.model_name or PATTERNS, "explanations": rows}
        if endpoint and asked_model:
            kept |= {"tokens_asked": endpoint.tokens, "replies_reused": endpoint.reused}
            kept |= {"refused": len(endpoint.refused), "replies_without_ratings": asked_model.unread}
        failures = [] if judged else ["no latent fires in enough excerpts, and is silent in enough, to be explained"]
        return Evaluation(values, kept, failures)

    def summary_lines(self, result: Result) -> list[str]:
        """The judge, and what people reach."""
        found = result[UNSTRUCTURED]
        judged = sum(row["group"] == "latents" for row in found["explanations"])
        return [f"judge: {found['judge']}, {judged} latents explained; {PEOPLE}"]

    def detail_rows(self, result: Result) -> list[dict[str, Any]]:
        """One row per latent and control."""
        names = [f"{measure}_{score}" for measure in ("detection", "fuzzing") for score in NAMES]
        return [
            {key: row.get(key) for key in ("latent", "group", *names, "explanation")}
            for row in result[UNSTRUCTURED]["explanations"]
        ]


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
