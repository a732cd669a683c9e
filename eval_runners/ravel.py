"""SAEBench's RAVEL, unchanged: can a set of latents change one attribute of an entity and leave the others?

The language model completes prompts such as "Paris is in the country of"; prompts that it completes wrongly are left
out. For each attribute a mask over latents is fitted. At the entity's last token, the latents in the mask take their
values from a prompt on another entity. The cause score is how often the attribute then becomes that of the other
entity, the isolation score how often another attribute stays, and disentanglement the mean of both.

Source: Huang et al., arXiv 2402.17700; SAEBench, arXiv 2503.09532.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import UNSTRUCTURED, Context, Evaluation, Evaluator, Metric, Result
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_variants.language_model.target import Target


@dataclass(frozen=True)
class Settings:
    """Settings of SAEBench's RAVEL; the defaults are SAEBench's."""

    prompts: str = "adamkarvonen/ravel_prompts"
    """Entities and prompts: a dataset on the Hub, or a folder with files of the same names."""
    attributes: tuple[str, ...] = (
        "city:Country",
        "city:Continent",
        "city:Language",
        "nobel_prize_winner:Country of Birth",
        "nobel_prize_winner:Field",
        "nobel_prize_winner:Gender",
    )
    """Attributes as KIND OF ENTITY:ATTRIBUTE, separated by commas; at least two of each kind of entity."""
    top_n_entities: int = 500
    """Entities of each kind: those on which the language model completes most prompts correctly."""
    full_dataset_downsample: int | None = None
    """Prompts of each kind that are drawn before the language model completes them; the default is all."""
    num_pairs_per_attribute: int = 5000
    """Pairs of prompts for each attribute."""
    train_test_split: float = 0.7
    """Share of the pairs on which masks are fitted."""
    llm_batch_size: int = 8
    """Pairs in a batch, and in a step of the fit."""
    learning_rate: float = 1e-3
    """Learning rate of the fit."""
    num_epochs: int = 2
    """Passes over the pairs."""
    n_generated_tokens: int = 6
    """Tokens of a completion."""
    random_seed: int = 42
    """Seed of the pairs."""


METRICS = (
    Metric("ravel", "disentanglement_score", "disentanglement", "higher", short="RAVEL"),
    Metric("ravel", "cause_score", "cause: the attribute changes", "higher"),
    Metric("ravel", "isolation_score", "isolation: other attributes stay", "higher"),
)


class RAVEL(Evaluator[Settings]):
    """SAEBench's RAVEL."""

    settings_class = Settings
    metrics = METRICS
    detail = "attribute"

    def host_output_class(self) -> type:
        """SAEBench's class of these results."""
        from sae_bench.evals.ravel.eval_output import RAVELEvalOutput

        return RAVELEvalOutput

    def prepare(self, target: Target, settings: Settings) -> tuple[Settings, dict[str, str]]:
        """Check the attributes, and get the prompts."""
        from eval_runners.data.entity_prompts import find_prompts

        if not target.hook_name.endswith(".hook_resid_post"):
            raise UsageError(f"RAVEL changes blocks.N.hook_resid_post only, and {target.hook_name} is another hook")
        if not 0 < settings.train_test_split < 1:
            raise UsageError(f"--train-test-split must be between 0 and 1, not {settings.train_test_split}")
        for kind, attributes in attributes_by_kind(settings).items():
            if len(set(attributes)) < 2:
                raise UsageError(f"--attributes must name two of {kind} at least: one changes and another stays")
        return settings, {"prompts": find_prompts(settings.prompts, attributes_by_kind(settings)).version}

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Run SAEBench's RAVEL of one SAE."""
        from eval_runners.data.entity_prompts import find_prompts
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.saebench.ravel import score_ravel

        require_finite_weights(sae)
        attributes = attributes_by_kind(settings)
        prompts = find_prompts(settings.prompts, attributes).folder
        output, fires, known = score_ravel(sae, target, settings, attributes, prompts, context)
        scores = output.pop("eval_result_unstructured") or {}
        rows = [
            {"entity": kind, "attribute": attribute, **known[kind][attribute], **scores[f"{kind}_results"][key]}
            for kind, names in attributes.items()
            for attribute in names
            if (key := f"{kind}_{attribute}")
        ]
        failures = [] if fires else ["no latent fires on any entity"]
        return Evaluation(unstructured={"attributes": rows}, failures=failures, host_output=output)

    def summary_lines(self, result: Result) -> list[str]:
        """How many prompts the language model completes correctly."""
        rows = result[UNSTRUCTURED]["attributes"]
        correct, asked = (sum(row[key] for row in rows) for key in ("correct", "prompts"))
        return [f"the language model completes {correct} of {asked} prompts correctly; the others are left out"]

    def detail_rows(self, result: Result) -> Iterator[dict[str, Any]]:
        """One row per attribute."""
        for row in result[UNSTRUCTURED]["attributes"]:
            yield {name.removesuffix("_score"): value for name, value in row.items()}


def attributes_by_kind(settings: Settings) -> dict[str, list[str]]:
    """Return the attributes of each kind of entity.

    Raises:
        UsageError: one is not written KIND:ATTRIBUTE.
    """
    found: dict[str, list[str]] = {}
    for name in settings.attributes:
        kind, colon, attribute = name.partition(":")
        if not (kind and colon and attribute):
            raise UsageError(f"--attributes are written KIND:ATTRIBUTE, such as city:Country, not {name!r}")
        found.setdefault(kind, []).append(attribute)
    return found


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
