"""Controls keep what they must not learn, however long and fast they train, and learn the rest."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from sae_lens.saes.sae import TrainStepInput

import sae_variants

D, S = 12, 24


@pytest.fixture
def trained(tmp_path, request):
    """A control at its start, and the same after 200 steps of a large learning rate, saved and loaded."""
    torch.manual_seed(0)
    sae = sae_variants.build(request.param, d_in=D, d_sae=S, k=4, seed=0)
    start = {name: value.detach().clone() for name, value in sae.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in sae.parameters() if p.requires_grad], lr=0.1)
    rows = torch.randn(5, D)
    batches = [torch.randn(64, 5).relu() @ rows for _ in range(200)]
    for number, x in enumerate(batches):
        output = sae.training_forward_pass(TrainStepInput(x, {}, None, n_training_steps=number, is_logging_step=False))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    sae.calibrate(batches[:8])
    sae.save_inference_model(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == "jumprelu"
    return start, sae_variants.load(tmp_path)


def row_cosines(start, saved):
    return F.cosine_similarity(start["W_dec"], saved.W_dec, dim=1)


@pytest.mark.parametrize("trained", ["frozen_decoder"], indirect=True)
def test_a_frozen_decoder_keeps_its_directions(trained):
    start, saved = trained
    torch.testing.assert_close(row_cosines(start, saved), torch.ones(S))
    assert F.cosine_similarity(start["W_enc"], saved.W_enc, dim=0).min() < 0.9


@pytest.mark.parametrize("trained", ["frozen_encoder"], indirect=True)
def test_a_frozen_encoder_keeps_its_directions(trained):
    start, saved = trained
    norm_S = start["W_enc"].norm(dim=0) / saved.W_enc.norm(dim=0)  # saving folds norms of decoder rows into the encoder
    torch.testing.assert_close(saved.W_enc * norm_S, start["W_enc"])
    assert row_cosines(start, saved).min() < 0.9


@pytest.mark.parametrize("trained", ["soft_frozen_decoder"], indirect=True)
def test_rows_of_a_soft_frozen_decoder_stay_in_their_cone(trained):
    cosines_S = row_cosines(*trained)
    assert cosines_S.min() >= 0.8 - 1e-5
    assert (cosines_S < 0.81).any()  # they would go further
