"""How much a metric varies between training seeds and between evaluation seeds, and which differences are reliable.

Pure: imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev, variance
from typing import Any

from eval_runners.leaderboard.boards import make_boards
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.rows import Column, Row, to_sorted_json, written_at
from eval_runners.store.read import (
    Result,
    conditions_of,
    eval_seed_of,
    metric_value,
    provenance_of,
    weight_hash_of,
)
from eval_runners.store.seeds import FEWEST_SEEDS, common_differences, holm, least_reliable_difference, paired_p_value

HEADS = (
    "between SAEs",
    "training seeds",
    "evaluation seeds",
    "difference, training seeds",
    "difference, evaluation seeds",
    f"reliable from, {FEWEST_SEEDS} seeds",
    "reliable from, 5 seeds",
    "pairs told apart",
)
EXPLANATION = (
    "Standard deviations: of the means of SAEs; over training seeds of one SAE; over evaluation seeds (other held-out "
    "contexts, other probe splits) of the same weights; of the difference of two SAEs, over training seeds that both "
    "have, and over evaluation seeds. Each is pooled over SAEs, or pairs. A difference of two means is reliable from "
    "the one on that a single paired t-test over training seeds takes for real (5 %); a true difference of that size "
    "is found about every second time, and several comparisons need more. Pairs told apart: by such tests, corrected "
    "for their number (Holm)."
)


@dataclass(frozen=True)
class Reliability:
    """Standard deviations of one metric, pooled over SAEs."""

    column: Column
    labels: list[str]
    """The SAEs."""
    n_seeds: int
    """Training seeds that all of them have."""
    between: float
    """Of the means of the SAEs."""
    training: float
    """Over training seeds."""
    evaluation: float | None
    """Over evaluation seeds of the same weights; None where there is one."""
    difference: float
    """Over training seeds, of the difference of two SAEs of the same seed."""
    evaluation_difference: float | None
    """Over evaluation seeds, of the difference of two SAEs; None where there is one."""
    pairs: int
    told_apart: int
    """Pairs of SAEs that differ by a paired t-test with Holm's correction."""

    @property
    def cells(self) -> list[str]:
        """Texts of a row of the table, in the order of `HEADS`."""
        differences = [least_reliable_difference(self.difference, n) for n in (FEWEST_SEEDS, 5)]
        spreads = (self.between, self.training, self.evaluation, self.difference, self.evaluation_difference)
        numbers = ("-" if each is None else f"{each:.2g}" for each in (*spreads, *differences))
        return [*numbers, f"{self.told_apart} of {self.pairs}"]


def measure_reliability(results: Sequence[Result]) -> Iterator[tuple[Board, list[Reliability]]]:
    """Measure the leaderboard's metrics on every board that has results by several evaluation seeds.

    Args:
        results: of several SAEs, training seeds and evaluation seeds. SAEs of which none was evaluated by a further
            seed, untrained ones, and those of fewer than three training seeds, are left out.

    Yields:
        Boards with their metrics.
    """
    repeated: Repeated = {}
    for result in sorted(results, key=written_at):
        if seed := eval_seed_of(result):
            repeated.setdefault(_repeated_key(result), {})[seed] = result
    for board in make_boards(results):
        columns = [column for column in board.shown if column.metric.better != "neither"]
        measured = [_measure(board, column, repeated) for column in columns]
        if any(measured):
            yield board, [each for each in measured if each]


Repeated = dict[Any, dict[int, Result]]
"""What two results by different evaluation seeds agree on -> evaluation seed -> the newest result."""


def _repeated_key(result: Result) -> tuple[str | None, str]:
    """Weights, and conditions but for what an evaluation seed changes."""
    of_seed = ("eval_seed", "seed", "random_seed", "documents")
    conditions = {key: value for key, value in conditions_of(result).items() if key not in of_seed}
    return weight_hash_of(result), to_sorted_json(conditions)


def _measure(board: Board, column: Column, repeated: Repeated) -> Reliability | None:
    rows = [
        row
        for row in board.rows
        if not row.untrained
        and len(row.by_seed(column)) >= FEWEST_SEEDS
        and any(_repeated_key(result) in repeated for result in row.results[column.evaluation])
    ]
    seeds = sorted(set.intersection(*(set(row.by_seed(column)) for row in rows))) if rows else []
    if len(rows) < 2 or len(seeds) < FEWEST_SEEDS:
        return None
    values = [[row.by_seed(column)[seed] for seed in seeds] for row in rows]
    by_eval_seed = [_by_eval_seed(row, column, repeated) for row in rows]
    differences = [[a - b for a, b in zip(one, other, strict=True)] for one, other in combinations(values, 2)]
    again = [list(numbers.values()) for of_row in by_eval_seed for numbers in of_row.values()]
    eval_differences = [
        common_differences(here[seed], there[seed])
        for here, there in combinations(by_eval_seed, 2)
        for seed in here.keys() & there.keys()
    ]
    pooled = _pooled_deviation(differences)
    assert pooled is not None, "there are two rows with three seeds"
    if not any(map(any, differences)):
        return None  # it is of the language model, not of the SAEs
    return Reliability(
        column,
        [row.label for row in rows],
        len(seeds),
        between=stdev(map(fmean, values)),
        training=_pooled_deviation(values) or 0.0,
        evaluation=_pooled_deviation(again),
        difference=pooled,
        evaluation_difference=_pooled_deviation(eval_differences),
        pairs=len(differences),
        told_apart=sum(holm([paired_p_value(of_pair) for of_pair in differences])),
    )


def _by_eval_seed(row: Row, column: Column, repeated: Repeated) -> dict[int, dict[int, float]]:
    """Training seed -> evaluation seed -> number, for the SAEs of a row that were evaluated several times."""
    found: dict[int, dict[int, float]] = {}
    for result in row.results[column.evaluation]:
        others = repeated.get(_repeated_key(result), {})
        numbers = {seed: metric_value(column.metric, each) for seed, each in {0: result, **others}.items()}
        known = {seed: number for seed, number in numbers.items() if number is not None}
        if len(known) > 1:
            found[provenance_of(result).get("seed") or 0] = known
    return found


def _pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within groups, weighted by their degrees of freedom; None where no group has two numbers."""
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    return (sum(variance(group) * (len(group) - 1) for group in several) / freedom) ** 0.5 if freedom else None


def reliability_markdown(results: Sequence[Result]) -> str:
    """A Markdown table for every board, and what its columns are."""
    lines: list[str] = []
    for board, metrics in measure_reliability(results):
        heads = ["evaluation", "metric", *HEADS]
        seeds = {each.n_seeds for each in metrics}
        labels = ", ".join(f"`{label}`" for label in dict.fromkeys(label for each in metrics for label in each.labels))
        lines += [f"{board.model}, {board.hook_name}, {'-'.join(map(str, sorted(seeds)))} seeds of {labels}.", ""]
        lines += [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
        for each in metrics:
            lines.append(f"| {' | '.join([each.column.evaluation, each.column.metric.title, *each.cells])} |")
        lines.append("")
    return "\n".join([*lines, EXPLANATION, ""]) if lines else ""
