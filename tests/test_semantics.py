"""Topics and kinds of tokens: what a token is, by hand; a planted latent is found; slow and fast apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import evaluate, identity, linear_sae

from eval_runners.contract.registry import load_evaluator
from eval_runners.data.documents import DocumentActivations
from eval_runners.data.labelled import register_task_file
from eval_runners.measures.semantic_tasks import probe_accuracy, token_kind_tasks
from eval_runners.measures.token_kinds import token_kinds
from eval_runners.semantics import Settings
from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import choose_target
from sae_variants.registry import build


@pytest.mark.parametrize(
    ("token", "kinds"),
    [
        (" the", ["word start"]), ("ing", []), (" The", ["capital", "word start"]), (" 42", ["digit"]), ("x7", ["digit"]),
        (",", ["punctuation"]), (" (", ["punctuation"]), ("\n", []), ("", []), ("A", ["capital"]),
    ],
)  # fmt: skip
def test_kinds_of_tokens(token, kinds):
    assert token_kinds(token) == kinds


def test_the_column_that_differs_most_is_probed():
    generator = np.random.default_rng(0)
    y = np.repeat([1, 0], 100)
    x = generator.normal(size=(200, 6))
    x[:, 4] += 5 * y
    assert probe_accuracy(x, y, x, y, 1) > 0.97
    assert probe_accuracy(np.delete(x, 4, 1), y, generator.normal(size=(200, 5)), y, 1) == pytest.approx(0.5, abs=0.1)


@pytest.fixture
def settings(tasks_file):
    datasets = (register_task_file(str(tasks_file)),)
    sizes = {"train_documents": 40, "test_documents": 20, "n_contexts": 8, "context_size": 32}
    return {"dataset_names": datasets, "prepare": True, **sizes}


def test_latents_that_are_the_topics_words_know_the_topic(model_folder, text_file, settings, model):
    target = choose_target("sandbox", str(model_folder), "blocks.0.hook_resid_pre", str(text_file))
    words = torch.tensor([model.tokenizer(f" {word}")["input_ids"][-1] for word in ("red", "rain", "walls")])
    directions = torch.linalg.pinv(model.W_E[words].detach())
    sae = linear_sae(target, directions, model.W_E[words].detach())
    others = torch.tensor([i for i in range(model.cfg.d_vocab) if i not in words])
    sae.b_enc.data = -(model.W_E[others] @ directions).max(0).values.detach()
    evaluation = evaluate("semantics", sae, target, model, **settings)
    found = evaluation.metrics
    assert found["all"]["topic_1"] == 1
    assert found["slow"]["topic_1"] is None
    assert evaluation.failures == []


def test_slow_and_fast_are_probed_apart(target, settings, model, monkeypatch):
    eye = torch.eye(32)
    sae = linear_sae(target, torch.cat([eye, torch.zeros(32, 32)], 1), torch.cat([eye, eye], 0))
    monkeypatch.setattr(build, "latent_groups", lambda sae: {"slow": slice(0, 32), "fast": slice(32, 64)})
    found = evaluate("semantics", sae, target, model, **settings).metrics
    assert found["slow"]["topic_20"] == found["all"]["topic_20"] != 0.5
    assert found["fast"]["topic_20"] == 0.5
    assert found["fast"]["token_20"] in (None, 0.5)


def test_datasets_of_the_hub_are_refused(target):
    with pytest.raises(UsageError, match="labelled text of this package only"):
        load_evaluator("semantics").prepare(target, Settings(dataset_names=("fancyzhx/ag_news",)))


def test_examples_of_a_kind_are_tokens_of_that_kind(model_folder, text_file, model):
    """At the embeddings an identity SAE gives each token's embedding back, so the tokens can be read off the latents."""
    target = choose_target("sandbox", str(model_folder), "blocks.0.hook_resid_pre", str(text_file))
    tasks = list(token_kind_tasks(identity(target), target, model, 1000, 32, tokens_per_kind=16, seed=0))
    assert "word start" in {task.label for task in tasks}
    for task in tasks:
        assert len(task.y_N) == 3 * len(task.test_y_M)
        for acts, labels in ((task.x_NS, task.y_N), (task.test_x_MS, task.test_y_M)):
            x = torch.from_numpy(acts[:, :32] - acts[:, 32:])
            tokens = torch.cdist(x, model.W_E.detach()).argmin(1).tolist()
            kinds = [token_kinds(model.tokenizer.decode([token])) for token in tokens]
            assert [task.label in of_token for of_token in kinds] == labels.astype(bool).tolist()


def test_documents_are_those_whose_means_are_taken(target, model, settings):
    documents = DocumentActivations(
        target,
        model,
        settings["dataset_names"][0],
        Settings(train_documents=40, test_documents=20, context_size=32),
        "cpu",
    )
    for part, means in enumerate(documents.means(lambda x: x)):
        rows = documents.documents(part)
        assert len(rows) == (20, 10)[part] * len(means)
        torch.testing.assert_close(torch.stack([x.mean(0) for x in rows]), torch.cat(list(means.values())))
