"""SAEs in the layouts of other libraries against those libraries' own forward passes, where they are installed.

pip install -e '.[benchmark]'
"""

from __future__ import annotations

import importlib
import warnings

import layouts
import pytest
import torch
from layouts import D

import sae_variants

INPUTS = torch.randn(50, D, generator=torch.Generator().manual_seed(3))
MODULES = {
    "AutoEncoder": "dictionary",
    "AutoEncoderNew": "dictionary",
    "GatedAutoEncoder": "dictionary",
    "JumpReluAutoEncoder": "dictionary",
    "AutoEncoderTopK": "trainers.top_k",
    "BatchTopKSAE": "trainers.batch_top_k",
    "MatryoshkaBatchTopKSAE": "trainers.matryoshka_batch_top_k",
}
"""Class of dictionary_learning -> its module."""


def peer(name: str):
    """A module of another library; the test is skipped where the library is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name.partition(".")[0], exc_type=ImportError)
        return importlib.import_module(name)


def assert_equal(folder, theirs) -> None:
    with torch.no_grad():
        torch.testing.assert_close(sae_variants.load(folder)(INPUTS), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_dictionary_learning(tmp_path, name):
    cls = getattr(peer(f"dictionary_learning.{MODULES[name]}"), name)
    layouts.dictionary_learning(tmp_path / "x", name)
    loaded = cls.from_pretrained(str(tmp_path / "x" / "ae.pt"))
    with torch.no_grad():
        assert_equal(tmp_path / "x", loaded(INPUTS))


@pytest.mark.parametrize("cfg", [{}, {"normalize_decoder": False}], ids=str)
def test_sparsify(tmp_path, cfg, monkeypatch):
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")
    sparse_coder = peer("sparsify").SparseCoder
    layouts.sparsify(tmp_path / "layers.5", **cfg)
    loaded = sparse_coder.load_from_disk(tmp_path / "layers.5", device="cpu")
    with torch.no_grad():
        assert_equal(tmp_path / "layers.5", loaded(INPUTS).sae_out)
