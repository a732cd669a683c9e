"""PCA as an SAE: the components, their explained variance, what is saved."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny
from sae_lens.saes.sae import TrainStepInput
from sklearn.decomposition import PCA

import sae_variants
from sae_variants.common.errors import UsageError
from sae_variants.training.plan import make_plan
from sae_variants.training.train import train_plans


def rows(n: int = 400) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(n, 6) * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.5]) @ torch.linalg.qr(torch.randn(6, 6)).Q + 3


def test_it_is_scikit_learn_s_pca(tmp_path):
    x = rows()
    sae = sae_variants.build("pca", d_in=6, d_sae=20, k=2)
    for part in x.split(100):
        sae.training_forward_pass(TrainStepInput(part, {}, None, 0, False))
    sae.save_inference_model(tmp_path)
    loaded = sae_variants.load(tmp_path)
    assert loaded.cfg.architecture() == "standard"
    fitted = PCA(2).fit(x.numpy())
    expected = torch.tensor(fitted.inverse_transform(fitted.transform(x.numpy())))
    torch.testing.assert_close(loaded(x).detach(), expected, rtol=1e-4, atol=1e-4)
    assert ((loaded.encode(x) > 0).sum(-1) == 2).all()


def test_through_the_stream_the_input_scale_is_folded(target, tmp_path):
    made = make_plan("pca", target, tiny("pca") | {"k": 16}, tmp_path)
    train_plans([made])
    sae = sae_variants.load(made.folder)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(64))
    assert sae.b_dec.norm() > 0
    assert sae.cfg.metadata.training_tokens > 0


def test_more_components_than_there_are_latents_for():
    with pytest.raises(UsageError, match="k = 11 components need 22 latents, d_sae is 20"):
        sae_variants.build("pca", d_in=6, d_sae=20, k=11)
