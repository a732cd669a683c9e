"""`datasets` before 4 cannot give tensors beside a torchvision without `VideoReader`; nothing of ours asks it to."""

from __future__ import annotations

import ast

import pytest
import torch
from conftest import evaluate, identity, tiny
from test_architecture import SOURCES
from test_evaluators import SMALL
from test_text import with_text

from sae_variants.training.plan import make_plan
from sae_variants.training.train import train_plans

ASKING = ("set_format", "with_format", "set_transform", "use_cached_activations", "cached_activations_path")
"""Names by which tensors are asked of `datasets`, or SAELens is told to read activations by it."""


@pytest.fixture
def rows_of_tokens(tmp_path, model_folder):
    """A target whose text is tokenised, which SAELens' store formats as tensors where it can."""
    generator = torch.Generator().manual_seed(0)
    rows = [[0, *torch.randint(1, 300, (39,), generator=generator).tolist()] for _ in range(400)]
    return with_text(tmp_path, model_folder, [{"tokens": row} for row in rows])


@pytest.fixture
def no_tensors(monkeypatch):
    """Refuses whatever is asked of `datasets` as tensors."""
    from datasets.formatting.torch_formatter import TorchFormatter

    def refuse(*_, **__):
        raise AssertionError("datasets was asked for tensors")

    monkeypatch.setattr(TorchFormatter, "__init__", refuse)


def test_datasets_cannot_give_tensors_beside_this_torchvision():
    from datasets import Dataset

    torchvision = pytest.importorskip("torchvision")
    data = Dataset.from_dict({"tokens": [[1, 2, 3]]}).with_format("torch")
    assert not hasattr(torchvision.io, "VideoReader")
    with pytest.raises(ImportError, match="cannot import name 'VideoReader'"):
        data[0]


def test_a_request_for_tensors_is_noticed(no_tensors):
    from datasets import Dataset

    with pytest.raises(AssertionError, match="asked for tensors"):
        Dataset.from_dict({"tokens": [[1, 2, 3]]}).with_format("torch")[0]


@pytest.mark.parametrize("name", ["core", "mdl"])
@pytest.mark.parametrize("text", ["target", "rows_of_tokens"])
def test_saelens_store_reads_text_and_tokens_without_tensors_of_datasets(name, text, no_tensors, request, model):
    target = request.getfixturevalue(text)
    evaluation = evaluate(name, identity(target), target, model, prepare=True, **SMALL[name] | {"context_size": 40})
    assert evaluation.failures == []


def test_saelens_asks_the_hub_for_the_tokenizer_of_tokens(model):
    from huggingface_hub.errors import LocalEntryNotFoundError
    from sae_lens.training.activations_store import validate_pretokenized_dataset_tokenizer

    with pytest.raises(LocalEntryNotFoundError):
        validate_pretokenized_dataset_tokenizer("local-0/heldout", model.tokenizer)


def test_training_reads_tokens_without_tensors_of_datasets(no_tensors, rows_of_tokens, tmp_path):
    plan = make_plan("topk", rows_of_tokens, tiny("topk"), tmp_path / "trained")
    train_plans([plan])
    assert plan.is_trained


def test_no_module_asks_datasets_for_tensors():
    asking = {
        f"{path.name}: {name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if (name := getattr(node, "attr", None) or (node.arg if isinstance(node, ast.keyword) else None)) in ASKING
    }
    assert not asking, "datasets before 4 cannot: cannot import name 'VideoReader'"
