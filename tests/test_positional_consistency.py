"""Statistics along a context against their theoretical values, and the evaluation that reports them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import evaluate, identity, linear_sae, tiny

from eval_runners import positional_consistency as evaluator
from eval_runners.commands import evaluate as eval_command
from eval_runners.measures.autocorrelation import LaggedCorrelation, half_life, number_documents
from eval_runners.measures.context_statistics import ContextStatistics
from eval_runners.measures.decoder_neighbours import NeighbourCorrelation, find_near_copies
from eval_runners.measures.document_direction import DocumentDirection
from eval_runners.measures.position_profiles import cluster_profiles, profile_kind
from eval_runners.measures.smoothness import Smoothness
from sae_variants.common.errors import UsageError

LAGS = (1, 2, 4, 8)
C, T, S = 200, 64, 6


def statistics(acts, x=None, special=None, bins: int = 8, seed: int = 0) -> ContextStatistics:
    found = ContextStatistics(LAGS, bins, seed)
    x = torch.randn(len(acts), T, 5, generator=torch.Generator().manual_seed(1)) if x is None else x
    special = torch.zeros(acts.shape[:2], dtype=torch.bool) if special is None else special
    for part in torch.arange(len(acts)).split(50):
        found.add(acts[part], x[part], special[part])
    return found


def everything(acts) -> torch.Tensor:
    return torch.ones(acts.shape[-1], dtype=torch.bool)


def noise(seed: int = 0, share: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(C, T, S, generator=generator) * (torch.rand(C, T, S, generator=generator) < share)


def slowly(seed: int = 0) -> torch.Tensor:
    """On and off with a chance of change of 0.2 at each token: autocorrelation 0.6, 0.36, ..."""
    generator = torch.Generator().manual_seed(seed)
    flips = torch.rand(C, T, S, generator=generator) < 0.2
    return (flips.cumsum(1) % 2).float()


def test_constant_within_a_context_is_autocorrelation_1():
    acts = noise()[:, :1].expand(C, T, S)
    found = statistics(acts).latent_metrics(everything(acts))
    assert [found[f"autocorrelation_{lag}"] for lag in LAGS] == pytest.approx([1] * 4, abs=1e-6)
    assert found["half_life"] == math.inf
    assert found["smoothness"] == 0


def test_independent_noise_has_neither_autocorrelation_nor_position():
    acts = noise()
    found = statistics(acts).latent_metrics(everything(acts))
    assert [found[f"autocorrelation_{lag}"] for lag in LAGS] == pytest.approx([0] * 4, abs=0.01)
    assert found["position_information"] == pytest.approx(0, abs=3e-4)
    assert found["sequence_l0"] == pytest.approx(1 / 0.3, rel=0.05)


def test_autocorrelation_is_numpy_s_correlation():
    acts = slowly()
    found = statistics(acts).lagged.correlation_LS()
    for row, lag in enumerate(LAGS):
        for s in range(S):
            expected = np.corrcoef(acts[:, :-lag, s].flatten(), acts[:, lag:, s].flatten())[0, 1]
            assert found[row, s] == pytest.approx(expected, abs=1e-6)


def test_low_precision_does_not_round_the_sums():
    acts = torch.rand(64, 128, 3, generator=torch.Generator().manual_seed(0)).bfloat16() + 8
    found, expected = (LaggedCorrelation((1,)) for _ in range(2))
    documents = torch.zeros(64, 128, dtype=torch.int)
    found.add(acts, documents)
    expected.add(acts.double(), documents)
    torch.testing.assert_close(found.correlation_LS(), expected.correlation_LS(), rtol=0, atol=1e-4)


def test_token_index_below_8_has_the_information_of_that_partition():
    acts = torch.zeros(C, T, 1)
    acts[:, :8] = 1
    counted = statistics(acts).profile.information_S()
    share = 8 / T
    assert counted.item() == pytest.approx(-share * math.log2(share) - (1 - share) * math.log2(1 - share), abs=1e-6)
    found = statistics(acts).latent_metrics(everything(acts))
    assert found["position_information"] == pytest.approx(counted.item(), abs=2e-3)
    assert found["position_share"] == pytest.approx(1, abs=5e-3)  # position says all there is to say


def test_scaling_latents_leaves_every_scale_free_number():
    acts = slowly() + noise()
    one, ten = (statistics(acts * scale).latent_metrics(everything(acts)) for scale in (1, 10))
    assert ten.pop("smoothness") == pytest.approx(10 * one.pop("smoothness"))
    assert ten == pytest.approx(one, rel=1e-5)


def test_the_order_of_contexts_counts_for_nothing_that_of_tokens_for_all():
    acts = slowly()
    x = torch.randn(C, T, 5)
    contexts = torch.randperm(C)
    here, there = statistics(acts, x), statistics(acts[contexts], x[contexts])
    one, other = (found.latent_metrics(everything(acts)) for found in (here, there))
    for found in (one, other):
        del found["position_information"], found["position_share"]  # its null is another draw
    assert other == pytest.approx(one)
    tokens = torch.rand(C, T).argsort(1)
    shuffled = statistics(acts[torch.arange(C)[:, None], tokens]).latent_metrics(everything(acts))
    assert one["autocorrelation_1"] == pytest.approx(0.6, abs=0.05)
    assert one["autocorrelation_2"] == pytest.approx(0.36, abs=0.05)
    # what is left is how much the means of contexts of 64 tokens differ by chance
    assert abs(shuffled["autocorrelation_1"]) < 0.1


def test_documents_packed_into_one_context_are_not_neighbours():
    special = torch.zeros(1, 6, dtype=torch.bool)
    special[0, 2] = True
    assert number_documents(special).tolist() == [[0, 0, -1, 1, 1, 1]]
    acts = torch.zeros(C, T, 1)
    acts[:, : T // 2] = 1
    marks = torch.zeros(C, T, dtype=torch.bool)
    marks[:, T // 2] = True
    # on in the first document and off in the second: constant inside each, so nothing varies within any pair
    assert statistics(acts, special=marks).lagged.correlation_LS()[0].item() == pytest.approx(1, abs=1e-6)
    assert statistics(acts).lagged.correlation_LS()[0].item() < 1


def test_special_tokens_count_for_nothing():
    acts, x = noise(), torch.randn(C, T, 5)
    marks = torch.zeros(C, T, dtype=torch.bool)
    marks[:, 10] = True
    loud = acts.clone()
    loud[:, 10] = 1000
    assert statistics(loud, x, marks).latent_metrics(everything(acts)) == statistics(acts, x, marks).latent_metrics(
        everything(acts)
    )


def test_smoothness_by_hand():
    acts = torch.tensor([[[0.0], [2.0], [5.0]]])
    x = torch.tensor([[[0.0], [1.0], [3.0]]])
    smoothness = Smoothness()
    smoothness.add(acts, x, torch.zeros(1, 3, dtype=torch.long))
    assert smoothness.latent_mean(torch.tensor([True])) == 2.0  # max(2 / 1, 3 / 2)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [([0.8, 0.4, 0.2, 0.1], 2), ([0.8, 0.6, 0.2, 0.1], 2 ** 1.5), ([0.8, 0.7, 0.6, 0.5], math.inf), ([0.0, 0, 0, 0], None)],
)  # fmt: skip
def test_half_life_by_hand(curve, expected):
    found = half_life(LAGS, curve)
    assert math.isnan(found) if expected is None else found == pytest.approx(expected)


def test_the_document_direction_is_the_planted_one():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 20, 8, generator=generator)
    planted = torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0)
    x += 3 * torch.randn(50, 1, 1, generator=generator) * planted
    documents = DocumentDirection()
    documents.add(x, torch.zeros(50, 20, dtype=torch.bool))
    direction = torch.nn.functional.normalize(documents.direction_D1()[:, 0].float(), dim=0)
    assert abs(direction @ planted) > 0.98


@pytest.mark.parametrize(
    ("profile", "kind"),
    [(np.ones(16), "flat"), (np.linspace(2, 0, 16), "early"), (np.linspace(0, 2, 16), "late"), (1 + np.cos(np.arange(16) * np.pi / 2), "periodic")],
    ids=["flat", "early", "late", "periodic"],
)  # fmt: skip
def test_kinds_of_profiles(profile, kind):
    assert profile_kind(profile) == kind


def test_profiles_are_clustered_into_what_was_planted():
    generator = torch.Generator().manual_seed(0)
    rates = {"flat": torch.ones(T), "early": torch.linspace(2, 0, T), "late": torch.linspace(0, 2, T)}
    acts = torch.cat(
        [torch.rand(C, T, 20, generator=generator) < 0.3 * rate[:, None] for rate in rates.values()], -1
    ).float()
    found = statistics(acts)
    described = cluster_profiles(found.profile, everything(acts), 0)
    for i, kind in enumerate(rates):
        mask = torch.zeros(60, dtype=torch.bool)
        mask[20 * i : 20 * (i + 1)] = True
        assert described.shares(mask)[kind] == 1, kind


def test_copies_in_other_bands_are_redundant_and_copies_in_the_same_are_not():
    eye = torch.eye(8)
    decoder = torch.stack([eye[0], eye[0] + 0.1 * eye[1], eye[2], eye[2], eye[3], eye[3]])
    band = torch.tensor([0, 2, 1, 1, -1, 0])
    keep = torch.ones(6, dtype=torch.bool)
    copies, redundant = find_near_copies(decoder, band, keep)
    assert copies.tolist() == [True] * 6
    assert redundant.tolist() == [True, True, False, False, False, False]
    keep[0] = False
    copies, redundant = find_near_copies(decoder, band, keep)
    assert copies.tolist() == [False, False, True, True, True, True]
    assert not redundant.any()


def test_correlation_of_related_latents_is_numpy_s():
    acts = slowly()
    related = NeighbourCorrelation(torch.randn(S, 4), torch.arange(S) != 2)
    assert 2 not in related.latents.tolist()  # it never fires
    related.add(acts, torch.zeros(C, T, dtype=torch.bool))
    expected = np.corrcoef(acts.flatten(0, 1)[:, related.latents].T)
    np.testing.assert_allclose(related.correlation_PP().numpy(), expected, atol=1e-6)


def test_uneven_firing_by_chance_is_flat():
    generator = torch.Generator().manual_seed(0)
    rates = torch.cat([torch.full((40,), 0.003), torch.full((20,), 0.3)])
    acts = (torch.rand(C, T, 60, generator=generator) < rates).float()
    found = statistics(acts, bins=16)
    described = cluster_profiles(found.profile, everything(acts), 0)
    assert described.shares(everything(acts))["flat"] >= 0.98
    assert (described.band_S[:40] == -1).all()


def test_a_scale_is_taken_where_a_latent_fires_or_over_all_tokens():
    acts = torch.zeros(1, 4, 1)
    acts[0, 1], acts[0, 2] = 3.0, 4.0
    x = torch.arange(4.0).reshape(1, 4, 1)  # steps of length 1
    found = ContextStatistics(LAGS, 2)
    found.add(acts, x, torch.zeros(1, 4, dtype=torch.bool))
    assert found.firing_scale_S().item() == pytest.approx((25 / 2) ** 0.5)
    assert found.overall_scale_S().item() == pytest.approx((25 / 4) ** 0.5)
    values = found.latent_metrics(torch.tensor([True]))
    assert values["smoothness"] == pytest.approx(4)  # from 4 to nothing
    assert values["smoothness_scale_free"] == pytest.approx(4 / (25 / 2) ** 0.5)
    assert values["smoothness_all_tokens"] == pytest.approx(4 / (25 / 4) ** 0.5)


def test_a_mean_over_latents_is_weighted_by_firing_and_the_median_is_not():
    generator = torch.Generator().manual_seed(0)
    often = slowly()[..., :1]  # autocorrelation at lag 1 about 0.6, at 8 about 0.02
    constant = (torch.rand(C, 1, 1, generator=generator) < 0.5).float().expand(C, T, 1)
    rare = (torch.rand(C, T, 2, generator=generator) < 0.01).float()
    acts = torch.cat([often, constant, rare], -1)
    found = statistics(acts)
    correlation, fires = found.lagged.correlation_LS()[3], found.fires_S
    values = found.latent_metrics(everything(acts))
    expected = (correlation * fires).sum() / fires.sum()
    assert values["autocorrelation_8"] == pytest.approx(expected.item())
    assert values["autocorrelation_8"] > 0.4
    assert values["autocorrelation_median"] < 0.05


def test_two_halves_make_the_whole():
    acts, x = slowly() + noise(), torch.randn(C, T, 5)
    whole = statistics(acts, x)
    parts = statistics(acts[:80], x[:80]) + statistics(acts[80:], x[80:], seed=1)
    one, other = (found.latent_metrics(everything(acts)) for found in (whole, parts))
    for found in (one, other):
        del found["position_information"], found["position_share"]  # their null is another draw
    assert other == pytest.approx(one, rel=1e-4)


def test_the_most_persistent_latents_are_those_that_stay_on():
    acts = torch.cat([noise(), slowly()[..., :2]], -1)
    found = statistics(acts)
    keep = everything(acts)
    chosen = found.most_persistent(keep, 1, 0.01)
    assert chosen.sum() == 1
    assert chosen[S:].any()
    share = (found.fires_S[S:].sum() / found.fires_S.sum()).item()
    assert found.most_persistent(keep, 1, share - 0.01).tolist() == [False] * S + [True] * 2
    keep[S:] = False
    assert not found.most_persistent(keep, 1, share)[S:].any()
    assert found.most_persistent(keep, 1, 1.0)[:S].all()


SMALL = {"n_contexts": 24, "context_size": 32, "batch_contexts": 5, "n_min": 3}


def test_only_latents_that_fire_often_enough_count(target, model):
    sae = identity(target)
    sae.b_enc.data[:8] = -1e4
    few, many = (score(sae, target, model, n_min=n) for n in (1, 300))
    counted = [found.metrics["all"]["latents"] for found in (few, many)]
    assert counted[0] == 56
    assert counted[1] < counted[0]
    with pytest.raises(UsageError, match=r"--n-min 100000.*at most \d+"):
        score(sae, target, model, n_min=100_000)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_contexts": 1}, "two contexts"),
        ({"position_bins": 32}, "--position-bins 32"),
        ({"persistent_share": 0.0}, "--persistent-share"),
    ],
)
def test_what_cannot_be_measured_is_refused(target, model, settings, says):
    with pytest.raises(UsageError, match=says):
        score(identity(target), target, model, prepare=True, **settings)


def test_the_ceilings_are_those_of_the_second_half(target, model):
    """Of the contexts that are there, however many were asked for, and fitted on the first half alone."""
    from eval_runners.data.heldout import activations_of, heldout_tokens

    values = score(identity(target), target, model, n_contexts=10_000).metrics
    ids = heldout_tokens(target, model, 10_000, SMALL["context_size"])
    assert 2 < len(ids) < 10_000
    half = len(ids) // 2
    documents = DocumentDirection()
    statistics = [ContextStatistics(evaluator.LAGS, 16) for _ in range(2)]
    for x, special in activations_of(ids[:half], target, model):
        documents.add(x, special)
    for x, special in activations_of(ids[half:], target, model):
        for found, rows in zip(statistics, (x, x @ documents.direction_D1().to(x)), strict=True):
            found.add(rows, x, special)
    for category, found in zip(("residual", "document_direction"), statistics, strict=True):
        for name, expected in found.channel_metrics().items():
            if values[category][name] is not None:
                assert values[category][name] == pytest.approx(expected, rel=1e-3), (category, name)
    x = torch.cat([x[~special] for x, special in activations_of(ids[half:], target, model)]).double()
    torch.testing.assert_close(statistics[0].deviation_S(), x.std(0, unbiased=False), rtol=1e-3, atol=1e-4)


def score(sae, target, model, **settings):
    return evaluate("positional_consistency", sae, target, model, **(SMALL | settings))


def test_scaling_an_sae_leaves_every_scale_free_metric(target, model):
    sae, scaled = identity(target), identity(target)
    scaled = linear_sae(target, scaled.W_enc.data * 10, scaled.W_dec.data / 10)
    one, ten = (score(s, target, model).metrics["all"] for s in (sae, scaled))
    assert ten.pop("smoothness") == pytest.approx(10 * one.pop("smoothness"), rel=1e-4)
    assert {k: v for k, v in ten.items() if v is not None} == pytest.approx(
        {k: v for k, v in one.items() if v is not None}, rel=1e-4
    )


def test_slow_and_fast_stand_apart_where_the_sae_says_which_are_which(
    target, trained, tmp_path, model_folder, text_file, capsys
):
    train = [
        word for key, value in tiny("temporal").items() for word in (f"--train.{key.replace('_', '-')}", str(value))
    ]
    eval_command.main("positional_consistency", [
        "--sae", "temporal", "--sae", "stock:batchtopk", "--model", str(model_folder), "--hook-name", target.hook_name,
        "--dataset", str(text_file), "--trained", str(trained), "--output", str(tmp_path / "out"),
        "--n-contexts", "24", "--context-size", "32", "--n-min", "3", *train,
    ])  # fmt: skip
    results = {file.parent.name: file for file in (tmp_path / "out").rglob("*.json")}
    for name, file in results.items():
        metrics = json.loads(file.read_text())["eval_result_metrics"]
        assert metrics["all"]["latents"] > 0
        assert (metrics["slow"]["latents"] is None) is (name == "stock_batchtopk")
        assert metrics["residual"]["autocorrelation_1"] is not None
        arrays = np.load(file.with_suffix(".npz"))
        assert arrays["autocorrelation_LS"].shape == (6, 64)
        assert arrays["cluster_S"].shape == (64,)
        for picture in ("autocorrelation", "profiles", "related"):
            assert file.with_suffix(f".{picture}.png").read_bytes()[:4] == b"\x89PNG"
    assert "slow: autocorrelation, lag 8" in capsys.readouterr().out


def test_numbers_do_not_depend_on_the_size_of_a_batch(target, model):
    one, other = (score(identity(target), target, model, batch_contexts=size) for size in (4, 12))
    first, second = (found.metrics["all"] for found in (one, other))
    for name in (
        "position_information",
        "position_share",
        "smoothness",
        "smoothness_scale_free",
        "smoothness_all_tokens",
    ):
        del first[name], second[name]  # another draw of the null; slopes of almost equal tokens
    assert {k: v for k, v in first.items() if v is not None} == pytest.approx(
        {k: v for k, v in second.items() if v is not None}, rel=1e-4
    )


@pytest.mark.slow
def test_65536_latents_stay_under_2_gib(target, model):
    import resource

    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(65_536, 32, generator=generator), dim=-1)
    sae = linear_sae(target, decoder.T.contiguous(), decoder)
    sae.b_enc.data = torch.full((65_536,), -3.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wide = {"n_contexts": 8, "context_size": 128, "batch_contexts": 4}
    assert score(sae, target, model, **wide).metrics["all"]["latents"] > 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 1024**2  # KiB
