"""The model card of a published repository: metadata for the Hub, how to load, results beside the baselines."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval_runners.leaderboard.boards import Board, select_evaluations
from eval_runners.leaderboard.render import LEGEND, to_markdown
from eval_runners.leaderboard.rows import metrics_of
from eval_runners.leaderboard.select import has_l0_near
from sae_variants.registry.variants import variant_summaries

TEMPLATE = Path(__file__).parent / "templates" / "card.md"


def render_card(
    repo: str, saes: list[dict[str, Any]], boards: list[Board], licence: str, warning: str, others: list[dict[str, Any]]
) -> str:
    """The model card, metadata first: of the SAEs published now, and of others that the repository holds already."""
    from huggingface_hub import EvalResult, ModelCardData
    from jinja2 import Environment

    every = [*saes, *others]

    def results() -> Any:
        for sae in every:
            row = sae["row"]
            for evaluation, own in row.results.items():
                for metric in metrics_of(evaluation):
                    number = row.number((evaluation, metric))
                    if metric.short and number:
                        text = str(own[0]["eval_config"].get("dataset") or evaluation)
                        yield EvalResult(
                            task_type="feature-extraction", dataset_type=text, dataset_name=text,
                            dataset_config=sae["id"], metric_type=metric.key, metric_name=metric.title,
                            metric_value=number[0],
                        )  # fmt: skip

    names = list(dict.fromkeys(sae["name"] for sae in every))
    models = {sae["model"] for sae in every}
    on_hub = [model for model in models if model and model != "sandbox" and not model.startswith("local-")]
    data = ModelCardData(
        library_name="saelens",
        license=licence,
        tags=["sparse-autoencoder", "interpretability", "saelens", "saebench", *names],
        base_model=on_hub or None,
        model_name=repo.partition("/")[2],
        eval_results=list(results()) or None,
        ignore_metadata_errors=True,
    )
    summaries = variant_summaries()
    intro = " ".join(f"`{name}`: {summaries[name]}." for name in names if name in summaries)
    plain = ", ".join(sorted({sae["plain"] for sae in saes})) if all(sae["plain"] for sae in saes) else ""
    template = Environment(trim_blocks=True, keep_trailing_newline=True).from_string(TEMPLATE.read_text())
    body = template.render(
        warning=warning, title=repo.partition("/")[2], intro=intro or "Sparse autoencoders.", saes=saes, repo=repo,
        every=every, plain=plain, table=_table(every, boards) or "None yet.", legend=LEGEND,
        version=version("sae-variants"), year=date.today().year,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n"


def _table(saes: list[dict[str, Any]], boards: list[Board]) -> str:
    """The boards that these SAEs are on: they, and what was made by a recipe at about their L0."""
    hashes = {sae["hash"] for sae in saes}
    chosen = []
    for board in boards:
        ours = [row for row in board.rows if hashes & row.weight_hashes]
        levels = [row.l0 for row in ours if row.l0]
        beside = [
            row
            for row in board.rows
            if not row.results or row in ours or (has_l0_near(row, levels) and not row.changed_kind)
        ]
        if ours:
            scored = list(dict.fromkeys(evaluation for row in ours for evaluation in row.results))
            chosen.append(select_evaluations(replace(board, rows=beside), scored))
    return to_markdown(chosen, legend=False).strip()
