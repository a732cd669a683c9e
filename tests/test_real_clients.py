"""Clients of others on SAEs that this package saved.

SAELens' model with the SAE spliced in, ablation, steering, and SAELens' evaluations. SAEDashboard needs other versions of
transformers and TransformerLens, so its test makes an environment for it, of 7 GB, and removes it.
SAE_DASHBOARD_PYTHON=/path/to/python names one that is there already; it is kept.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import tiny
from test_variants import BASELINES, OURS

import sae_variants
from eval_runners.__main__ import main
from eval_runners.data.heldout import heldout_tokens, special_mask
from sae_variants.language_model.folders import SANDBOX, model_folder
from sae_variants.language_model.load import load_model
from sae_variants.language_model.target import load_target
from sae_variants.registry.variants import find_variant
from sae_variants.training.plan import make_plan
from sae_variants.training.train import train_plans

NAMES = [*OURS, *BASELINES]
HOOK = "blocks.1.hook_resid_post"
"""Of the target."""


@pytest.fixture(scope="module")
def client(model):
    """A `HookedSAETransformer` with the weights of the tiny language model."""
    from sae_lens import HookedSAETransformer

    client = HookedSAETransformer(model.cfg, tokenizer=model.tokenizer)
    client.load_state_dict(model.state_dict())
    return client


@pytest.fixture(scope="module")
def tokens(client):
    text = "the cat sat on a mat while seven red birds sang of rain and the river ran past old stone walls"
    return client.to_tokens(text, prepend_bos=True)


@pytest.fixture(scope="module")
def folders(target, tmp_path_factory):
    """A folder of a trained SAE for each variant, all trained on one stream of activations."""
    plans = [make_plan(name, target, tiny(name), tmp_path_factory.mktemp("clients")) for name in NAMES]
    train_plans(plans)
    return {name: plan.sae_folder for name, plan in zip(NAMES, plans, strict=True)}


@pytest.fixture(params=NAMES)
def sae(request, folders):
    assert find_variant(request.param)
    return sae_variants.load(folders[request.param])


def strongest(client, sae, tokens) -> tuple[int, int]:
    """A latent that fires on a token, and that token's position: the largest activation after BOS."""
    _, cache = client.run_with_cache_with_saes(tokens, saes=[sae])
    acts = cache[f"{HOOK}.hook_sae_acts_post"][0, 1:]
    position, latent = divmod(int(acts.argmax()), acts.shape[1])
    assert acts[position, latent] > 0
    return latent, position + 1


def ablate(latent: int):
    def hook(acts, hook):
        acts[..., latent] = 0
        return acts

    return f"{HOOK}.hook_sae_acts_post", hook


@torch.no_grad()
def test_the_model_runs_on_the_reconstruction_and_on_itself_with_the_error_term(client, sae, tokens):
    plain, cache = client.run_with_cache(tokens)
    x = cache[HOOK]
    spliced = client.run_with_saes(tokens, saes=[sae])
    by_hand = client.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda value, hook: sae.decode(sae.encode(value)))])
    torch.testing.assert_close(spliced, by_hand)
    assert (spliced - plain).abs().max() > 1e-3
    whole = client.run_with_saes(tokens, saes=[sae], use_error_term=True)
    torch.testing.assert_close(whole, plain, rtol=1e-4, atol=1e-4)
    _, cache = client.run_with_cache_with_saes(tokens, saes=[sae], use_error_term=True)
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_acts_post"], sae.encode(x))
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_error"], x - sae(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_output"], x, rtol=1e-4, atol=1e-5)
    assert not client.acts_to_saes, "the SAE is taken out again"
    torch.testing.assert_close(client(tokens), plain)


@torch.no_grad()
def test_an_sae_that_has_its_own_error_term_gives_its_input_back(client, sae, tokens):
    x = client.run_with_cache(tokens)[1][HOOK]
    plain = sae(x)
    assert (plain - x).abs().max() > 1e-3
    with pytest.warns(DeprecationWarning, match="use_error_term directly"):
        sae.use_error_term = True
    torch.testing.assert_close(sae(x), x, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("use_error_term", [False, True])
def test_ablating_a_latent_takes_its_row_out_of_the_hook_and_changes_the_logits(client, sae, tokens, use_error_term):
    latent, position = strongest(client, sae, tokens)
    states = {}
    for name, hooks in (("with", []), ("without", [ablate(latent)])):
        with client.saes(saes=[sae], use_error_term=use_error_term):
            keep = (f"{HOOK}.hook_sae_output", lambda value, hook, name=name: states.update({name: value.clone()}))
            states[f"{name} logits"] = client.run_with_hooks(tokens, fwd_hooks=[*hooks, keep])
    act = sae.encode(client.run_with_cache(tokens)[1][HOOK])[0, position, latent]
    removed = (states["with"] - states["without"])[0, position]
    torch.testing.assert_close(removed, act * sae.W_dec[latent], rtol=1e-3, atol=1e-4)
    changed = (states["with logits"] - states["without logits"])[0]
    assert changed[position].abs().max() > 1e-4
    fires = sae.encode(client.run_with_cache(tokens)[1][HOOK])[0, :, latent] > 0
    first = int(fires.nonzero()[0])
    assert changed[:first].abs().max() < 1e-4 if first else True, "earlier tokens see nothing of it"


@torch.no_grad()
def test_steering_by_a_decoder_row_is_raising_its_latent(client, sae, tokens):
    latent, _ = strongest(client, sae, tokens)
    row, strength = sae.W_dec[latent], 5.0
    plain = client(tokens)
    steered = client.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda value, hook: value + strength * row)])

    def raise_latent(acts, hook):
        acts[..., latent] += strength
        return acts

    with client.saes(saes=[sae], use_error_term=True):
        raised = client.run_with_hooks(tokens, fwd_hooks=[(f"{HOOK}.hook_sae_acts_post", raise_latent)])
    torch.testing.assert_close(raised, steered, rtol=1e-3, atol=1e-3)
    assert (steered - plain).abs().max() > 1e-3


@torch.no_grad()
def test_special_tokens_are_left_alone(client, sae, tokens):
    with client.saes(saes=[sae], exclude_special_tokens=True):
        _, cache = client.run_with_cache(tokens)
    x = client.run_with_cache(tokens)[1][HOOK]
    assert torch.equal(cache[f"{HOOK}.hook_sae_output"][:, 0], x[:, 0])
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_output"][:, 1:], sae(x)[:, 1:])


@pytest.mark.parametrize("name", ["temporal", "hierarchical", "topk"])
def test_sae_lens_run_evals_gives_every_number(name, folders, client, model, text_file):
    from datasets import Dataset
    from sae_lens.evals import get_eval_everything_config, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler
    from sae_lens.training.activations_store import ActivationsStore

    sae = sae_variants.load(folders[name])
    text = Dataset.from_dict({"text": text_file.read_text().split("\n\n")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = ActivationsStore.from_sae(
            model, sae, dataset=text, context_size=32, streaming=False, store_batch_size_prompts=4, device="cpu"
        )
        read, get_batch = [], store.get_batch_tokens
        store.get_batch_tokens = lambda *args, **kwargs: read.append(get_batch(*args, **kwargs)) or read[-1]
        config = get_eval_everything_config(4, n_eval_reconstruction_batches=2, n_eval_sparsity_variance_batches=3)
        metrics, by_latent = run_evals(sae, store, model, ActivationScaler(), config)
    numbers = {name: value for group in metrics.values() for name, value in group.items()}
    assert all(torch.isfinite(torch.tensor(float(value))) for value in numbers.values())
    kept_ND = []
    for ids in read[-3:]:  # those of sparsity and variance, after two of reconstruction
        x = model.run_with_cache(ids, names_filter=HOOK)[1][HOOK]
        kept_ND.append(x[ids != model.tokenizer.bos_token_id])
    x_ND = torch.cat(kept_ND)
    acts_NS, error_ND = sae.encode(x_ND), x_ND - sae(x_ND)
    density_S = (acts_NS > 0).float().mean(0)
    assert numbers["l0"] == pytest.approx((acts_NS > 0).float().sum(1).mean().item(), rel=1e-3)
    assert numbers["mse"] == pytest.approx(error_ND.pow(2).sum(1).mean().item(), rel=1e-3)
    variance = 1 - error_ND.pow(2).sum() / (x_ND - x_ND.mean(0)).pow(2).sum()
    assert numbers["explained_variance"] == pytest.approx(variance.item(), abs=1e-3)
    assert by_latent["feature_density"] == pytest.approx(density_S.tolist(), abs=1e-3)
    assert len(by_latent["encoder_norm"]) == sae.cfg.d_sae
    assert numbers["ce_loss_without_sae"] <= numbers["ce_loss_with_sae"] + 0.05


DASHBOARD = ["sae-dashboard==0.8.0", "pyarrow<26"]
"""Without the bound pip takes a pyarrow that needs a newer numpy than TransformerLens 2 allows."""
SHOWN = ["topk", "stock:batchtopk"]
"""SAEs of stock architectures; SAEDashboard knows no others."""


@pytest.fixture(scope="module")
def dashboard_python(tmp_path_factory):
    """The Python of an environment with SAEDashboard and without this package."""
    if given := os.environ.get("SAE_DASHBOARD_PYTHON"):
        yield given
        return
    folder = tmp_path_factory.mktemp("dashboard") / "venv"
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        python = str(folder / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", *DASHBOARD]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode and "NewConnectionError" in done.stderr:
            pytest.skip("SAEDashboard cannot be installed without a network")
        assert done.returncode == 0, done.stderr
        yield python
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def sandbox_saes(tmp_path_factory):
    """Folders of small SAEs of the sandbox, by name."""
    fields = {"d_sae": 64, "k": 4, "training_tokens": 32_768, "buffer_contexts": 64}
    root = tmp_path_factory.mktemp("sandbox")
    plans = {name: make_plan(name, load_target(SANDBOX), fields, root) for name in SHOWN}
    train_plans(list(plans.values()))
    return {name: plan.sae_folder for name, plan in plans.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_sae_dashboard_shows_the_latents_and_the_numbers_of_our_export(
    name, dashboard_python, sandbox_saes, tmp_path, monkeypatch
):
    from safetensors.torch import load_file, save_file

    target, model = load_target(SANDBOX), load_model(SANDBOX, "cpu", "float32")
    ids = heldout_tokens(target, model, 16, 32)
    save_file({"ids": ids}, tmp_path / "tokens.safetensors")
    page, script = tmp_path / "page.html", Path(__file__).parent / "clients" / "sae_dashboard_page.py"
    arguments = [model_folder(SANDBOX), sandbox_saes[name], tmp_path / "tokens.safetensors", page]
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = subprocess.run(
        [dashboard_python, str(script), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text = page.read_text()
    assert "DASHBOARD_DATA" in text
    shown = json.loads(Path(f"{page}.json").read_text())
    assert sorted(map(int, shown)) == list(range(64))

    theirs = load_file(f"{page}.safetensors")
    x = model.run_with_cache(ids, names_filter=target.hook_name)[1][target.hook_name]
    torch.testing.assert_close(theirs["x"], x, rtol=1e-3, atol=1e-3)
    exported = ["--n-contexts", "16", "--context-size", "32", "--set-name", "same", "--latents-per-file", "64"]
    assert main(["export", "neuronpedia", str(tmp_path / "np"), "--sae", str(sandbox_saes[name]), *exported]) == 0
    (file,) = (tmp_path / "np").glob("*/*/features/*")
    ours = {row["index"]: row for row in map(json.loads, gzip.decompress(file.read_bytes()).decode().splitlines())}
    kept = (~special_mask(ids, model)).sum().item()
    alive = 0
    for latent, row in ours.items():
        other = shown[latent]
        assert row["pos_values"] == pytest.approx(other["top"][1], abs=2e-3)
        assert row["neg_values"] == pytest.approx(other["bottom"][1], abs=2e-3)
        assert row["pos_str"][0] == model.tokenizer.decode([other["top"][0][0]])
        assert row["neuron_alignment_indices"] == other["channels"]
        assert moved(row["logits_hist_data_bar_heights"], other["logit heights"]) <= 8
        fired = round(row["frac_nonzero"] * kept)
        assert sum(other["heights"]) == pytest.approx(fired, abs=1), "a latent at its threshold may differ"
        if sum(other["heights"]) == fired > 1:
            alive += 1
            assert row["freq_hist_data_bar_values"] == pytest.approx(other["centres"], rel=1e-2)
            assert moved(row["freq_hist_data_bar_heights"], other["heights"]) <= 4
            assert float(other["density"].rstrip("%")) / 100 == pytest.approx(fired / ids.numel(), abs=1e-5)
    assert alive > 15


def moved(heights: list[int], others: list[int]) -> int:
    """How many values two histograms count in different bars."""
    return sum(abs(a - b) for a, b in zip(heights, others, strict=True)) // 2
