"""The export for Neuronpedia: every file against the published tables, and what it says of latents against a count by hand."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from datetime import datetime
from typing import Any, Literal

import pytest
import torch
from conftest import TINY
from pydantic import ConfigDict, create_model

import sae_variants
from eval_runners.__main__ import main
from eval_runners.commands.export import neuronpedia as command
from eval_runners.data.heldout import heldout_activations, heldout_tokens, special_mask
from eval_runners.measures.latent_dashboard import BINS, Histogram
from eval_runners.views.neuronpedia import SET_NAME, layer_of, slug
from sae_variants.common.errors import UsageError

TABLES = {
    "SourceRelease": """
        name description creatorName creatorId: str! ; visibility: visibility ; isNewUi featured: bool ;
        descriptionShort creatorEmail creatorNameShort defaultSourceSetName defaultSourceId: str? ; urls: strs! ;
        defaultUmapSourceIds: strs ; createdAt: time""",
    "Model": """
        id creatorId owner: str! ; displayNameShort displayName: str ; tlensId openRouterId defaultSourceSetName
        defaultSourceId defaultGraphSourceSetName website: str? ; dimension: int? ; thinking inferenceEnabled instruct:
        bool ; visibility: visibility ; layers neuronsPerLayer: int! ; createdAt updatedAt: time""",
    "SourceSet": """
        modelId name description creatorName creatorId: str! ; type: str ; urls: strs! ; creatorEmail releaseName
        defaultOfModelId defaultGraphModelId: str? ; hasDashboards allowInferenceSearch hasGraphs graphEnabled
        similarityMatrixEnabled defaultShowBreaks showDfa showCorrelated showHeadAttribution showUmap: bool ;
        defaultRange: int ; visibility: visibility ; createdAt: time""",
    "Source": """
        id modelId setName creatorId: str! ; hasDashboards inferenceEnabled hasUmap hasUmapLogSparsity hasUmapClusters:
        bool ; saelensConfig: json ; saelensRelease saelensSaeId hfRepoId hfFolderId defaultOfModelId dataset notes
        cosSimMatchModelId cosSimMatchSourceId: str? ; num_prompts num_tokens_in_prompt: int? ; visibility: visibility ;
        createdAt: time""",
    "Neuron": """
        modelId layer index: str! ; sourceSetName creatorId vectorLabel hookName: str? ; createdAt: time ; maxActApprox
        vectorDefaultSteerStrength umap_log_feature_sparsity umap_x umap_y: float? ; umap_cluster: int? ; hasVector: bool ;
        vector topkCosSimValues neuron_alignment_values neuron_alignment_l1 correlated_neurons_pearson
        correlated_neurons_l1 correlated_features_pearson correlated_features_l1 neg_values pos_values
        freq_hist_data_bar_heights freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values
        decoder_weights_dist: floats ; topkCosSimIndices neuron_alignment_indices correlated_neurons_indices
        correlated_features_indices: ints ; neg_str pos_str: strs ; frac_nonzero: float""",
    "Activation": """
        id layer modelId index creatorId: str! ; tokens: strs! ; values: floats! ; maxValue minValue: float! ;
        maxValueTokenIndex: int! ; dataIndex dataSource logitContributions: str? ; dfaValues lossValues zValues: floats ;
        zQIndices zKIndices: ints ; dfaTargetIndex qualifyingTokenIndex: int? ; dfaMaxValue binMin binMax binContains:
        float? ; createdAt: time""",
}
"""Columns of github.com/hijohnnylin/neuronpedia, apps/webapp/prisma/schema.prisma, at ebb8426f.

! must be given: it has no default. ? may be null.
"""
TYPES = {
    "str": str, "int": int, "float": float, "bool": bool, "time": datetime, "json": dict[str, Any],
    "visibility": Literal["PUBLIC", "UNLISTED", "PRIVATE"], "strs": list[str], "ints": list[int], "floats": list[float],
}  # fmt: skip
SHARED = ["--n-contexts", "12", "--context-size", "32", "--latents-per-file", "24"]


def table(name: str):
    """A strict model of a table, which refuses unknown columns."""
    fields: dict[str, Any] = {}
    for part in TABLES[name].split(";"):
        columns, _, kind = part.rpartition(":")
        kind = kind.strip()
        hint = TYPES[kind.rstrip("!?")]
        for column in columns.split():
            default = ... if kind.endswith("!") else None
            fields[column] = (hint | None if kind.endswith("?") else hint, default)
    return create_model(name, __config__=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False), **fields)


def rows_of(file) -> list[dict]:
    data = file.read_bytes()
    text = gzip.decompress(data) if file.suffix == ".gz" else data
    return [json.loads(line) for line in text.decode().splitlines()]


def checked(file, name: str) -> list[dict]:
    model = table(name)
    rows = rows_of(file)
    assert rows, "the import reads the columns from the first row"
    assert len({tuple(row) for row in rows}) == 1, "all rows have the columns of the first"
    for row in rows:
        model.model_validate_json(json.dumps(row))
    return rows


def words(target, model_folder, text_file, trained, folder, *more: str) -> list[str]:
    fields = [f"--train.{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    return [
        "export", "neuronpedia", str(folder), "--sae", "temporal", "--model", str(model_folder), "--dataset", str(text_file),
        "--hook-name", target.hook_name, "--trained", str(trained), "--set-name", "tiny", *SHARED, *more, *fields,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def export_words(target, model_folder, text_file, trained):
    return lambda folder, *more: words(target, model_folder, text_file, trained, folder, *more)


@pytest.fixture(scope="module")
def folder(export_words, tmp_path_factory):
    root = tmp_path_factory.mktemp("neuronpedia")
    assert main(export_words(root)) == 0
    (found,) = root.glob("*/*")
    return found


@pytest.fixture(scope="module")
def features(folder):
    return {int(row["index"]): row for file in (folder / "features").iterdir() for row in checked(file, "Neuron")}


@pytest.fixture(scope="module")
def activations(folder):
    return [row for file in (folder / "activations").iterdir() for row in checked(file, "Activation")]


@pytest.fixture(scope="module")
def by_hand(target, model, trained):
    """The SAE as a client loads it, and its activations on the text, without special tokens."""
    from eval_runners.harness.find_sae import locate_all, resolve_requests

    (located,) = locate_all(resolve_requests(["temporal"], target, TINY, trained=trained), "cpu")
    sae = located.load("cpu")
    x_CTD = torch.cat([x for x, _ in heldout_activations(target, model, 12, 32)])
    ids_CT = heldout_tokens(target, model, 12, 32)
    kept_CT = ~special_mask(ids_CT, model)[:, 1:]
    return sae, ids_CT[:, 1:], kept_CT, sae.encode(x_CTD).detach() * kept_CT[..., None]


def test_every_file_is_as_the_published_tables_say_and_refers_to_rows_that_exist(folder, features, activations):
    (release,), (model,), (group,), (source,) = (
        checked(folder / file, name)
        for file, name in (
            ("release.jsonl", "SourceRelease"), ("model.jsonl", "Model"),
            ("sourceset.jsonl", "SourceSet"), ("source.jsonl", "Source"),
        )
    )  # fmt: skip
    assert folder.parts[-2:] == (model["id"], source["id"]) == (group["modelId"], f"1-{group['name']}")
    assert group["releaseName"] == release["name"]
    assert (source["modelId"], source["setName"]) == (model["id"], group["name"])
    assert {(row["modelId"], row["layer"], row["sourceSetName"]) for row in features.values()} == {
        (model["id"], source["id"], group["name"])
    }
    assert sorted(features) == list(range(64))
    assert [len(rows_of(folder / "features" / f"batch-{n}.jsonl.gz")) for n in range(3)] == [24, 24, 16]
    keys = {(row["modelId"], row["layer"], row["index"]) for row in features.values()}
    assert {(row["modelId"], row["layer"], row["index"]) for row in activations} <= keys
    assert len({row["id"] for row in activations}) == len(activations)
    assert (model["layers"], model["dimension"], model["neuronsPerLayer"]) == (2, 32, 64)
    assert (source["num_prompts"], source["num_tokens_in_prompt"]) == (12, 32)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    batches = {f"{kind}/batch-{n}.jsonl.gz" for kind in ("features", "activations") for n in range(3)}
    assert names == batches | {"export.json", "release.jsonl", "model.jsonl", "sourceset.jsonl", "source.jsonl"}


def test_no_path_of_this_machine_is_in_it(folder, model_folder, text_file):
    for file in folder.rglob("*.json*"):
        text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        for path in (model_folder, text_file, folder):
            assert str(path).encode() not in text


def test_the_table_test_refuses_what_the_tables_refuse(features):
    row = features[0]
    Neuron = table("Neuron")
    for wrong in (
        row | {"density": 0.1},
        row | {"index": 0},
        row | {"frac_nonzero": None},
        {"modelId": "m", "layer": "l"},
    ):
        with pytest.raises(ValueError, match="validation error"):
            Neuron.model_validate_json(json.dumps(wrong))


def test_rates_largest_activations_and_histograms_are_those_of_a_count(features, by_hand):
    _, _, kept, acts = by_hand
    alive = 0
    for latent, row in features.items():
        mine = acts[..., latent]
        assert row["maxActApprox"] == pytest.approx(mine.max().item(), rel=1e-4, abs=1e-6)
        fires = mine > 0
        assert row["frac_nonzero"] == pytest.approx(fires.sum().item() / kept.sum().item(), rel=1e-5)
        heights, centres = row["freq_hist_data_bar_heights"], row["freq_hist_data_bar_values"]
        if not fires.any():
            assert heights == centres == []
            continue
        alive += 1
        assert len(heights) == len(centres) == BINS
        assert sum(heights) == fires.sum()
        if fires.sum() > 1:
            half = (centres[1] - centres[0]) / 2
            assert centres[0] - half == pytest.approx(mine[fires].min().item(), rel=1e-3)
            assert centres[-1] + half == pytest.approx(mine.max().item(), rel=1e-3)
    assert alive > 10


def test_logits_are_decoder_rows_times_the_unembedding_sorted(features, by_hand, model):
    sae = by_hand[0]
    logits_SV = sae.W_dec.detach() @ model.W_U
    for latent in (0, 17, 63):
        row, values = features[latent], logits_SV[latent].sort(descending=True)
        assert row["pos_values"] == pytest.approx(values.values[:10].tolist(), rel=1e-4)
        assert row["neg_values"] == pytest.approx(values.values.flip(0)[:10].tolist(), rel=1e-4)
        assert row["pos_str"] == [model.tokenizer.decode([token]) for token in values.indices[:10].tolist()]
        assert row["neg_str"][0] == model.tokenizer.decode([int(values.indices[-1])])
        assert sum(row["logits_hist_data_bar_heights"]) == model.cfg.d_vocab
        weights = sae.W_dec.detach()[latent]
        assert row["neuron_alignment_indices"] == weights.sort(descending=True).indices[:3].tolist()
        assert row["neuron_alignment_values"][0] == pytest.approx(weights.max().item(), rel=1e-4)
        assert row["neuron_alignment_l1"][0] == pytest.approx((weights.max() / weights.abs().sum()).item(), rel=1e-4)


def test_examples_are_contexts_of_the_text_with_the_saes_activations(activations, by_hand, model):
    _, ids, kept, acts = by_hand
    texts = [tuple(model.tokenizer.batch_decode([[token] for token in row])) for row in ids.tolist()]
    for row in activations:
        context, latent = texts.index(tuple(row["tokens"])), int(row["index"])
        mine = acts[context, :, latent]
        assert row["values"] == pytest.approx(mine.tolist(), rel=1e-4, abs=1e-5)
        assert row["maxValue"] == max(row["values"]) == row["values"][row["maxValueTokenIndex"]]
        assert row["minValue"] == min(row["values"])
        chosen, every = row["values"][row["qualifyingTokenIndex"]], acts[..., latent][kept]
        if row["binMin"] == -1:
            assert row["binContains"] == -1
            assert chosen == row["maxValue"]
            assert row["binMax"] == pytest.approx(every.max().item(), rel=1e-4)
        else:
            slack = 1e-4 * row["binMax"]
            assert row["binMin"] - slack <= chosen <= row["binMax"] + slack
            inside = ((every >= row["binMin"] - slack) & (every <= row["binMax"] + slack)).float().mean()
            assert row["binContains"] == pytest.approx(inside.item(), abs=3 / len(every))


def test_the_strongest_examples_come_first_and_no_interval_has_more_than_five(features, activations):
    for latent, feature in features.items():
        mine = [row for row in activations if int(row["index"]) == latent]
        strongest = [row["maxValue"] for row in mine if row["binMin"] == -1]
        assert strongest == sorted(strongest, reverse=True)
        assert bool(strongest) == (feature["frac_nonzero"] > 0)
        assert strongest[:1] == [feature["maxActApprox"]][: len(strongest)]
        intervals = [row["binMax"] for row in mine if row["binMin"] != -1]
        assert intervals == sorted(intervals, reverse=True)
        assert all(intervals.count(bound) <= 5 for bound in intervals)
        if mine:
            assert intervals.count(min(intervals)) == 5, "tokens on which it does not fire are in the lowest interval"


def test_the_upper_latents_of_two_levels_are_exported(export_words, tmp_path):
    words = export_words(tmp_path)
    words[words.index("temporal")] = "hierarchical"
    assert main([word for word in words if not word.startswith("--train.window")]) == 0
    rows = [row for file in tmp_path.glob("*/*/features/*") for row in checked(file, "Neuron")]
    assert len(rows) == 64
    assert sum(row["frac_nonzero"] > 0 for row in rows) > 5
    assert all(len(row["pos_str"]) == 10 for row in rows)


def without_time(folder) -> dict:
    def rows(file):
        return [{key: value for key, value in row.items() if key != "createdAt"} for row in rows_of(file)]

    return {file.relative_to(folder): rows(file) for file in sorted(folder.rglob("*.jsonl*"))}


def test_an_interrupted_export_goes_on_and_a_complete_one_loads_no_model(
    folder, export_words, tmp_path, monkeypatch, capsys
):
    write, written = command.write_atomically, []

    def interrupted(path, content, option):
        if path.name == "batch-1.jsonl.gz" and path.parent.name == "features":
            raise KeyboardInterrupt
        write(path, content, option)
        written.append(path)

    monkeypatch.setattr(command, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(export_words(tmp_path))
    kept = [path for path in written if path.name == "batch-0.jsonl.gz"]
    assert len(kept) == 2
    stamps = [path.stat().st_mtime_ns for path in kept]
    monkeypatch.setattr(command, "write_atomically", write)
    assert main(export_words(tmp_path)) == 0
    assert "64 latents in 3 files, 1 of them kept" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    (found,) = tmp_path.glob("*/*")
    assert without_time(found) == without_time(folder)
    assert len({row["createdAt"] for file in found.rglob("*.jsonl*") for row in rows_of(file)}) == 1
    monkeypatch.setattr(command, "model_loader", lambda *_: pytest.fail("loads a model"))
    assert main(export_words(tmp_path)) == 0
    assert "64 latents in 3 files, 3 of them kept" in capsys.readouterr().out


def test_latents_that_never_fire_have_no_file_of_examples(target, tmp_path, model_folder, text_file):
    from conftest import zero

    sae = zero(target)
    sae.save_model(tmp_path / "zero")
    words = [
        "export", "neuronpedia", str(tmp_path / "to"), "--sae", str(tmp_path / "zero"), "--model", str(model_folder),
        "--dataset", str(text_file), "--hook-name", target.hook_name, "--model-id", "m", *SHARED,
    ]  # fmt: skip
    assert main(words) == 0
    (found,) = (tmp_path / "to").glob("m/1-*")
    assert SET_NAME.fullmatch(found.name.removeprefix("1-"))
    assert not (found / "activations").exists()
    rows = [row for file in (found / "features").iterdir() for row in checked(file, "Neuron")]
    assert {(row["frac_nonzero"], row["maxActApprox"]) for row in rows} == {(0, 0)}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--n-contexts", "13"], r"another n_contexts: delete it, or give another FOLDER or --set-name"),
        (["--creator-name", "me"], "another creator"),
        (["--set-name", "a__b"], "--set-name is lower-case letters"),
        (["--set-name", "12"], "at least one letter"),
        (["--model-id", "A b"], "--model-id is lower-case letters"),
        (["--sae", "topk"], "an export holds one SAE"),
        (["--context-size", "1000"], "--context-size 1000 exceeds the model's 128 positions"),
        (["--latents-per-file", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_exported_is_one_line(folder, export_words, more, message):
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    with pytest.raises(UsageError, match=message):
        main(export_words(folder.parent.parent, *more))
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_other_folders_and_targets_are_refused(folder, export_words, tmp_path):
    with pytest.raises(UsageError, match="give another FOLDER"):
        main(export_words("/proc/x"))
    sae_variants.build("stock:topk", d_in=16, d_sae=32, k=4).save_inference_model(tmp_path / "narrow")
    narrow = export_words(tmp_path / "to")
    narrow[narrow.index("temporal")] = str(tmp_path / "narrow")
    with pytest.raises(UsageError, match=r"but blocks\.1\.hook_resid_post of .* is 32 wide"):
        main([word for word in narrow if not word.startswith("--train.")])
    assert not list((tmp_path / "to").iterdir()), "nothing is left that a second try would stumble over"
    with pytest.raises(UsageError, match="needs a language model"):
        main(["export", "neuronpedia", str(tmp_path), "--sae", "random", "--target", "synthetic"])
    copy = tmp_path / folder.parent.name / folder.name
    shutil.copytree(folder, copy)
    (copy / "export.json").write_text("[]")
    with pytest.raises(UsageError, match="is no record of an export"):
        main(export_words(tmp_path))
    (copy / "export.json").unlink()
    with pytest.raises(UsageError, match="holds other files"):
        main(export_words(tmp_path))


def test_names_are_those_that_neuronpedia_accepts():
    assert layer_of("blocks.11.attn.hook_z") == "11"
    assert layer_of("hook_embed") == "e"
    with pytest.raises(UsageError, match=r"by its layer, and ln_final\.hook_scale is in none"):
        layer_of("ln_final.hook_scale")
    assert slug("temporal[k=16]__x.y") == "temporal-k-16-x-y"
    assert len(slug("x" * 300)) == 128
    assert slug("x" * 300) != slug("x" * 301)


def test_equal_values_are_one_bar():
    histogram = Histogram.of(torch.full((7,), 2.0))
    assert sum(histogram.counts) == max(histogram.counts) == 7
    assert histogram.centres[histogram.counts.index(7)] == pytest.approx(2.0, abs=1 / BINS)


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom eval_runners.__main__ import main\n"
        "try: main(['export', 'neuronpedia', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'sae_lens', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
