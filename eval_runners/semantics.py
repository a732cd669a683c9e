"""semantics: do slow latents know what a document is about, and fast ones which token it is?

Topic: documents of labelled datasets, each class told from the others by a logistic probe on the k latents, of one
group, whose mean over a document's tokens differs most. Token: tokens of held-out text, each kind told from the other
tokens by a probe on the k latents that differ most at that token; and tokens of documents of code told from those of
the other documents. Accuracies on balanced test sets, mean over classes.
Groups are all latents and, where the SAE says which are which, slow and fast ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from eval_runners.contract.contract import Direction, Evaluation, Metric
from sae_variants.common.errors import UsageError

NAME = "semantics"
GROUPS = ("all", "slow", "fast")
KS = (1, 5, 20)
FEWEST = 8
"""Tokens on each side from which a kind is probed."""
KINDS = ("digit", "punctuation", "capital", "word start")


@dataclass(frozen=True)
class EvalConfig:
    dataset_names: tuple[str, ...] = ("sandbox/ag_news", "sandbox/it_ticket", "sandbox/occupation", "sandbox/term_set1")
    """Labelled datasets, parted by commas."""
    code: str = "sandbox/code"
    """Labelled dataset whose tokens are inside code."""
    train_documents: int = 200
    """Documents that a topic probe is fitted on, half of them of its class."""
    test_documents: int = 100
    """Documents that it is tested on, half of them of its class."""
    n_contexts: int = 128
    """Held-out contexts whose tokens are classed."""
    context_size: int = 128
    """Tokens of a document, or context, that are read."""
    tokens_per_kind: int = 2000
    """Tokens on each side of a token probe, at most; a quarter of them tests it."""
    seed: int = 0
    """Seed of the choice of documents and tokens."""


_NAMES: tuple[tuple[str, str, Direction], ...] = tuple(
    (f"{what}_{k}", f"{what} accuracy, k = {k}", "higher") for what in ("topic", "token") for k in KS
)
METRICS = tuple(
    Metric(
        f"{group}.{name}",
        f"{group}: {title}",
        better,
        f"eval_result_metrics.{group}.{name}",
        short=f"{group}: {name.replace('_', ', k = ')}" if group != "all" else "",
    )
    for group in GROUPS
    for name, title, better in _NAMES
)


def output_class() -> type:
    from eval_runners.store.envelope import make_output_class

    return make_output_class(NAME, EvalConfig, GROUPS, tuple(name for name, _, _ in _NAMES))


def prepare(target: Any, config: EvalConfig) -> tuple[EvalConfig, dict[str, str]]:
    """The settings, and the versions of the labelled documents. UsageError for datasets that are not to be had here."""
    from eval_runners.data.documents import document_versions

    if config.tokens_per_kind < FEWEST:
        raise UsageError(f"--tokens-per-kind must be at least {FEWEST}, not {config.tokens_per_kind}")
    return config, document_versions(NAME, (*config.dataset_names, config.code), config)


def kinds_of(token: str) -> list[str]:
    """Which of `KINDS` a token's text is."""
    text = token.strip()
    found = {
        "digit": any(letter.isdigit() for letter in text),
        "punctuation": bool(text) and not any(letter.isalnum() for letter in text),
        "capital": text[:1].isupper(),
        "word start": token[:1].isspace() and text[:1].isalpha(),
    }
    return [kind for kind in KINDS if found[kind]]


def accuracy(x_ND: Any, y_N: Any, test_x_MD: Any, test_y_M: Any, k: int) -> float:
    """Test accuracy of a logistic probe on the k columns whose means differ most between the two sides."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    difference = np.abs(x_ND[y_N == 1].mean(0) - x_ND[y_N == 0].mean(0))
    columns = np.argsort(-difference, kind="stable")[:k]
    probe = LogisticRegression(max_iter=1000).fit(x_ND[:, columns], y_N)
    return float(probe.score(test_x_MD[:, columns], test_y_M))


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str) -> Evaluation:
    """Accuracy per group and k, and per class as details."""
    from eval_runners.measures.checks import require_finite_weights, why_at_chance
    from eval_runners.store.envelope import make_output
    from sae_variants.registry.build import latent_groups

    require_finite_weights(sae)

    groups = {"all": slice(None), **latent_groups(sae)}
    rows: list[dict[str, Any]] = []
    for what, name, label, sets in (
        *_topics(sae, target, config, model),
        *_tokens(sae, target, config, model),
        _code(sae, target, config, model),
    ):
        x, y, test_x, test_y = sets
        row: dict[str, Any] = {"what": what, "dataset": name, "class": label}
        for group, part in groups.items():
            row |= {f"{group} {k}": accuracy(x[:, part], y, test_x[:, part], test_y, k) for k in KS}
        rows.append(row)
    values: dict[str, dict[str, Any]] = {group: dict.fromkeys((n for n, _, _ in _NAMES)) for group in GROUPS}
    for group in groups:
        for what in ("topic", "token"):
            for k in KS:
                found = [row[f"{group} {k}"] for row in rows if row["what"] == what]
                values[group][f"{what}_{k}"] = fmean(found) if found else None
    known = [v for v in values["all"].values() if v is not None]
    failures = why_at_chance(known)
    return Evaluation(make_output(NAME, config, values, sae, target), {"by_class": rows}, failures)


Sets = tuple[Any, Any, Any, Any]


def _topics(sae: Any, target: Any, config: EvalConfig, model: Any) -> Iterator[tuple[str, str, str, Sets]]:
    import numpy as np

    from eval_runners.data.documents import OPTION
    from eval_runners.data.labelled import split_dataset
    from sae_variants.common.console import progress

    generator = np.random.default_rng(config.seed)
    for name in progress(config.dataset_names, "topics"):
        split = split_dataset(name, config.train_documents, config.test_documents, config.seed, OPTION)
        train, test = (
            {label: _document_means(sae, target, config, model, texts) for label, texts in part.items()}
            for part in split
        )
        for label in train:
            sides = []
            for part in (train, test):
                others = np.concatenate([means for other, means in part.items() if other != label])
                chosen = generator.permutation(len(others))[: len(part[label])]
                sides += [np.concatenate([part[label], others[chosen]]), np.repeat([1, 0], len(part[label]))]
            yield "topic", name, label, (sides[0], sides[1], sides[2], sides[3])


def _document_means(sae: Any, target: Any, config: EvalConfig, model: Any, texts: list[str]) -> Any:
    """Latents [documents, S], mean over a document's own tokens."""
    import numpy as np

    found = []
    for latents, own in _encoded(sae, target, config, model, texts):
        found.append((latents * own[..., None]).sum(1) / own.sum(1).clamp(min=1)[:, None])
    return np.concatenate([means.cpu().numpy() for means in found])


def _encoded(sae: Any, target: Any, config: EvalConfig, model: Any, texts: list[str]) -> Iterator[tuple[Any, Any]]:
    """(latents [documents, T, S], mask [documents, T] of a document's own tokens), some documents at a time."""
    import torch

    from eval_runners.data.heldout import special_mask
    from sae_variants.language_model.hooks import hook_activations

    activations = hook_activations(model, target.hook_name)
    for start in range(0, len(texts), 32):
        tokens = model.tokenizer(
            texts[start : start + 32], padding="max_length", truncation=True, max_length=config.context_size,
            return_tensors="pt",
        )["input_ids"]  # fmt: skip
        with torch.no_grad():
            x = activations(tokens)
            yield sae.encode(x).float(), (~special_mask(tokens, model)).to(x.device)


def _code(sae: Any, target: Any, config: EvalConfig, model: Any) -> tuple[str, str, str, Sets]:
    """Tokens of documents of code, and of the topics' documents; other documents test than those it is fitted on."""
    import numpy as np

    from eval_runners.data.documents import OPTION
    from eval_runners.data.labelled import split_dataset

    def split(name: str) -> list[list[str]]:
        parts = split_dataset(name, config.train_documents, config.test_documents, config.seed, OPTION)
        return [[text for texts in part.values() for text in texts] for part in parts]

    generator = np.random.default_rng(config.seed)
    others = [split(name) for name in config.dataset_names]
    sides = (split(config.code), [[text for other in others for text in other[part]] for part in (0, 1)])
    sets = []
    for part, documents, tokens in (
        (0, config.train_documents // 2, config.tokens_per_kind * 3 // 4),
        (1, config.test_documents // 2, config.tokens_per_kind // 4),
    ):
        rows = []
        for texts in sides:
            chosen = [texts[part][i] for i in generator.permutation(len(texts[part]))[:documents]]
            found = [latents[own].cpu().numpy() for latents, own in _encoded(sae, target, config, model, chosen)]
            every = np.concatenate(found)
            rows.append(every[generator.permutation(len(every))[:tokens]])
        least = min(map(len, rows))
        sets += [np.concatenate([side[:least] for side in rows]), np.repeat([1, 0], least)]
    return "token", config.code, "inside code", (sets[0], sets[1], sets[2], sets[3])


def _tokens(sae: Any, target: Any, config: EvalConfig, model: Any) -> Iterator[tuple[str, str, str, Sets]]:
    import numpy as np
    import torch

    from eval_runners.data.heldout import heldout_tokens, special_mask
    from sae_variants.common.console import progress
    from sae_variants.language_model.hooks import hook_activations

    activations = hook_activations(model, target.hook_name)
    ids = heldout_tokens(target, model, config.n_contexts, config.context_size)
    own = ~special_mask(ids, model)
    flat = ids[own]
    text_of = {token: model.tokenizer.decode([token]) for token in flat.unique().tolist()}
    kinds = [kinds_of(text_of[token]) for token in flat.tolist()]
    generator = np.random.default_rng(config.seed)
    wanted: dict[str, Any] = {}
    for kind in KINDS:
        is_kind = np.array([kind in found for found in kinds])
        half = min(config.tokens_per_kind, is_kind.sum(), (~is_kind).sum())
        if half < FEWEST:
            continue  # the text has none of that kind, or nothing else
        sides = [generator.permutation(np.flatnonzero(mask))[:half] for mask in (is_kind, ~is_kind)]
        wanted[kind] = sides
    if not wanted:
        return
    needed = np.unique(np.concatenate([side for sides in wanted.values() for side in sides]))
    latents = []
    with torch.no_grad():
        first = 0
        for part, keep in progress(list(zip(ids.split(16), own.split(16), strict=True)), "tokens"):
            rows = needed[(needed >= first) & (needed < first + int(keep.sum()))] - first
            first += int(keep.sum())
            latents.append(
                sae.encode(activations(part)[keep.to(model.cfg.device)][torch.from_numpy(rows)]).float().cpu()
            )
    found = torch.cat(latents).numpy()
    place = {int(token): row for row, token in enumerate(needed)}
    for kind, sides in wanted.items():
        parts = []
        for train in (True, False):
            cuts = [side[: len(side) * 3 // 4] if train else side[len(side) * 3 // 4 :] for side in sides]
            parts += [
                found[[place[int(i)] for cut in cuts for i in cut]],
                np.repeat([1, 0], [len(cut) for cut in cuts]),
            ]
        yield "token", "heldout", kind, (parts[0], parts[1], parts[2], parts[3])


def details(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per class."""
    yield from result["eval_result_unstructured"]["by_class"]


if __name__ == "__main__":
    from pathlib import Path

    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
