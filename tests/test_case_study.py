"""Case studies: measurements of latents by hand, and the page in headless Chromium."""

from __future__ import annotations

import json
import math
from argparse import ArgumentTypeError
from functools import partial

import pytest
import torch
from conftest import linear_sae
from test_hierarchy import tree

from eval_runners.data.heldout import heldout_activations
from eval_runners.measures.excerpt_texts import excerpt_groups, whole_words
from eval_runners.measures.firing import Excerpt, Firing, collect_firing
from eval_runners.measures.firing_tokens import describe_firing_tokens, label_by_tokens
from eval_runners.measures.latent_children import Children
from eval_runners.measures.latent_choice import LatentChoice
from eval_runners.measures.latent_relations import LatentRelations
from eval_runners.measures.latent_sheet import describe_latents, histogram_row, position_rates
from eval_runners.measures.logit_effects import logit_effects
from eval_runners.measures.matched_latents import correlate, describe_matched_latents, match_latents
from sae_variants.common.errors import UsageError
from sae_variants.language_model.load import load_model
from sae_variants.two_level.saved import lower_level_of


@pytest.fixture(scope="module")
def sae(target):
    """A latent for each of 32 directions, and one that never fires."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(33, 32, generator=generator), dim=1)
    found = linear_sae(target, rows.T.clone(), rows.clone())
    found.b_enc.data[32] = -1e6
    return found


@pytest.fixture(scope="module")
def firing(sae, target, model):
    return collect_firing(sae, target, model, 12, 32)


def test_firings_equal_the_saes_activations(sae, firing, target, model):
    x = torch.cat([x for x, _ in heldout_activations(target, model, 12, 32)])
    acts = sae.encode(x).detach() * ~firing.special_CT[..., None]
    for latent in (0, 7, 31, 32):
        torch.testing.assert_close(firing.acts_CT(latent), acts[..., latent], rtol=1e-4, atol=1e-5)
    assert firing.counts_S().tolist() == (acts > 0).sum((0, 1)).tolist()
    assert firing.counts_S()[32] == 0


def test_gain_is_the_increase_of_the_error_without_a_latent(sae, firing, target, model):
    kept = ~firing.special_CT
    x = torch.cat([x for x, _ in heldout_activations(target, model, 12, 32)])[kept]
    acts = sae.encode(x).detach()
    total = (x - x.mean(0)).pow(2).sum()
    for latent in (0, 5):
        without = acts.clone()
        without[:, latent] = 0
        gained = (sae.decode(without) - x).pow(2).sum() - (sae.decode(acts) - x).pow(2).sum()
        assert firing.gain_S[latent].item() == pytest.approx((gained / total).item(), rel=1e-3)


def test_excerpts_stay_in_their_document_around_the_largest_activation():
    ids = torch.arange(40).view(1, 40)
    special = torch.zeros(1, 40).bool()
    special[0, [9, 20]] = True
    acts = torch.zeros(1, 40)
    acts[0, [12, 15, 30]] = torch.tensor([1.0, 2.0, 0.5])
    places = acts.flatten().nonzero().squeeze(1)
    firing = Firing(ids, special, places, acts.flatten()[places], torch.tensor([3]), torch.zeros(1))
    (one,) = firing.excerpts(0)
    assert one.ids == list(range(10, 20))
    assert one.ids[one.at] == 15
    assert one.acts[one.at] == 2
    far = firing.excerpt(acts, 0, 39)
    assert far.ids == list(range(21, 40))
    assert firing.n_tokens == 38

    assert (one.is_cut_before, one.is_cut_after) == (False, False)
    assert (far.is_cut_before, far.is_cut_after) == (False, True)
    middle = firing.excerpt(torch.zeros(1, 40), 0, 5)
    assert (middle.is_cut_before, middle.is_cut_after) == (True, False)


@pytest.mark.parametrize(
    ("text", "at", "expected"),
    [
        ("ic|.| The| clin|ic| paid| man", " paid", ".| The| clin|ic| paid"),
        ("ic| paid| man|ager|.", " paid", " paid| man|ager|."),
        ("ap|pl|es", "pl", "ap|pl|es"),
        ("own| ap|pl|es| gr", "pl", " ap|pl|es"),
        ("don|'t| go| don", " go", " go"),
        ("日|本|語", "本", "日|本|語"),
        ("a", "a", "a"),
    ],
)
def test_excerpts_are_cut_between_words(text, at, expected):
    tokens = text.split("|")
    first, last = whole_words(tokens, tokens.index(at), True, True)
    assert "|".join(tokens[first:last]) == expected
    assert whole_words(tokens, tokens.index(at), False, False) == (0, len(tokens))


def made_firing(acts_CTS, ids_CT, special_CT=None):
    """Firings with these activations; latents need not be those of any SAE."""
    latent_E, token_E = acts_CTS.flatten(0, 1).T.nonzero(as_tuple=True)
    special_CT = torch.zeros(ids_CT.shape).bool() if special_CT is None else special_CT
    ends = (acts_CTS != 0).flatten(0, 1).sum(0).cumsum(0)
    return Firing(ids_CT, special_CT, token_E, acts_CTS.flatten(0, 1)[token_E, latent_E], ends, torch.zeros(len(ends)))


class Numbers:
    """A tokenizer whose tokens read as their ids."""

    def batch_decode(self, ids, **_):
        return [str(i[0]) for i in ids]


def test_tokens_are_weighted_by_activation():
    ids = torch.tensor([[1, 2, 3, 0, 2, 4]])
    special = torch.tensor([[False, False, False, True, False, False]])
    acts = torch.zeros(1, 6, 2)
    acts[0, [0, 1, 4], 0] = torch.tensor([5.0, 1.0, 4.0])
    firing = made_firing(acts, ids, special)
    found = describe_firing_tokens(firing, 0, Numbers())
    assert sorted(found["on"]) == [("1", 0.5), ("2", 0.5)]
    assert found["before"] == [(None, 0.9), ("1", 0.1)], "the first token of a context, and one after a special token"
    assert found["after"] == [("2", 0.5), ("4", 0.4), ("3", 0.1)]
    assert label_by_tokens(firing, 1, Numbers()) == ""
    acts[0, 1, 0], acts[0, 2, 0] = 100.0, 0.1
    assert label_by_tokens(made_firing(acts, ids, special), 0, Numbers()) == "'2'", "a share below 5 % is no label"


def test_relations_are_those_of_the_activations(sae, firing):
    kept = ~firing.special_CT
    acts = torch.stack([firing.acts_CT(latent)[kept] for latent in range(33)]).double()
    found = LatentRelations(sae.W_dec, firing, partial(label_by_tokens, firing, tokenizer=Numbers())).describe(4)
    correlation = torch.corrcoef(acts[:32])[4]
    correlation[4] = -2
    assert [row[0] for row in found["correlated"]] == correlation.topk(5).indices.tolist()
    assert [row[1] for row in found["correlated"]] == pytest.approx(correlation.topk(5).values.tolist())
    fires = acts > 0
    share = (fires & fires[4]).sum(1) / (fires | fires[4]).sum(1)
    share[4] = -2
    assert [row[1] for row in found["together"]] == pytest.approx(share.topk(5).values.tolist())
    assert all(row[2].startswith("'") for row in found["together"])
    assert (
        LatentRelations(sae.W_dec, firing, partial(label_by_tokens, firing, tokenizer=Numbers())).describe(32)[
            "together"
        ]
        == []
    )


def test_a_histogram_counts_every_firing(firing):
    acts = firing.firings_of(3)[1]
    found = histogram_row(acts)
    assert sum(found["counts"]) == len(acts)
    assert (found["low"], found["high"]) == pytest.approx((acts.min().item(), acts.max().item()), rel=5e-3)


def test_a_tree_of_one_level_has_parents_and_children():
    acts = torch.zeros(1, 8, 3)
    acts[0, :4, 0] = acts[0, :2, 1] = acts[0, 2:4, 2] = 1.0
    firing = made_firing(acts, torch.arange(8).view(1, 8))
    children = Children(torch.tensor([-1, 0, 0]), firing, is_one_level=True)
    found = children.place(0, firing.firings_of(0)[0], Numbers())["children"]
    assert {row["latent"] for row in found["rows"]} == {1, 2}
    number, label = children.place(1, firing.firings_of(1)[0], Numbers())["parent"]
    assert (number, label) == (0, label_by_tokens(firing, 0, Numbers()))


def test_latents_match_the_same_latents_in_another_order():
    generator = torch.Generator().manual_seed(0)
    rows, order = torch.randn(6, 8, generator=generator), torch.tensor([3, 5, 0, 1, 4, 2])
    acts = torch.rand(2, 10, 6, generator=generator) + 0.1
    ids = torch.zeros(2, 10).long()
    firing, other = made_firing(acts, ids), made_firing(acts[..., order], ids)
    found = match_latents(rows, rows[order], firing, other, [5, 0])
    assert found == {5: (1, pytest.approx(1.0)), 0: (2, pytest.approx(1.0))}
    assert correlate(firing, 5, other, 1) == pytest.approx(1.0)
    assert abs(correlate(firing, 5, other, 2)) < 0.9
    few = made_firing(acts[..., order[:1]], ids)
    assert match_latents(rows, rows[order[:1]], firing, few, [5, 3]) == {3: (0, pytest.approx(1.0))}
    dead = acts.clone()
    dead[..., 5] = 0
    assert match_latents(rows, rows[order], made_firing(dead, ids), other, [5]) == {}
    assert correlate(made_firing(dead, ids), 5, other, 1) is None


def test_matched_latents_are_described_on_both_sides(sae, target, model):
    twin = linear_sae(target, sae.W_enc.data.flip(1), sae.W_dec.data.flip(0))
    twin.b_enc.data[0] = -1e6
    data = describe_matched_latents((sae, twin), target, model, LatentChoice.parse("4,32"), 12, 32, seed=0)
    alive, dead = data["latents"]
    assert (alive["match"]["row"]["latent"], alive["cosine"]) == (28, pytest.approx(1.0, abs=1e-4))
    assert alive["match"]["correlation"] == pytest.approx(1.0, abs=1e-4)
    assert alive["match"]["row"]["top"][0]["tokens"] == alive["top"][0]["tokens"]
    assert (dead["match"], dead["cosine"]) == (None, None)
    assert dead["nearest_other"] == (0, pytest.approx(1.0, abs=1e-4), "")
    assert data["about"]["other"]["d_sae"] == 33


def test_no_text_is_shown_twice():
    ids, acts = torch.arange(10).repeat(3, 1), torch.zeros(3, 10)
    ids[2] += 5
    acts[:, 4] = torch.tensor([1.0, 2.0, 3.0])
    places = acts.flatten().nonzero().squeeze(1)
    firing = Firing(ids, torch.zeros(3, 10).bool(), places, acts.flatten()[places], torch.tensor([3]), torch.zeros(1))
    assert [one.context for one in firing.excerpts(0)] == [2, 1]


def test_lower_quantiles_are_of_the_other_contexts():
    every = [Excerpt([n], [100.0 - n], 0, n, 0) for n in range(48)]
    found = excerpt_groups(iter(every), Numbers())
    assert [e["tokens"][0] for e in found["top"]] == [str(n) for n in range(8)]
    assert [[e["tokens"][0] for e in part["excerpts"]] for part in found["lower"]] == [
        ["17", "18"],
        ["27", "28"],
        ["37", "38"],
    ]
    assert excerpt_groups(iter(every[:9]), Numbers())["lower"] == []


def test_positions_are_relative_to_the_mean():
    special = torch.zeros(4, 32).bool()
    special[:, 0] = True
    firing = Firing(torch.zeros(4, 32).long(), special, torch.zeros(0), torch.zeros(0), torch.zeros(1), torch.zeros(1))
    everywhere = (~special).flatten().nonzero().squeeze(1)
    assert position_rates(firing, everywhere) == pytest.approx([1.0] * 16)
    late = everywhere[everywhere % 32 >= 30]
    found = position_rates(firing, late)
    assert found[:15] == [0.0] * 15
    assert found[15] == pytest.approx(15.5, rel=1e-2)


def test_a_row_raises_the_tokens_that_read_it(model):
    weights = model.unembed.W_U.data.clone()
    try:
        model.unembed.W_U.data.zero_()
        model.unembed.W_U.data[3, 9], model.unembed.W_U.data[3, 11] = 5.0, -4.0
        row = torch.zeros(model.cfg.d_model)
        row[3] = 1.0
        found = logit_effects(model, row)
    finally:
        model.unembed.W_U.data[:] = weights
    assert found["raised"][0][0] == model.tokenizer.decode([9])
    assert found["lowered"][0][0] == model.tokenizer.decode([11])
    assert found["raised"][0][1] > 0 > found["lowered"][0][1]
    assert logit_effects(model, torch.zeros(7)) == {"raised": [], "lowered": []}


def test_logits_are_read_through_the_last_norm(model):
    """Its weights count, and the mean over channels does not."""
    unembed, scale = model.unembed.W_U.data.clone(), model.ln_final.w.data.clone()
    try:
        model.unembed.W_U.data.zero_()
        model.unembed.W_U.data[0, 5], model.unembed.W_U.data[1, 6] = 1.0, 1.0
        model.ln_final.w.data[:] = 1.0
        model.ln_final.w.data[1] = 3.0
        D = model.cfg.d_model
        row = torch.ones(D)
        row[:2] += 2.0
        found = logit_effects(model, row)
    finally:
        model.unembed.W_U.data[:], model.ln_final.w.data[:] = unembed, scale
    centred = 2.0 - 4.0 / D
    mean = (1 + 3) * centred / model.cfg.d_vocab
    assert [value for _, value in found["raised"][:2]] == pytest.approx([3 * centred - mean, centred - mean], rel=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best:0", "at least one"), ("worst:3", "best:12"), ("3,x", "best:12"), ("1,,2", "best:12"), ("", "best:12"),
        ("33", "has 33 latents"),
    ],
)  # fmt: skip
def test_impossible_choices_of_latents_are_refused(firing, text, message):
    with pytest.raises((UsageError, ArgumentTypeError), match=message):
        LatentChoice.parse(text).choose(firing, 0)


def test_latents_are_chosen_by_importance_per_token_at_random_or_by_number(firing):
    best = LatentChoice.parse("best:5").choose(firing, 0)
    per_token = (firing.gain_S / firing.counts_S())[best].tolist()
    assert per_token == sorted(per_token, reverse=True)
    drawn = LatentChoice.parse("random:5").choose(firing, 0)
    assert drawn == LatentChoice.parse("random:5").choose(firing, 0) != LatentChoice.parse("random:5").choose(firing, 1)
    assert 32 not in LatentChoice.parse("random:1000").choose(firing, 0)
    assert LatentChoice.parse("32, 4,4").choose(firing, 0) == [32, 4]


def test_a_sheet_has_neighbours_contexts_patterns_and_effect(sae, target, model):
    data = describe_latents(sae, target, model, LatentChoice.parse("4,32"), 12, 32, seed=0)
    alive, dead = data["latents"]
    unit = sae.W_dec.detach()
    cosines = unit @ unit[4]
    cosines[4] = -2
    assert alive["nearest"][0][:2] == (int(cosines.argmax()), pytest.approx(cosines.max().item(), abs=1e-5))
    assert len(alive["top"]) == 8
    assert alive["effect"]["kl"] > 0
    assert alive["patterns"]["patterns"]
    assert alive["score"] == alive["patterns"]["firing f1"]
    assert "children" not in alive
    assert "top" not in dead
    assert (dead["label"], dead["score"], dead["correlated"], dead["together"]) == ("", None, [], [])
    assert dead["density"] == 0
    json.dumps(data)


def test_an_upper_latent_has_its_children(target, model):
    sae = tree(target)
    data = describe_latents(sae, target, model, LatentChoice.parse("0"), 12, 32, seed=0)
    found = data["latents"][0]["children"]
    assert found["count"] == int((sae.parent_L == 0).sum())
    assert [row["latent"] for row in found["rows"]]
    assert all(int(sae.parent_L[row["latent"]]) == 0 for row in found["rows"])
    bits = [row["bits"] for row in found["rows"]]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] > 0.01
    upper = collect_firing(sae, target, model, 12, 32)
    lower = collect_firing(lower_level_of(sae), target, model, 12, 32)
    row, n = found["rows"][0], upper.n_tokens
    fires, child = upper.acts_CT(0) > 0, lower.acts_CT(row["latent"]) > 0
    table = torch.tensor([[(fires & child).sum(), (fires & ~child).sum()], [(~fires & child).sum(), 0]]).double()
    table[1, 1] = n - table.sum()
    expected = sum(
        p * torch.log2(p / (table[i].sum() / n * table[:, j].sum() / n)) for i in (0, 1) for j in (0, 1) if (p := table[i, j] / n) > 0
    )  # fmt: skip
    assert row["bits"] == pytest.approx(
        expected.item() - ((table > 0).sum().item() - 3) / (2 * n * math.log(2)), abs=1e-9
    )
    assert row["within"] == pytest.approx((fires & child).sum().item() / child.sum().item())
    assert row["density"] == pytest.approx(child.sum().item() / n)
    assert {"kl_children", "children_share"} <= set(data["latents"][0]["effect"])


def test_a_model_of_lower_precision_gives_an_effect(sae, target):
    model = load_model(target.model_name, "cpu", "bfloat16")
    data = describe_latents(sae, target, model, LatentChoice.parse("4"), 12, 32, seed=0)
    assert data["latents"][0]["effect"]["kl"] > 0
