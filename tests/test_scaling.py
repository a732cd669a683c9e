"""Oracles: a planted law is recovered, extrapolates, and is refused where there are too few SAEs."""

from __future__ import annotations

import numpy as np
import pytest

from eval_runners.measures.scaling_law import fit_law, mean_losses
from eval_runners.scaling import Scaling, law_name
from sae_variants.common.errors import UsageError
from sae_variants.language_model import target_files
from sae_variants.language_model.target import load_target

PLANTED = {"α": -0.4, "β_k": 0.25, "β_n": -0.12, "γ": -0.045, "ζ": -2.0, "η": -0.35}


def planted(points: np.ndarray, beta_t: float = 0.0) -> np.ndarray:
    n, k, t = np.log(points).T
    p = PLANTED
    return np.exp(p["α"] + p["β_k"] * k + p["β_n"] * n + p["γ"] * k * n + beta_t * t) + np.exp(p["ζ"] + p["η"] * k)


def grid(ns=(512, 1024, 2048, 4096, 8192), ks=(8, 16, 32, 64), ts=(1e6,)) -> np.ndarray:
    return np.array([[n, k, t] for n in ns for k in ks for t in ts], float)


def result(point, loss, name="topk", with_k=True, target="sandbox"):
    n, k, t = point
    numbers = {"loss": loss, "l0": k, "n": n, "tokens": t, "products": n * t}
    return {
        "eval_result_metrics": {"error": numbers},
        "eval_result_unstructured": {"name": name},
        "sae_lens_release_id": target,
        "sae_cfg_dict": {"k": k} if with_k else {},
    }


def test_a_planted_law_is_recovered():
    points = grid()
    law = fit_law(points, planted(points))
    found = dict(zip(law.terms, law.coefficients, strict=True))
    assert found == pytest.approx(PLANTED, abs=5e-3)
    beyond = grid(ns=(65536,))
    assert law.predict(beyond) == pytest.approx(planted(beyond), rel=1e-3)


def test_intervals_cover_the_planted_coefficients_most_of_the_time():
    points, covered = np.repeat(grid(), 3, 0), []
    for seed in range(12):
        noise = np.exp(np.random.default_rng(seed).normal(0, 0.003, len(points)))
        law = fit_law(points, planted(points) * noise)
        covered += [low <= PLANTED[t] <= high for t, low, high in zip(law.terms, law.low, law.high, strict=True)]
        beyond = grid(ns=(16384,))
        assert law.predict(beyond) == pytest.approx(planted(beyond), rel=0.02)
    assert 0.8 < np.mean(covered) <= 1


def test_tokens_have_a_coefficient_where_they_differ():
    points = grid(ns=(512, 1024, 4096), ts=(2.5e5, 5e5, 1e6))
    law = fit_law(points, planted(points, beta_t=-0.08))
    assert dict(zip(law.terms, law.coefficients, strict=True))["β_t"] == pytest.approx(-0.08, abs=5e-3)


def test_without_several_k_there_is_no_term_of_k():
    points = grid(ns=(512, 1024, 2048, 4096, 8192), ks=(32,))
    assert fit_law(points, planted(points)).terms == ("α", "β_n", "ζ")
    assert fit_law(points * [1, 1.001, 1], planted(points)).terms == ("α", "β_n", "ζ")  # k differs by rounding


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (grid(ns=(512,)), "several d_sae"),
        (np.repeat(grid(ns=(512, 1024), ks=(8, 16)), 3, 0), "4 different n, k and tokens are too few"),
    ],
)
def test_too_few_saes_give_no_law(points, message):
    with pytest.raises(UsageError, match=message):
        fit_law(points, planted(points))


def test_the_summary_has_the_law_its_extrapolation_and_the_best_of_equal_products():
    points = grid(ns=(512, 1024, 2048, 4096), ts=(5e5, 1e6))
    lines, files = Scaling().summarize_all(
        [result(p, loss) for p, loss in zip(points, planted(points, -0.08), strict=True)]
    )
    assert lines[0].startswith("topk: α = -0.4")
    assert "32 SAEs, 32 different ones, off by 0.0%" in lines[1]
    assert "law without n = 4096 is off there by 0.0%" in lines[2]
    assert "smallest error for equal n t: " in lines[3]
    # n to the power of -0.12 - 0.045 ln k, t to that of -0.08: latents are worth more than tokens
    assert "n t = 1.0e+09: n = 2048, t = 5.00e+05 (of 2)" in lines[3]
    rows = files["law-n-k-t.csv"].decode().splitlines()
    assert rows[0] == "name,coefficient,value,low,high"
    assert len(rows) == 8
    assert all(files[name].startswith(b"\x89PNG") for name in ("law-n-k-t.png", "residuals-n-k-t.png"))


def test_each_name_has_a_law_unless_it_has_too_few_saes():
    points = grid()
    results = [result(p, loss) for p, loss in zip(points, planted(points), strict=True)]
    lines, files = Scaling().summarize_all([*results, result([512, 8, 1e6], 0.5, "stock:topk")])
    assert lines[-1].startswith("stock:topk: no law: a law needs SAEs of several d_sae")
    assert b"stock:topk" not in files["law-n-k.csv"]
    assert Scaling().summarize_all([result([512, 8, 1e6], 0.5)])[1] == {}
    assert Scaling().summarize_all([result([512, 8, 0], 0.5, "random")])[0] == [
        "random: no law: no SAE has an error, active latents and training tokens"
    ]


def test_each_target_has_a_law():
    points = grid()
    losses = planted(points)
    results = [result(p, loss * factor, target=target) for target, factor in (("a", 1), ("b", 1.2))
               for p, loss in zip(points, losses, strict=True)]  # fmt: skip
    lines, files = Scaling().summarize_all(results)
    assert [line.partition(":")[0] for line in lines if "different ones, off by 0.0%" in line] == [
        "topk on a",
        "topk on b",
    ]
    assert b"topk on b,\xce\xb1," in files["law-n-k.csv"]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("topk", "topk"),
        ("topk[d_sae=512 k=8 training_tokens=65536]", "topk"),
        ("topk[aux_every=1 k=8]", "topk[aux_every=1]"),
        ("stock:standard[d_sae=64 l1_coefficient=2]", "stock:standard"),
        ("stock:jumprelu[l1_coefficient=2]", "stock:jumprelu[l1_coefficient=2]"),
    ],
)
def test_saes_that_differ_otherwise_have_separate_laws(label, name):
    assert law_name(label, load_target("sandbox")) == name


def test_seeds_are_averaged_and_their_spread_is_reported():
    points = np.repeat(grid(), 3, 0)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.02, len(points)))
    lines, _ = Scaling().summarize_all(
        [result(p, loss) for p, loss in zip(points, planted(points) * noise, strict=True)]
    )
    assert "60 SAEs, 20 different ones" in lines[1]
    assert float(lines[1].rpartition("seeds are ")[2].rstrip("%")) == pytest.approx(2, abs=0.5)
    cells, losses = mean_losses(np.array([[1.0, 1, 1], [2, 1, 1], [1, 1, 1]]), np.array([1.0, 5.0, 4.0]))
    assert cells.tolist() == [[1, 1, 1], [2, 1, 1]]
    assert losses.tolist() == pytest.approx([2, 5])


def test_the_extrapolation_does_not_see_the_largest_n():
    points = grid()
    losses = planted(points) * np.where(points[:, 0] == 8192, 1.5, 1)  # the law ends before the largest
    lines, _ = Scaling().summarize_all([result(p, loss) for p, loss in zip(points, losses, strict=True)])
    assert "law without n = 8192 is off there by 40.5%" in lines[2]  # ln 1.5
    assert "bias -40.5%" in lines[2]


def test_a_second_term_that_the_data_do_not_show_is_left_out():
    points = grid(ns=(512, 1024, 2048, 4096), ks=(32,), ts=(2.5e5, 1e6))
    law = fit_law(points, np.exp(-0.1 * np.log(points[:, 0]) - 0.3 * np.log(points[:, 2])))  # no second term
    assert law.terms == ("α", "β_n", "β_t")
    assert law.coefficients[1:] == pytest.approx([-0.1, -0.3], abs=0.01)
    assert (law.high - law.low)[1:].max() < 0.02


def test_k_is_the_configured_k():
    points = grid(ks=(64,))
    measured = points * [[1, 0.95 + 0.01 * i, 1] for i in range(len(points))]
    results = [result(p, loss) for p, loss in zip(measured, planted(points), strict=True)]
    for one in results:
        one["sae_cfg_dict"]["k"] = 64
    assert "β_k" not in Scaling().summarize_all(results)[0][0]


def test_the_law_is_written_beside_the_results(target, model_folder, text_file, tmp_path, capsys, monkeypatch):
    from conftest import TINY

    from eval_runners.commands import evaluate as eval_command

    monkeypatch.setenv("SAE_VARIANTS_TRAINED", str(tmp_path / "trained"))
    fields = [f"--train.{name.replace('_', '-')}={TINY[name]}" for name in ("training_tokens", "batch_tokens",
              "context_size", "stream_window", "buffer_contexts", "learning_rate")]  # fmt: skip
    code = eval_command.main("scaling", [
        "--sae", "topk", "--grid", "d_sae=32,48,64,96", "--grid", "k=2,4", "--model", str(model_folder), "--dataset",
        str(text_file), "--hook-name", target.hook_name, "--output", str(tmp_path / "out"), "--n-contexts", "8",
        "--context-size", "32", *fields,
    ])  # fmt: skip
    output = capsys.readouterr().out
    assert code == 0, output
    assert "topk: α = " in output
    (folder,) = (tmp_path / "out").glob("*/scaling")
    assert {"law-n-k.csv", "law-n-k.png", "residuals-n-k.png"} < {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_a_command_may_name_several_targets(target, text_file, tmp_path, capsys, monkeypatch):
    from conftest import tiny

    from eval_runners.commands import evaluate as eval_command

    monkeypatch.setenv("SAE_VARIANTS_TRAINED", str(tmp_path / "trained"))
    monkeypatch.setattr(target_files, "TARGETS_FOLDER", tmp_path)
    settings = {name: value for name, value in tiny("topk").items() if name not in ("d_sae", "k")}
    for layer in (0, 1):
        lines = [f'title = "layer {layer}"', f'model_name = "{target.model_name}"', f'dataset = "{text_file}"',
                 f'hook_name = "blocks.{layer}.hook_resid_post"', "[train]",
                 *(f"{name} = {value}" for name, value in settings.items())]  # fmt: skip
        (tmp_path / f"layer{layer}.toml").write_text("\n".join(lines))
    code = eval_command.main("scaling", [
        "--sae", "topk", "--grid", "d_sae=32,48,64,96", "--train.k", "4", "--target", "layer0,layer1", "--output",
        str(tmp_path / "out"), "--n-contexts", "8", "--context-size", "32", "--csv", str(tmp_path / "rows.csv"),
    ])  # fmt: skip
    output = capsys.readouterr().out
    assert code == 0, output
    assert "topk on layer0: α = " in output
    assert "topk on layer1: α = " in output
    assert (tmp_path / "out" / "layer0+layer1" / "scaling" / "law-n.png").exists()
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 9
