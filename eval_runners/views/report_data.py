"""What the page of `python -m eval_runners report` is drawn from: boards as JSON values. Pure: imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval_runners.contract.registry import USUAL_EVALUATIONS, evaluator_modules, evaluator_of_type
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.render import board_title, describe_conditions, format_count
from eval_runners.leaderboard.rows import OLDER, SWEPT_FIELDS, Column, Row
from eval_runners.leaderboard.select import has_l0_near
from eval_runners.store.logs import Line
from eval_runners.views.styles import CONTROLS, DASHES, architecture_of, styles_of
from sae_variants.registry.plugins import read_summary

OTHER = "further"
QUESTIONS = {
    "reconstruction": ("core", "downstream_loss", "progressive", "scaling", "mdl"),
    "probing": ("sparse_probing", "sae_probes", "probe_loss", "scr", "tpp", "ravel", "unlearning"),
    "ground truth": ("ground_truth",),
    "persistence": ("positional_consistency", "semantics", "concept_stability"),
    "hierarchy": ("hierarchy", "composition", "absorption", "meta_structure"),
    "balance": ("alpha_dynamics",),
    "interpretability": ("autointerp", "explanations", "n2g", "human_study", "ablation_sparsity"),
    OTHER: (),
}
"""Question -> evaluators that answer it, in the order of the page; those of other packages are under `OTHER`."""


def describe_evaluations(boards: Sequence[Board]) -> dict[str, dict[str, str]]:
    """Type of results -> what the page says of the evaluation: its summary, and the question that it answers."""
    types = dict.fromkeys(name for board in boards for name in board.conditions)
    described = {}
    for eval_type in types:
        evaluator = evaluator_of_type(eval_type)
        name = evaluator.name if evaluator else eval_type
        question = next((question for question, names in QUESTIONS.items() if name in names), OTHER)
        module = evaluator_modules().get(name)
        described[eval_type] = {"question": question, "summary": read_summary(module) if module else ""}
    return described


def describe_board(board: Board, logs: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
    """Describe a board with its columns, curves, matched groups and rows.

    Args:
        board: rows whose numbers are comparable.
        logs: weight hash -> lines of the log of its training.

    Returns:
        JSON values.
    """
    group_of = {id(row): number for number, group in enumerate(board.levels) for row in group}
    for row in board.rows:  # an untrained row is shown with the group of about its L0
        if row.untrained:
            near = (n for n, group in enumerate(board.levels) if has_l0_near(row, [r.l0 for r in group if r.l0]))
            group_of[id(row)] = next(near, -1)
    curves: dict[str, dict[str, Any]] = {}
    for column in board.columns:
        if curve := column.metric.curve:
            new = {"title": curve.title, "over": curve.axis, "better": column.metric.better, "points": []}
            curves.setdefault(curve.title, new)["points"].append([curve.x, column.key])
    in_curves = {key for curve in curves.values() for _, key in curve["points"]}
    styles = styles_of(architecture_of(row.name) for row in board.rows if row.results)
    return {
        "title": board_title(board),
        "about": {name: describe_conditions(conditions) for name, conditions in board.conditions.items()},
        "columns": [_describe_column(column) for column in board.shown],
        "curves": list(curves.values()),
        "groups": [_group_title(group) for group in board.levels],
        "styles": {name: [*style.colour, style.marker, *DASHES[style.dash]] for name, style in styles.items()},
        "rows": [
            _describe_row(board, row, group_of.get(id(row)), in_curves) | {"logs": _describe_logs(row, logs)}
            for row in board.rows
        ],
    }


def _describe_column(column: Column) -> dict[str, Any]:
    metric = column.metric
    return {
        "key": column.key,
        "head": column.head,
        "title": metric.title,
        "evaluation": column.evaluation,
        "better": metric.better,
        "trust": metric.trust,
        "why_trust": metric.why_trust,
        "against_l0": metric.against_l0,
    }


def _group_title(group: Sequence[Row]) -> str:
    levels = [row.l0 for row in group if row.l0]
    mean = f"L0 ≈ {sum(levels) / len(levels):.3g}" if levels else "L0 unknown"
    return f"{mean}, {format_count(group[0].d_sae)} latents, {format_count(group[0].training_tokens)} tokens"


def _describe_row(board: Board, row: Row, group: int | None, in_curves: set[str]) -> dict[str, Any]:
    shown = {column.key for column in board.shown}
    values: dict[str, Any] = {}
    for column in board.columns:
        if column.key not in shown and column.key not in in_curves:
            continue
        number = row.number(column)
        if number is None:
            values[column.key] = {"why": row.why_missing(column)}
        else:
            rank, front = board.rank(row, column), board.on_front(row, column)
            marks = {"rank": rank} | ({"front": True} if front else {})
            marks |= {"best": True} if board.is_best(row, column) else {}
            values[column.key] = {"at": _round(number[0]), "half": _round(number[1]), **marks}
            if column.key in shown and (by_seed := row.by_seed(column)):
                values[column.key]["by"] = [_round(by_seed.get(seed), 9) for seed in row.seeds]
    architecture = architecture_of(row.name)
    return {
        "label": row.label,
        "kind": _recipe_of(row),
        "architecture": architecture,
        "control": bool(row.untrained) or architecture in CONTROLS or architecture.rpartition("/")[2].lower() == "pca",
        "l0": _round(row.l0),
        "d_sae": row.d_sae,
        "tokens": row.training_tokens,
        "seeds": row.seeds,
        "untrained": row.untrained,
        "is_sae": bool(row.results),
        "group": group,
        "varied": row.has_other_recipe,
        "commands": row.provenance("command"),
        "commits": row.provenance("commit"),
        "source": row.source,
        "values": values,
        "densities": _mean_densities(row),
    }


def _recipe_of(row: Row) -> str:
    """Architecture and the fields that make another recipe: rows of different L0 and width share it."""
    fields = [word for word in row.fields.split(" ") if word and word.partition("=")[0] not in SWEPT_FIELDS]
    older = row.label.partition(OLDER)[2]
    suffix = (f"[{' '.join(fields)}]" if fields else "") + (f"{OLDER}{older}" if older else "")
    return architecture_of(row.name) + suffix


def _mean_densities(row: Row) -> dict[str, Any] | None:
    """Mean over seeds of the histograms of firing rates; None if there are none or their bins differ."""
    densities = [
        unstructured["densities"]
        for result in row.results.get(USUAL_EVALUATIONS[0], [])
        if "densities" in (unstructured := result.get("eval_result_unstructured") or {})
    ]
    if not densities or len({(each["log10_from"], each["bins_per_decade"]) for each in densities}) > 1:
        return None
    bins = zip(*(each["counts"] for each in densities), strict=True)
    never = sum(each["never"] for each in densities) / len(densities)
    return {**densities[0], "counts": [_round(sum(n) / len(densities)) for n in bins], "never": _round(never)}


def _describe_logs(row: Row, logs: Mapping[str, Sequence[Line]]) -> list[dict[str, Any]]:
    """Numbers over training tokens of each of a row's SAEs whose training was logged."""
    described = []
    for digest in sorted(row.weight_hashes & logs.keys()):
        lines = logs[digest]
        names = dict.fromkeys(name for line in lines for name in line if name not in ("step", "tokens", "phase"))
        values = {name: [_round(line.get(name)) for line in lines] for name in names}
        described.append({"tokens": [line["tokens"] for line in lines], "values": values})
    return described


def _round(value: float | None, digits: int = 5) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")
