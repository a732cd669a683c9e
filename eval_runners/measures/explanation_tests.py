"""Does an explanation tell where a latent fires? Detection and fuzzing, for latents and for their controls.

The text is cut into excerpts of equal length. A judge explains a latent by excerpts of the first half of the text in
which it fires, with the tokens marked on which it does. Excerpts of the second half test the explanation. In detection
the judge says how sure it is that the latent fires somewhere in an excerpt; one half of the excerpts are such. In
fuzzing tokens are marked, and it says whether they are those on which the latent fires: in one half of the excerpts
they are; in the other, in which the latent does not fire, as many are marked at random.

Source: Paulo et al., arXiv 2410.13928; `delphi`, its code.
Shapes: C contexts, T tokens of a context without BOS, E excerpts, L tokens of an excerpt, P latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor

from sae_variants.common.console import progress

MEASURES = ("detection", "fuzzing")
SCORES = ("f1", "auprc", "balanced_accuracy")
SURE = 0.5
"""Rating from which a judge counts as saying yes."""
QUANTILES = 10
"""Parts of the excerpts, by the latent's activation, of which each gives as many."""


@dataclass(frozen=True)
class Excerpt:
    """A passage and marked tokens in it."""

    ids: list[int]
    """Token ids."""
    marked: list[bool]
    """Whether each token is marked."""


class Judge(Protocol):
    """Explains a latent, and tests an explanation."""

    def explain(self, examples: Sequence[Excerpt], place: int) -> str:
        """Explain a latent.

        Args:
            examples: excerpts with the tokens marked on which it fires.
            place: of the latent among those that are sampled.
        """
        ...

    def rate(self, explanation: str, excerpts: Sequence[Excerpt], measure: str) -> list[float | None]:
        """Say how sure it is that the latent fires in each excerpt, or on its marked tokens.

        Returns:
            For each excerpt a number from 0 to 1, or None where there is no answer.
        """
        ...


@dataclass(frozen=True)
class Questions:
    """What a judge is shown of one latent."""

    examples: list[Excerpt]
    """For the explanation."""
    tests: dict[str, list[Excerpt]]
    """For each measure."""
    truth: list[bool]
    """Answers to the tests, the same for both measures."""


def make_questions(
    ids_CT: Tensor,
    acts_CT: Tensor,
    special_CT: Tensor,
    length: int,
    n_examples: int,
    n_tests: int,
    generator: torch.Generator,
) -> Questions | None:
    """Choose the excerpts that explain a latent and those that test the explanation.

    Args:
        ids_CT: tokens without BOS.
        acts_CT: activations of the latent; 0 on special tokens.
        special_CT: mask of special tokens; excerpts with one are left out.
        length: tokens of an excerpt.
        n_examples: largest number of excerpts for the explanation.
        n_tests: excerpts of each answer.
        generator: draws them.

    Returns:
        The questions, or None where the latent fires, or does not fire, in too few excerpts.
    """
    ids_EL, acts_EL, special_EL = (_cut(values_CT, length) for values_CT in (ids_CT, acts_CT, special_CT))
    whole_E = ~special_EL.any(1)
    first_E = torch.arange(len(ids_EL)) < len(ids_CT) // 2 * (ids_CT.shape[1] // length)
    largest_E = acts_EL.max(1).values
    shown = _spread(largest_E, (whole_E & first_E & (largest_E > 0)), n_examples, generator)
    firing = _spread(largest_E, (whole_E & ~first_E & (largest_E > 0)), n_tests, generator)
    silent = (whole_E & ~first_E & (largest_E == 0)).nonzero()[:, 0]
    silent = silent[torch.randperm(len(silent), generator=generator)[:n_tests]]
    if not len(shown) or min(len(firing), len(silent)) < n_tests:
        return None
    marks = ceil(float((acts_EL[firing] > 0).sum(1).float().mean()))
    true, false = ([_excerpt(ids_EL[e], acts_EL[e] > 0) for e in chosen.tolist()] for chosen in (firing, silent))
    random = [_excerpt(ids_EL[e], _random_marks(length, marks, generator)) for e in silent.tolist()]
    return Questions(
        [_excerpt(ids_EL[e], acts_EL[e] > 0) for e in shown.tolist()],
        {"detection": [*true, *false], "fuzzing": [*true, *random]},
        [True] * len(true) + [False] * len(false),
    )


def make_all_questions(
    ids_CT: Tensor, acts_CTP: Tensor, special_CT: Tensor, *sizes_and_generator: Any
) -> list[tuple[int, Questions]]:
    """Make the questions on several latents; those that fire in too few excerpts, or in too many, are left out.

    Returns:
        The place of a latent, and its questions.
    """
    found = (
        (place, make_questions(ids_CT, acts_CTP[..., place], special_CT, *sizes_and_generator))
        for place in range(acts_CTP.shape[-1])
    )
    return [(place, questions) for place, questions in found if questions]


def _cut(values_CT: Tensor, length: int) -> Tensor:
    """Cut contexts into excerpts [E, L]; what is left at the end of a context is dropped."""
    whole = values_CT.shape[1] // length * length
    return values_CT[:, :whole].reshape(-1, length)


def _spread(largest_E: Tensor, allowed_E: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw excerpts from all parts of the range of activations alike."""
    candidates = allowed_E.nonzero()[:, 0]
    candidates = candidates[largest_E[candidates].argsort(descending=True, stable=True)]
    chosen: list[Tensor] = []
    for part in candidates.tensor_split(min(QUANTILES, n)):
        chosen.append(part[torch.randperm(len(part), generator=generator)])
    turns = [part[turn] for turn in range(max(map(len, chosen))) for part in chosen if turn < len(part)]
    return torch.stack(turns[:n]) if turns else candidates


def _random_marks(length: int, marks: int, generator: torch.Generator) -> Tensor:
    marked_L = torch.zeros(length, dtype=torch.bool)
    marked_L[torch.randperm(length, generator=generator)[:marks]] = True
    return marked_L


def _excerpt(ids_L: Tensor, marked_L: Tensor) -> Excerpt:
    return Excerpt(ids_L.tolist(), marked_L.tolist())


def judge_latents(
    judge: Judge, asked: Sequence[tuple[int, Questions]], latents: Sequence[int], group: str
) -> list[dict[str, Any]]:
    """Explain latents, and test the explanations.

    Args:
        judge: explains and rates.
        asked: place of a latent in `latents`, and its questions.
        latents: numbers of the latents.
        group: what they are, for the rows.

    Returns:
        `latent`, `group`, `explanation` and the scores of each.
    """
    rows: list[dict[str, Any]] = []
    for place, questions in progress(asked, f"explaining {group}"):
        explanation = judge.explain(questions.examples, place)
        scores = judge_explanation(judge, explanation, questions)
        rows.append({"latent": latents[place], "group": group, "explanation": explanation, **scores})
    return rows


def judge_shuffled(
    judge: Judge, asked: Sequence[tuple[int, Questions]], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Test the explanation of the next latent for each that `judge_latents` explained; none if there is only one."""
    if len(rows) < 2:
        return []
    others = [row["explanation"] for row in (*rows[1:], rows[0])]
    return [
        {
            "latent": row["latent"],
            "group": "shuffled",
            "explanation": other,
            **judge_explanation(judge, other, questions),
        }
        for row, other, (_, questions) in zip(rows, others, progress(asked, "with shuffled labels"), strict=True)
    ]


def judge_explanation(judge: Judge, explanation: str, questions: Questions) -> dict[str, float | None]:
    """Test an explanation.

    Returns:
        `detection_f1` and so on; None where the judge gave no answer to all questions of one kind.
    """
    found: dict[str, float | None] = {}
    for measure in MEASURES:
        ratings = judge.rate(explanation, questions.tests[measure], measure)
        found |= {f"{measure}_{name}": value for name, value in scores_of(ratings, questions.truth).items()}
    return found


def scores_of(ratings: Sequence[float | None], truth: Sequence[bool]) -> dict[str, float | None]:
    """F1, area under the precision-recall curve, and balanced accuracy of ratings.

    Balanced accuracy alone rewards explanations that are too general (arXiv 2506.05774).
    """
    from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score

    known = [(rating, answer) for rating, answer in zip(ratings, truth, strict=True) if rating is not None]
    if {answer for _, answer in known} != {True, False}:
        return dict.fromkeys(SCORES)
    says: list[bool] = [rating >= SURE for rating, _ in known]
    right = [answer for _, answer in known]
    return {
        "f1": float(f1_score(right, says, zero_division=0)),  # pyright: ignore[reportArgumentType]
        "auprc": float(average_precision_score(right, [rating for rating, _ in known])),
        "balanced_accuracy": float(balanced_accuracy_score(right, says)),
    }


def random_latents(projected_CTP: Tensor, special_CT: Tensor, like_CTP: Tensor) -> tuple[Tensor, Tensor]:
    """Turn projections onto random directions into activations of latents that fire as often as given ones.

    Args:
        projected_CTP: projections of the activations at the hook.
        special_CT: mask of special tokens, on which nothing fires.
        like_CTP: activations of the latents that they fire as often as.

    Returns:
        Activations [C, T, P]; the thresholds [P] above which they fire.
    """
    known_NP = projected_CTP[~special_CT].float()
    rates_P = (like_CTP[~special_CT] > 0).float().mean(0)
    thresholds_P = torch.stack([torch.quantile(known_NP[:, p], 1 - rate) for p, rate in enumerate(rates_P.tolist())])
    return (projected_CTP - thresholds_P).relu() * ~special_CT[..., None], thresholds_P
