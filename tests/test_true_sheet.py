"""Case studies of SAEs of a synthetic model: known SAEs are described by their features, and shown as such."""

from __future__ import annotations

import pytest
import torch
from conftest import check_accessible, needs_axe, needs_chromium, opened
from test_case_pages import check_quiet, search
from test_ground_truth import TABLE, TREES, D, F, dictionary, load, two_levels
from test_synthetic import make_target

from eval_runners.__main__ import main
from eval_runners.measures.latent_choice import LatentChoice
from eval_runners.measures.true_features import Sample
from eval_runners.measures.true_sheet import describe_true_latents
from eval_runners.measures.true_tree import true_tree
from eval_runners.views.case_pages import case_page
from sae_variants.common.errors import UsageError


@pytest.fixture
def target(tmp_path):
    return make_target(tmp_path, TABLE)


def describe(sae, data, target, latents):
    return describe_true_latents(sae, target, data, LatentChoice.parse(latents), Sample(64, 32, 0))


def planted(target):
    """The true dictionary, but that latent 1 is feature 0 as well, and latent 2 its opposite, which never fires."""
    rows = torch.eye(F, D)
    rows[1], rows[2] = rows[0], -rows[0]
    return dictionary(target, rows)


def test_a_latent_is_described_by_its_feature(target):
    data = load()
    found = describe(planted(target), data, target, "0,1,2,5")
    first, second, opposite, fifth = found["latents"]
    acts_CTF = torch.cat(list(data.features(64, 32, "case study", 0)))
    rate = float((acts_CTF[..., 5] > 0).float().mean())
    truth = fifth["truth"]
    assert (truth["feature"], fifth["label"], fifth["score"]) == (5, "feature 5", 1.0)
    assert (truth["precision"], truth["recall"], truth["cosine"]) == (1.0, 1.0, pytest.approx(1))
    assert truth["rate"] == fifth["density"] == pytest.approx(rate)
    assert truth["strength"] == pytest.approx(float(acts_CTF[..., 5].sum() / (acts_CTF[..., 5] > 0).sum()), rel=1e-4)
    assert truth["there"][0] == [5, 1.0, pytest.approx(rate)]
    assert fifth["max"] == pytest.approx(float(acts_CTF[..., 5].max()))
    assert [first[name][0] for name in ("nearest", "correlated")] == [(1, pytest.approx(1.0), "feature 0")] * 2
    assert second["truth"]["feature"] == 0
    assert (opposite["truth"]["cosine"], opposite["truth"]["f1"], opposite["density"]) == (pytest.approx(-1), None, 0)
    assert found["about"]["features"] == F


def test_precision_and_recall_are_those_of_the_firing(target):
    """A latent that reads two features fires on either, and has the precision of the one that it is nearest to."""
    data, rows = load(), torch.eye(F, D)
    sae = dictionary(target, rows)
    sae.W_enc.data[1, 0] = 1.0
    truth = describe(sae, data, target, "0")["latents"][0]["truth"]
    fires = torch.cat(list(data.features(64, 32, "case study", 0))).flatten(0, 1) > 0
    either = int((fires[:, 0] | fires[:, 1]).sum())
    assert truth["precision"] == pytest.approx(int(fires[:, 0].sum()) / either)
    assert truth["recall"] == 1
    shares = {feature: share for feature, share, _ in truth["there"]}
    assert {*list(shares)[:2]} == {0, 1}
    assert shares[0] == truth["precision"], "one number, to the last digit"
    excess = [share - rate for _, share, rate in truth["there"]]
    assert excess == sorted(excess, reverse=True)


def trees():
    data = load(hierarchy=TREES)
    tree = true_tree(data.model.hierarchy, F)
    parents = torch.where(tree.root_F >= 0, tree.root_F, 0)
    return data, tree, parents


def test_children_stand_beside_the_true_tree(target):
    data, tree, parents = trees()
    latent = int(tree.parent_F[tree.parent_F >= 0][0])
    children = describe(two_levels(parents), data, target, str(latent))["latents"][0]["true_children"]
    expected = dict.fromkeys((tree.parent_F == latent).nonzero().flatten().tolist(), "true") | {latent: "same"}
    others = {child: "false" for child in (parents == latent).nonzero().flatten().tolist() if child not in expected}
    assert children["right"] == 3
    assert children["count"] == len(expected) + len(others)
    shown = {row["latent"]: row["edge"] for row in children["rows"]}
    assert shown.items() <= (expected | others).items()
    assert all(row["feature"] == row["latent"] and row["f1"] == 1 for row in children["rows"])
    assert {row["within"] for row in children["rows"] if row["edge"] == "true"} == {1.0}


@needs_chromium
def test_the_page_shows_the_truth(driver, target, tmp_path):
    data, tree, parents = trees()
    latent = int(tree.parent_F[tree.parent_F >= 0][0])
    found = describe(two_levels(parents), data, target, "0,1,2,3")
    found["about"]["sae"] = "planted"
    (tmp_path / "page.html").write_text(case_page(found))
    opened(driver, tmp_path / "page.html")
    search(driver, f"feature {latent}")
    text = driver.execute_script("return document.getElementById('latent').textContent")
    assert f"Feature {latent}, cosine 1.00. It fires on" in text
    assert "As a detector of it the latent has F1 1:" in text
    assert "3 as in the true tree" in text
    assert text.count("✓ true child of this latent's feature") == 3
    assert "the largest excess over their rate first" in text
    assert "undefined" not in text
    assert "NaN" not in text
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    check_quiet(driver)


@needs_chromium
@needs_axe
def test_axe_finds_nothing(driver, target, tmp_path):
    found = describe(planted(target), load(), target, "0,1,2,5")
    found["about"]["sae"] = "planted"
    (tmp_path / "page.html").write_text(case_page(found))
    opened(driver, tmp_path / "page.html")
    assert driver.execute_script("return document.querySelectorAll('#latent article').length") == 1
    check_accessible(driver)


def test_matched_latents_and_pictures_are_of_text():
    with pytest.raises(UsageError, match="synthetic is synthetic: give one, and a page for each"):
        main(["case-study", "--target", "synthetic", "--sae", "topk", "--sae", "tree"])
    with pytest.raises(UsageError, match="--picture draws a latent on text, and synthetic is synthetic"):
        main(["case-study", "--target", "synthetic", "--sae", "topk", "--picture", "p.png"])
