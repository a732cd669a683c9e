"""Evaluators: settings, metrics, one method that scores an SAE, and optional methods with defaults.

A module directly in `eval_runners/`, or one that another package names in the entry-point group `eval_runners`, holds
one subclass of `Evaluator`. The evaluator's name is the name of that file and is typed nowhere else; the first line of
the file's docstring is its line in `python -m eval_runners list`. Everything else is done for it: finding and training
SAEs, reusing finished results, SAEBench's envelope, files, tables, the leaderboard, `--help`.

A module directly in `eval_runners/` ends with

    if __name__ == "__main__":
        from eval_runners.commands.evaluate import run_evaluator

        run_evaluator(__file__)

so that `python -m eval_runners.NAME` runs it. `python -m eval_runners NAME` runs every evaluator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer

    from eval_runners.contract.located import LocatedSAE
    from sae_variants.language_model.target import Target
    from sae_variants.synthetic.model import SyntheticData
    from sae_variants.training.plan import Plan

Direction = Literal["higher", "lower", "neither"]
Trust = Literal["", "trusted", "with care", "not for ranking"]
Result = dict[str, Any]
"""A result file: SAEBench's envelope with ours under `eval_result_unstructured`."""
SettingsT = TypeVar("SettingsT")
RESULT_METRICS, UNSTRUCTURED = "eval_result_metrics", "eval_result_unstructured"


class Curve(NamedTuple):
    """The curve whose point at `x` a metric is, such as autocorrelation over the lag."""

    title: str
    axis: str
    x: float


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation, declared once: paths in files, columns, tables and output classes follow from it."""

    category: str
    name: str
    title: str
    better: Direction
    short: str = ""
    """Head of its column on the leaderboard. Empty: only in CSV, JSON and the command's own table."""
    column: str = ""
    """Name of its column in CSV and JSON files, after the evaluation's; the metric's name by default."""
    references: tuple[tuple[str, str], ...] = ()
    """(title, `category.name`) of values of the same kind that no SAE has, such as the residual stream's."""
    curve: Curve | None = None
    trust: Trust = ""
    """How far a difference in it says that an SAE is better, where that was studied; empty where it was not."""
    why_trust: str = ""
    """Reason for `trust`, in a line that names its source."""
    against_l0: bool = False
    """Whether a larger L0 is expected to improve it, so that its Pareto front over L0 is of interest."""
    section: str = RESULT_METRICS
    """Part of the result file that holds it: SAEBench's metrics, or `UNSTRUCTURED` where SAEBench has no field."""

    @property
    def head(self) -> str:
        """Text above its column, without the arrow."""
        return self.short or self.title

    @property
    def id(self) -> str:
        """`category.name`, the key of its value in `Evaluation.values`."""
        return f"{self.category}.{self.name}" if self.category else self.name

    @property
    def key(self) -> str:
        """Name of its column, without the evaluation's."""
        return self.column or self.name

    @property
    def path(self) -> str:
        """Keys, joined by dots, that lead to its value in a result file."""
        return f"{self.section}.{self.id}"

    def reference_path(self, reference_id: str) -> str:
        """Return how tables name a value that `references` names."""
        return f"{self.section}.{reference_id}"


class Untrained(Exception):
    """An SAE for which there can be no result, and why. The other SAEs of the command are evaluated all the same."""


class CannotDo(UsageError):
    """The target's language model cannot do an evaluation's task, whatever the SAE: none is scored."""


@dataclass(frozen=True)
class Evaluation:
    """The findings of `Evaluator.evaluate` about one SAE."""

    values: Mapping[str, float | None] = field(default_factory=dict)
    """`Metric.id` -> number. None, NaN and infinity are stored as null."""
    unstructured: Mapping[str, Any] = field(default_factory=dict)
    """Rows, texts and settings stored beside the numbers, under `eval_result_unstructured`."""
    failures: Sequence[str] = ()
    """Reasons to treat the SAE as untrained."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Arrays and pictures stored beside the result, by the end of their name: `<hash>.trace.png`."""
    host_output: Result | None = None
    """The whole result as SAEBench's own code wrote it, where SAEBench computed the numbers."""


@dataclass(frozen=True)
class Context:
    """Further arguments of `Evaluator.evaluate`, beside the SAE, the target and the settings."""

    model: HookedTransformer
    """The target's language model, loaded on `device` in the target's data type."""
    device: str
    located: LocatedSAE | None = None
    """Where the SAE lies and how it was trained; None for an SAE that exists in memory only."""
    truth: SyntheticData | None = None
    """The synthetic model of a synthetic target, which has no language model."""
    following: Sequence[LocatedSAE] = ()
    """SAEs that this process evaluates next with the same settings; none in a worker, unless `uses_following`."""


class Evaluator(Generic[SettingsT]):
    """One evaluation. Subclasses set `settings_class` and `metrics`, and define `evaluate`."""

    settings_class: ClassVar[type[Any]]
    """A frozen dataclass. Each field has a default and a docstring, which is the help of its option.

    An int is at least 1, or at least 0 if its name ends with "seed". A field `context_size` is compared, before
    anything is trained, with the contexts of the model and of the held-out text.
    """
    metrics: ClassVar[tuple[Metric, ...]]
    """In the order of the command's table."""
    version: ClassVar[int] = 1
    """Raised when a number comes to mean something else: results of other versions are made anew, on other boards."""
    eval_type: ClassVar[str] = ""
    """SAEBench's name for these results, where that is not the evaluator's name."""
    made_by: ClassVar[str] = ""
    """The command that makes the results, where they need more than an SAE. Then `evaluate` is never called."""
    needs_truth: ClassVar[bool | None] = False
    """Whether it scores SAEs on synthetic targets, whose features are known, instead of on language models; None: on
    either."""
    uses_following: ClassVar[bool] = False
    """Whether evaluating an SAE computes something for those in `Context.following`, too: then a worker of a launch
    takes several SAEs at once."""
    default_target: ClassVar[str] = ""
    """Target of its command where none is given; empty for the target of every command."""
    detail: ClassVar[str] = ""
    """The kind of thing that one of `detail_rows` describes, such as "task". Empty: there is no `--details`."""

    @property
    def name(self) -> str:
        """The name of the evaluator's file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def result_type(self) -> str:
        """`eval_type_id` of its results."""
        return self.eval_type or self.name

    def evaluate(
        self, sae: SAE[Any], target: Target, settings: SettingsT, context: Context
    ) -> Evaluation | Mapping[str, float | None]:
        """Score one SAE. The same SAE, target, settings and seed give the same numbers.

        Args:
            sae: In inference form, with decoder rows of unit norm, on the context's device.
            target: The language model, hook and text.
            settings: As `prepare` returned them.
            context: The loaded language model, the device, and where the SAE lies.

        Returns:
            The evaluation, or its `values` alone.

        Raises:
            UsageError: the SAE or the settings do not fit; one line that names the option to change.
            CannotDo: the language model cannot do the task.
            Untrained: there can be no result.
        """
        raise NotImplementedError

    def prepare(self, target: Target, settings: SettingsT) -> tuple[SettingsT, dict[str, str]]:
        """Complete the settings before anything is trained.

        Returns:
            The settings as they will be used; versions, by name, of what is read beside the target's text.

        Raises:
            UsageError: settings that cannot work.
        """
        return settings, {}

    def why_unsupported(self, plan: Plan, settings: SettingsT) -> str:
        """Reason not to train an SAE for this evaluation, or "". Called before anything is trained."""
        return ""

    def snapshot_shares(self, settings: SettingsT) -> tuple[float, ...]:
        """Shares of the training, such as 0.5, after which the evaluation needs a snapshot of the SAE."""
        return ()

    def host_output_class(self) -> type | None:
        """SAEBench's own class of these results. None: the class follows from `metrics`."""
        return None

    def untrained_reasons(self, result: Result) -> list[str]:
        """Reasons, readable from any result file, to treat the SAE as untrained."""
        return []

    def summary_lines(self, result: Result) -> list[str]:
        """Lines to print below the table for one result."""
        return []

    def summarize_all(self, results: Sequence[Result]) -> tuple[list[str], dict[str, bytes]]:
        """Return findings that need all results of one command.

        Returns:
            Lines to print; files by name, written to the folder of the evaluation's results.
        """
        return [], {}

    def detail_rows(self, result: Result) -> Iterable[dict[str, Any]]:
        """Rows of the table that `--details` prints, all with the same columns."""
        return []


def value_at(result: Result, path: str) -> Any:
    """The value at a dotted path, or None where a key is absent."""
    value: Any = result
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value
