"""The model card of a published repository: metadata for the Hub, how to load, results beside the baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from eval_runners.leaderboard.boards import select_evaluations
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.render import LEGEND, format_count, to_markdown
from eval_runners.leaderboard.rows import Column, Row, metrics_of
from eval_runners.leaderboard.select import has_l0_near
from eval_runners.store.read import provenance_of
from sae_variants.language_model.hub_text import is_hub_dataset, parse_hub_dataset
from sae_variants.registry.variants import variant_summaries

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TEMPLATE = Path(__file__).parent / "templates" / "card.md"


@dataclass(frozen=True)
class CardEntry:
    """An SAE of the repository, as the card shows it."""

    id: str
    """Its folder in the repository."""
    label: str
    """Its label in tables, such as `temporal[k=16]`."""
    name: str
    """The label without fields, as a tag."""
    model: str | None
    """The language model."""
    hook_name: str
    """The hook; "-" if it is unknown."""
    seed: int | None
    """Seed of its training."""
    weight_hash: str | None
    """Weight hash, to which its results refer."""
    row: Row
    """Its results as a row of the leaderboard."""
    d_in: int | None = None
    """Width of the hook; None for an SAE that the repository holds already."""
    architecture: str = ""
    """Architecture as which SAELens loads it; empty if it is unknown."""
    is_stock: bool = False
    """Whether SAELens loads it without this package."""

    @property
    def d_sae(self) -> int | str:
        """Number of latents; "-" if it is unknown."""
        return self.row.d_sae or "-"

    @property
    def l0(self) -> str:
        """L0; "-" if it is unknown."""
        return f"{self.row.l0:.1f}" if self.row.l0 else "-"

    @property
    def needs(self) -> str:
        """What loads it."""
        if self.is_stock:
            return f"SAELens (`{self.architecture}`)"
        return "SAELens and sae-variants" if self.architecture else "-"

    @property
    def tokens(self) -> str:
        """Training tokens, such as 4.2M."""
        return format_count(self.row.training_tokens)


def render_card(
    repo: str,
    saes: Sequence[CardEntry],
    boards: Sequence[Board],
    licence: str,
    warning: str,
    others: Sequence[CardEntry],
) -> str:
    """Render the model card, metadata first.

    Args:
        repo: `user/name` on the Hub.
        saes: the SAEs that are published now.
        boards: the leaderboard's, with the results of these SAEs and of others.
        licence: licence of the weights, in the Hub's spelling.
        warning: begins the card, unless it is empty.
        others: SAEs that the repository holds already.
    """
    from jinja2 import Environment

    every = [*saes, *others]
    names = list(dict.fromkeys(sae.name for sae in every))
    summaries = variant_summaries()
    intro = " ".join(f"`{name}`: {summaries[name]}." for name in names if name in summaries)
    template = Environment(trim_blocks=True, keep_trailing_newline=True).from_string(TEMPLATE.read_text("utf-8"))
    body = template.render(
        warning=warning,
        title=repo.partition("/")[2],
        intro=intro or "Sparse autoencoders.",
        saes=saes,
        repo=repo,
        every=every,
        all_stock=all(sae.is_stock for sae in every),
        table=_table(every, boards) or "None yet.",
        legend=LEGEND,
        version=version("sae-variants"),
        year=date.today().year,
    )
    return f"---\n{_metadata(repo, every, names, licence)}\n---\n\n{body.strip()}\n"


def _metadata(repo: str, saes: Sequence[CardEntry], names: Sequence[str], licence: str) -> str:
    """The card's metadata for the Hub, as YAML."""
    from huggingface_hub import ModelCardData

    models = {sae.model for sae in saes}
    on_hub = [model for model in models if model and model != "sandbox" and not model.startswith("local-")]
    data = ModelCardData(
        library_name="saelens",
        license=licence,
        tags=["sparse-autoencoder", "interpretability", "saelens", "saebench", *names],
        base_model=on_hub or None,
        model_name=repo.partition("/")[2],
        eval_results=list(_eval_results(saes)) or None,
        ignore_metadata_errors=True,
    )
    return data.to_yaml()


def _eval_results(saes: Sequence[CardEntry]) -> Iterator[EvalResult]:
    """The numbers of the leaderboard's columns, in the Hub's form, which is for evaluations of a dataset on the Hub."""
    from huggingface_hub import EvalResult

    for sae in saes:
        for evaluation, results in sae.row.results.items():
            text = str(results[0]["eval_config"].get("dataset") or "").removesuffix("/heldout").partition(",")[0]
            if not is_hub_dataset(text):
                continue
            dataset = parse_hub_dataset(text)
            for metric in metrics_of(evaluation):
                number = sae.row.number(Column(evaluation, metric))
                if metric.short and number:
                    yield EvalResult(
                        task_type="feature-extraction",
                        dataset_type=dataset.repo,
                        dataset_name=dataset.repo,
                        dataset_config=dataset.config,
                        dataset_revision=dataset.revision or provenance_of(results[0]).get("text_revision"),
                        metric_type=metric.key,
                        metric_name=f"{metric.title} of {sae.id}",
                        metric_value=number[0],
                    )


def _table(saes: Sequence[CardEntry], boards: Sequence[Board]) -> str:
    """The boards that hold these SAEs, with these SAEs and the recipes at about their L0."""
    hashes = {sae.weight_hash for sae in saes}
    shown = []
    for board in boards:
        ours = [row for row in board.rows if hashes & row.weight_hashes]
        levels = [row.l0 for row in ours if row.l0]
        rows = [
            row
            for row in board.rows
            if not row.results or row in ours or (has_l0_near(row, levels) and not row.has_other_recipe)
        ]
        if ours:
            evaluations = list(dict.fromkeys(evaluation for row in ours for evaluation in row.results))
            shown.append(select_evaluations(replace(board, rows=rows), evaluations))
    return to_markdown(shown, legend=False).strip()
