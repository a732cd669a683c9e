"""Measure which layers of the sandbox model encode context: `python -m sae_variants.sandbox.measure`.

For each layer, a linear probe predicts the dataset of a held-out document from the residual stream at one random token.
The embedding depends on the token alone; accuracy that a layer adds comes from context. The accuracies are added to
`build.json`; the sandbox's hook was chosen by them.
"""

from __future__ import annotations

import collections
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from sae_variants.cli.options import Parser
from sae_variants.common.console import run_command
from sae_variants.common.files import check_file_writable, write_atomically
from sae_variants.language_model.folders import SANDBOX
from sae_variants.language_model.load import load_model
from sae_variants.sandbox import corpus
from sae_variants.sandbox.corpus import documents

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SOURCES, PER_SOURCE, TOKENS, FIRST_POSITION = 20, 200, 96, 8


def probed_documents(tokenizer: Any) -> list[tuple[str, list[int]]]:
    """Return (dataset, token ids) of `PER_SOURCE` held-out documents of each of the `SOURCES` largest datasets."""
    by_source: dict[str, list[list[int]]] = collections.defaultdict(list)
    for document in documents("heldout"):
        if len(document.text) > 40 and len(by_source[document.source]) < PER_SOURCE:
            ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
            if len(ids) > FIRST_POSITION + 2:
                by_source[document.source].append(ids[:TOKENS])
    full = sorted(by_source, key=lambda source: (-len(by_source[source]), source))[:SOURCES]
    return [(source, ids) for source in full for ids in by_source[source]]


def residuals(
    model: HookedTransformer, documents: list[tuple[str, list[int]]], hooks: list[str]
) -> dict[str, torch.Tensor]:
    """Return, for each hook, the activations [documents, d_in] at one random position of each document."""
    tokenizer: Any = model.tokenizer
    rng, bos = random.Random(0), tokenizer.bos_token_id
    rows: dict[str, list[torch.Tensor]] = {hook: [] for hook in hooks}
    for _, ids in tqdm(documents, desc="residuals"):
        tokens = torch.tensor([[bos, *ids]])
        position = rng.randrange(FIRST_POSITION, tokens.shape[1])
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens, names_filter=hooks)
        for hook in hooks:
            rows[hook].append(cache[hook][0, position])
    return {hook: torch.stack(parts) for hook, parts in rows.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the probes, print their accuracies and add them to `build.json`."""
    parser = Parser(
        prog="python -m sae_variants.sandbox.measure",
        description="Measure which layers of the sandbox model encode context.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(corpus.__file__).with_name("build.json"),
        help="JSON file that the accuracies are added to (default: the one in the package)",
    )
    path = parser.parse_args(argv).out
    check_file_writable(path, "--out")
    model = load_model(SANDBOX, "cpu", "float32")
    documents = probed_documents(model.tokenizer)
    hooks = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers))]
    activations = residuals(model, documents, hooks)
    sources = [source for source, _ in documents]
    order = list(range(len(documents)))
    random.Random(1).shuffle(order)
    train, test = order[len(order) // 4 :], order[: len(order) // 4]
    accuracies = {}
    for hook in hooks:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        x = activations[hook].numpy()
        probe.fit(x[train], [sources[i] for i in train])
        accuracies[hook] = round(float(probe.score(x[test], [sources[i] for i in test])), 4)
        print(f"{hook:30} {accuracies[hook]:.3f}")
    measurements = json.loads(path.read_text()) if path.exists() else {}
    measurements["dataset_of_one_token"] = {
        "datasets": len(set(sources)),
        "documents": len(documents),
        "chance": round(max(sources.count(s) for s in set(sources)) / len(sources), 4),
        "accuracy": accuracies,
    }
    write_atomically(path, json.dumps(measurements, indent=2) + "\n", "--out")
    return 0


if __name__ == "__main__":
    run_command(main)
