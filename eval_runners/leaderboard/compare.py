"""Explain why two rows of the leaderboard are not ranked together, and how they differ. Pure: imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from eval_runners.leaderboard.ranking import SAME_L0, Board
from eval_runners.leaderboard.render import format_number
from eval_runners.leaderboard.rows import Row, training_fields
from eval_runners.store.read import conditions_of, describe_differences
from eval_runners.store.seeds import FEWEST_SEEDS, common_differences, half_width, paired_p_value
from sae_variants.common.errors import check_name


def find_rows(boards: Sequence[Board], name: str) -> list[tuple[Board, Row]]:
    """Every row of that label, or `MODEL/LABEL`, with its board.

    Raises:
        UsageError: no row has that label; the message names similar ones.
    """
    rows = [(board, row) for board in boards for row in board.rows if row.results]
    matches = [(board, row) for board, row in rows if name in (row.label, f"{board.model}/{row.label}")]
    if not matches:
        similar = {row.label for _, row in rows if row.name == name.partition("[")[0]}
        check_name("row", name, similar or {row.name for _, row in rows})
    return matches


def why_separate(board: Board, row: Row, other_board: Board, other: Row) -> list[str]:
    """Reasons, one a line, why two rows are not ranked together. Empty if they are."""
    pair = (row, other)
    properties = {
        "language model": (board.model, other_board.model),
        "hook": (board.hook_name, other_board.hook_name),
        "d_sae": (row.d_sae, other.d_sae),
        "number of training tokens": (row.training_tokens, other.training_tokens),
        **_training_fields_of_both(row, other),
    }
    lines = [
        f"{name} is {value} for {row.label} and {other_value} for {other.label}"
        for name, (value, other_value) in properties.items()
        if value != other_value
    ]
    matched = board is other_board and other in board.group(row)
    levels = sorted(each.l0 for each in pair if each.l0)
    if not matched and len(levels) == 2 and (not lines or levels[1] > SAME_L0 * levels[0]):
        lines.append(f"L0 is {row.l0:.1f} for {row.label} and {other.l0:.1f} for {other.label}: matched is within 3 %")
    lines += [f"L0 of {each.label} is not known" for each in pair if each.l0 is None]
    lines += [f"{each.label} is untrained: {'; '.join(each.untrained)}" for each in pair if each.untrained]
    for evaluation in dict.fromkeys([*row.results, *other.results]):
        missing = [each.label for each in pair if evaluation not in each.results]
        if missing:
            lines.append(f"{evaluation} was not run for {', '.join(missing)}")
            continue
        here, there = (conditions_of(each.results[evaluation][0]) for each in pair)
        lines += [f"{evaluation}: {difference}" for difference in describe_differences(here, there)]
    n_common = len({*row.seeds} & {*other.seeds})
    if n_common < FEWEST_SEEDS:
        seeds = "seed" if n_common == 1 else "seeds"
        lines.append(f"they have {n_common or 'no'} {seeds} in common: a test needs {FEWEST_SEEDS}")
    return lines


def how_to_choose(boards: Sequence[Board]) -> str:
    """What separates boards, and how one of them is chosen."""
    models, hooks = (dict.fromkeys(values) for values in zip(*((b.model, b.hook_name) for b in boards), strict=True))
    if len(models) > 1:
        return f"choose with --model ({', '.join(models)})"
    if len(hooks) > 1:
        return f"their hooks differ ({', '.join(map(str, hooks))}): give --results with those of one hook"
    here, there = (board.conditions for board in boards[:2])
    lines = [
        f"{name}: {line}" for name in here if name in there for line in describe_differences(here[name], there[name])
    ]
    if lines:
        return f"their conditions differ ({'; '.join(lines)}): give --results with results under one condition"
    return f"choose with --evals ({', '.join(dict.fromkeys(name for board in boards for name in board.conditions))})"


def differences_over_seeds(board: Board, row: Row, other: Row) -> Iterator[dict[str, str]]:
    """Row of a table for every metric that both have for enough common seeds.

    Its p value is that of a paired t-test of this metric alone, uncorrected.
    """
    for column in board.columns:
        if len({number[0] for each in board.rows if (number := each.number(column))}) < 2:
            continue  # it is of the language model, not of the SAEs
        differences = common_differences(row.by_seed(column), other.by_seed(column))
        if len(differences) >= FEWEST_SEEDS:
            yield {
                "evaluation": column.evaluation,
                "metric": column.metric.title,
                "better": column.metric.better,
                "difference": format_number((fmean(differences), half_width(differences))),
                "p": f"{paired_p_value(differences):.2g}",
                "seeds": str(len(differences)),
            }


def _training_fields_of_both(row: Row, other: Row) -> dict[str, tuple[Any, Any]]:
    """Config fields that two SAEs of one name were trained with. Empty for SAEs of different names."""
    if row.name != other.name:
        return {}
    here, there = (training_fields(each.all_results[0]) for each in (row, other))
    return {field: (here[field], there[field]) for field in here if field in there}
