"""Where in the sandbox model a token knows its document: `python -m sae_variants.sandbox.measure`.

For one random token of each held-out document: how often does a linear probe on its residual stream, layer by layer,
name the dataset that the document came from? The embedding knows the token alone; what a layer adds is context.
Adds the accuracies to `build.json`; the sandbox's hook was chosen by them.
"""

from __future__ import annotations

import collections
import json
import random
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from sae_variants.language_model.folders import SANDBOX
from sae_variants.language_model.load import load_model
from sae_variants.sandbox import corpus
from sae_variants.sandbox.corpus import documents

SOURCES, PER_SOURCE, TOKENS, FIRST_POSITION = 20, 200, 96, 8


def probed_documents(tokenizer) -> list[tuple[str, list[int]]]:
    """(dataset, token ids) of `PER_SOURCE` held-out documents of each of the `SOURCES` datasets with most of them."""
    by_source: dict[str, list[list[int]]] = collections.defaultdict(list)
    for document in documents("heldout"):
        if len(document.text) > 40 and len(by_source[document.source]) < PER_SOURCE:
            ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
            if len(ids) > FIRST_POSITION + 2:
                by_source[document.source].append(ids[:TOKENS])
    full = sorted(by_source, key=lambda source: (-len(by_source[source]), source))[:SOURCES]
    return [(source, ids) for source in full for ids in by_source[source]]


def residuals(model, documents: list[tuple[str, list[int]]], hooks: list[str]) -> dict[str, torch.Tensor]:
    """[documents, d_in] per hook: the residual at one random position of each document."""
    rng = random.Random(0)
    rows: dict[str, list[torch.Tensor]] = {hook: [] for hook in hooks}
    for _, ids in tqdm(documents, desc="residuals"):
        tokens = torch.tensor([[model.tokenizer.bos_token_id, *ids]])
        position = rng.randrange(FIRST_POSITION, tokens.shape[1])
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens, names_filter=hooks)
        for hook in hooks:
            rows[hook].append(cache[hook][0, position])
    return {hook: torch.stack(found) for hook, found in rows.items()}


def main() -> None:
    model = load_model(SANDBOX, "cpu", "float32")
    documents = probed_documents(model.tokenizer)
    hooks = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers))]
    found = residuals(model, documents, hooks)
    sources = [source for source, _ in documents]
    order = list(range(len(documents)))
    random.Random(1).shuffle(order)
    train, test = order[len(order) // 4 :], order[: len(order) // 4]
    accuracies = {}
    for hook in hooks:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        x = found[hook].numpy()
        probe.fit(x[train], [sources[i] for i in train])
        accuracies[hook] = round(float(probe.score(x[test], [sources[i] for i in test])), 4)
        print(f"{hook:30} {accuracies[hook]:.3f}")
    path = Path(corpus.__file__).with_name("build.json")
    stated = json.loads(path.read_text())
    stated["dataset_of_one_token"] = {
        "datasets": len(set(sources)),
        "documents": len(documents),
        "chance": round(max(sources.count(s) for s in set(sources)) / len(sources), 4),
        "accuracy": accuracies,
    }
    path.write_text(json.dumps(stated, indent=2) + "\n")


if __name__ == "__main__":
    main()
