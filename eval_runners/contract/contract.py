"""What a module of this package defines to be an evaluation. The name of an evaluation is the name of its file.

    EvalConfig                        dataclass of its settings; the docstring under a field is the help
    METRICS                           the numbers it gives, in the order of the table
    output_class()                    the class of SAEBench's that its results validate with
    evaluate(sae, target, config, model=..., device=...)     -> Evaluation; or, where results need more than an SAE,
    MADE_BY                           the command that makes them

may define

    EVAL_TYPE                         what SAEBench calls its results, where that is not the name
    prepare(target, config)           -> the settings as they will be used, and versions of what else it reads;
                                      called before anything is trained, refuses what cannot be
    details(result)                   -> rows, as dicts, of the table that --details prints
    untrained(result)                 -> what in a result, of anyone's, says that the SAE is not trained
    words(result)                     -> lines to print under the table
    across(results)                   -> what the results of one command say together: lines, and files by their names,
                                      which are written to the folder of the evaluation's results
    refuses(plan, config)             -> why it is not for an SAE that would have to be trained for it, or ""
    snapshots(config)                 -> shares of the training, such as 0.5, after which it looks at an SAE, too

and may take `found=...` in evaluate, the `_saes.Found` of the SAE, for what lies beside its weights or how to train it.

One in this folder ends with a call of `_run.run`, so that `python -m eval_runners.NAME` runs it. `_run` does everything
else: it finds the SAEs, reuses finished results, writes files, prints the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["higher", "lower", "neither"]
USUAL_EVALUATIONS = ("core", "sparse_probing", "positional_consistency")
"""Evaluations that are run, and shown first, where nothing else is asked for."""
ARROWS: dict[str, str] = {"higher": "↑", "lower": "↓", "neither": ""}


@dataclass(frozen=True)
class Metric:
    name: str
    title: str
    better: Direction
    path: str
    """Where the number stands in the result file, keys joined by dots."""
    short: str = ""
    """Head of its column on the leaderboard; without one it stands in CSV, JSON and the command's own table only."""
    references: tuple[tuple[str, str], ...] = ()
    """(what, path): numbers of the same kind in the same result that no SAE has, such as the residual stream's."""
    curve: tuple[str, str, float] | None = None
    """(title, what x is, x): the curve whose point at x this number is, such as autocorrelation over the lag."""
    against_l0: bool = False
    """Whether more L0 is expected to buy it, so that its Pareto front over L0 is of interest."""


class Untrained(Exception):
    """An SAE of which there is no result at all, and why; the others of the call are evaluated all the same."""


@dataclass(frozen=True)
class Evaluation:
    output: dict[str, Any]
    """A whole result in SAEBench's envelope, as SAEBench's own code made it."""
    ours: dict[str, Any] = field(default_factory=dict)
    """What we add; stands under `eval_result_unstructured`, the place SAEBench leaves for it."""
    failures: list[str] = field(default_factory=list)
    """Reasons why this result cannot count as one of a trained SAE."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Arrays and pictures to lie beside the result, by the end of their name: `<hash>.autocorrelation.png`."""


def value_at(result: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, or None where a key is absent."""
    value: Any = result
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value
