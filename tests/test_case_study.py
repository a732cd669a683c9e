"""Case studies: measurements of latents by hand, and the page in headless Chromium."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import TINY, fetched, identity, linear_sae, needs_chromium, opened
from test_hierarchy import tree

from eval_runners.__main__ import main
from eval_runners.data.heldout import heldout_activations
from eval_runners.measures.excerpt_texts import excerpt_groups
from eval_runners.measures.firing import Excerpt, Firing, collect_firing
from eval_runners.measures.latent_choice import LatentChoice
from eval_runners.measures.latent_sheet import describe_latents, position_rates
from eval_runners.measures.logit_effects import logit_effects
from eval_runners.views.page import render_page
from sae_variants.common.errors import UsageError
from sae_variants.language_model.load import load_model
from sae_variants.two_level.saved import lower_level_of

HOSTILE = "</script><script>document.body.dataset.broken='yes'</script><b>bold</b>"


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


def test_no_text_is_shown_twice():
    ids, acts = torch.arange(10).repeat(3, 1), torch.zeros(3, 10)
    ids[2] += 5
    acts[:, 4] = torch.tensor([1.0, 2.0, 3.0])
    places = acts.flatten().nonzero().squeeze(1)
    firing = Firing(ids, torch.zeros(3, 10).bool(), places, acts.flatten()[places], torch.tensor([3]), torch.zeros(1))
    assert [one.context for one in firing.excerpts(0)] == [2, 1]


def test_lower_quantiles_are_of_the_other_contexts():
    class Words:
        def batch_decode(self, ids, **_):
            return [str(i[0]) for i in ids]

    every = [Excerpt([n], [100.0 - n], 0, n, 0) for n in range(48)]
    found = excerpt_groups(iter(every), Words())
    assert [e["tokens"][0] for e in found["top"]] == [str(n) for n in range(8)]
    assert [[e["tokens"][0] for e in part["excerpts"]] for part in found["lower"]] == [
        ["17", "18"],
        ["27", "28"],
        ["37", "38"],
    ]
    assert excerpt_groups(iter(every[:9]), Words())["lower"] == []


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
    [("best:0", "at least one"), ("worst:3", "best:12"), ("3,x", "best:12"), ("", "best:12"), ("33", "has 33 latents")],
)
def test_impossible_choices_of_latents_are_refused(firing, text, message):
    with pytest.raises(UsageError, match=message):
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
    assert alive["nearest"][0] == [int(cosines.argmax()), pytest.approx(cosines.max().item(), abs=1e-5)]
    assert len(alive["top"]) == 8
    assert alive["effect"]["kl"] > 0
    assert alive["patterns"]["patterns"]
    assert "children" not in alive
    assert "top" not in dead
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


@pytest.fixture(scope="module")
def page(target, model_folder, text_file, trained, tmp_path_factory):
    file = tmp_path_factory.mktemp("case") / "case.html"
    fields = [f"--train.{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    code = main([
        "case-study", "--sae", "temporal", "--latents", "best:6", "--model", str(model_folder), "--dataset", str(text_file),
        "--hook-name", target.hook_name, "--trained", str(trained), "--n-contexts", "48", "--context-size", "32",
        "--output", str(file), *fields,
    ])  # fmt: skip
    assert code == 0
    return file


def press(driver, key):
    script = "dispatchEvent(new KeyboardEvent('keydown', { key: arguments[0], bubbles: true }))"
    driver.execute_script(f"document.activeElement.{script}", key)


def shown(driver):
    return driver.execute_script("return [...document.querySelectorAll('article')].map(a => a.id)")


@needs_chromium
def test_latents_are_searched_ordered_and_walked_through(driver, page):
    opened(driver, page)
    every = shown(driver)
    assert len(every) == 6
    press(driver, "j")
    press(driver, "j")
    press(driver, "k")
    assert driver.execute_script("return document.activeElement.id") == every[0]
    press(driver, "/")
    assert driver.execute_script("return document.activeElement.id") == "search"
    driver.find_element("id", "search").send_keys(every[2].removeprefix("latent-"))
    assert every[2] in shown(driver)
    driver.execute_script("const s = document.getElementById('search'); s.value = 'no such word'; s.oninput()")
    assert shown(driver) == []
    assert driver.execute_script("return document.getElementById('count').textContent") == "0 of 6 latents"
    driver.execute_script("const s = document.getElementById('search'); s.value = ''; s.oninput()")
    driver.execute_script("const o = document.getElementById('order'); o.value = 2; o.onchange()")
    assert shown(driver) == sorted(every, key=lambda name: int(name.removeprefix("latent-")))
    before = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    driver.execute_script("document.activeElement.blur()")
    press(driver, "t")
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") != before
    driver.set_window_size(420, 900)
    assert not driver.execute_script("return document.documentElement.scrollWidth > innerWidth")
    driver.set_window_size(1300, 1000)
    assert not [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert fetched(driver) == []


@needs_chromium
def test_text_that_is_markup_is_shown_as_text(driver, target, model, tmp_path):
    data = describe_latents(identity(target), target, model, LatentChoice.parse("3"), 12, 32, seed=0)
    row = data["latents"][0]
    row["top"][0]["tokens"][0] = HOSTILE
    row["raised"][0][0] = row["patterns"]["patterns"][0] = HOSTILE
    data["about"]["sae"] = HOSTILE
    page = tmp_path / "hostile.html"
    page.write_text(render_page("case_study.html", data))
    opened(driver, page)
    assert driver.execute_script("return document.body.textContent").count(HOSTILE) >= 3
    assert driver.execute_script("return document.body.dataset.broken") is None
    assert driver.execute_script("return document.querySelectorAll('article b').length") == 0


def test_a_model_of_lower_precision_gives_an_effect(sae, target):
    model = load_model(target.model_name, "cpu", "bfloat16")
    data = describe_latents(sae, target, model, LatentChoice.parse("4"), 12, 32, seed=0)
    assert data["latents"][0]["effect"]["kl"] > 0
