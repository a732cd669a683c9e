"""How much a metric varies between training seeds and between evaluation seeds, and which differences are reliable.

Pure: imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev

from eval_runners.leaderboard.boards import make_boards
from eval_runners.leaderboard.ranking import Board
from eval_runners.leaderboard.rows import Column, Row
from eval_runners.store.read import Result, metric_value, provenance_of, weight_hash_of
from eval_runners.store.seeds import FEWEST_SEEDS, holm, least_reliable_difference, paired_p_value

HEADS = (
    "between SAEs",
    "training seeds",
    "evaluation seeds",
    "difference of two SAEs",
    f"reliable from, {FEWEST_SEEDS} seeds",
    "reliable from, 5 seeds",
    "pairs told apart",
)
EXPLANATION = (
    "Standard deviations: of the means of SAEs; over training seeds of one SAE; over evaluation seeds (other held-out "
    "contexts, other probe splits) of the same weights; over training seeds of the difference of two SAEs of the same "
    "seed. Each is pooled over SAEs, or pairs (root mean square). A difference of two means is reliable from the one "
    "on that a paired t-test at 5 % takes for real. Pairs told apart: by such tests, corrected for their number (Holm)."
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
    pairs: int
    told_apart: int
    """Pairs of SAEs that differ by a paired t-test with Holm's correction."""

    @property
    def cells(self) -> list[str]:
        """Texts of a row of the table, in the order of `HEADS`."""
        differences = [least_reliable_difference(self.difference, n) for n in (FEWEST_SEEDS, 5)]
        spreads = (self.between, self.training, self.evaluation, self.difference, *differences)
        return [*("-" if each is None else f"{each:.2g}" for each in spreads), f"{self.told_apart} of {self.pairs}"]


def measure_reliability(results: Sequence[Result]) -> Iterator[tuple[Board, list[Reliability]]]:
    """Measure every metric with a direction on every board that has results by several evaluation seeds.

    Args:
        results: of several SAEs, training seeds and evaluation seeds. SAEs of which none was evaluated by a further
            seed, untrained ones, and those of fewer than three training seeds, are left out.

    Yields:
        Boards with their metrics.
    """
    repeated: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if provenance_of(result).get("eval_seed"):
            repeated.setdefault((result["eval_type_id"], weight_hash_of(result) or ""), []).append(result)
    for board in make_boards(results):
        columns = [column for column in board.columns if column.metric.better != "neither"]
        measured = [_measure(board, column, repeated) for column in columns]
        if any(measured):
            yield board, [each for each in measured if each]


def _measure(board: Board, column: Column, repeated: dict[tuple[str, str], list[Result]]) -> Reliability | None:
    rows = [
        row
        for row in board.rows
        if row.results
        and not row.untrained
        and len(row.by_seed(column)) >= FEWEST_SEEDS
        and any((column.evaluation, digest) in repeated for digest in row.weight_hashes)
    ]
    seeds = sorted(set.intersection(*(set(row.by_seed(column)) for row in rows))) if rows else []
    if len(rows) < 2 or len(seeds) < FEWEST_SEEDS:
        return None
    values = [[row.by_seed(column)[seed] for seed in seeds] for row in rows]
    again = [spread for row in rows for spread in _evaluation_spreads(row, column, repeated)]
    pairs = [[a - b for a, b in zip(one, other, strict=True)] for one, other in combinations(values, 2)]
    return Reliability(
        column,
        [row.label for row in rows],
        len(seeds),
        between=stdev(map(fmean, values)),
        training=_root_mean_square([stdev(of_seeds) for of_seeds in values]),
        evaluation=_root_mean_square(again) if again else None,
        difference=_root_mean_square([stdev(differences) for differences in pairs]),
        pairs=len(pairs),
        told_apart=sum(holm([paired_p_value(differences) for differences in pairs])),
    )


def _evaluation_spreads(row: Row, column: Column, repeated: dict[tuple[str, str], list[Result]]) -> Iterator[float]:
    """Standard deviation over evaluation seeds of every SAE of the row that has several."""
    for result in row.results.get(column.evaluation, []):
        others = repeated.get((column.evaluation, weight_hash_of(result) or ""), [])
        values = [metric_value(column.metric, each) for each in (result, *others)]
        known = [value for value in values if value is not None]
        if len(known) > 1:
            yield stdev(known)


def _root_mean_square(values: Sequence[float]) -> float:
    return fmean(value**2 for value in values) ** 0.5


def reliability_markdown(results: Sequence[Result]) -> str:
    """A Markdown table for every board, and what its columns are."""
    lines: list[str] = []
    for board, metrics in measure_reliability(results):
        heads = ["metric", *HEADS]
        seeds = {each.n_seeds for each in metrics}
        labels = ", ".join(f"`{label}`" for label in dict.fromkeys(label for each in metrics for label in each.labels))
        lines += [f"{board.model}, {board.hook_name}, {'-'.join(map(str, sorted(seeds)))} seeds of {labels}.", ""]
        lines += [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
        lines += [f"| {' | '.join([each.column.metric.title, *each.cells])} |" for each in metrics]
        lines.append("")
    return "\n".join([*lines, EXPLANATION, ""]) if lines else ""
