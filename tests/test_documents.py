"""Tables of documents and the picture: chosen columns, generated blocks, and whether they are up to date.

`test_sentences` is on numbers in sentences.
"""

from __future__ import annotations

import pytest
from test_leaderboard import ROOT, board_of, made, over_seeds, write

from eval_runners.__main__ import main
from eval_runners.leaderboard.boards import select_columns
from eval_runners.leaderboard.render import to_markdown
from eval_runners.scaling import Scaling
from sae_variants.common.errors import UsageError

README = "before\n<!-- leaderboard --sae a,b -->\nold\n<!-- /leaderboard -->\nafter\n"


def document(tmp_path, results, text):
    """A document with that text, and the words of the command that fills its blocks from these results."""
    write(tmp_path / "results", results)
    file = tmp_path / "README.md"
    file.write_text(text)
    return file, ["leaderboard", "--results", str(tmp_path / "results"), "--readme", str(file)]


def test_tables_in_a_file_are_generated_and_checked(tmp_path, capsys):
    results = [*over_seeds("a", [0.9, 0.91]), *over_seeds("c", [0.8, 0.81])]
    file, fill = document(tmp_path, results, README)
    assert main([*fill, "--check"]) == 1
    assert file.read_text() == README
    assert "out of date: run make leaderboard" in capsys.readouterr().out
    assert main(fill) == 0
    text = file.read_text()
    assert text.startswith("before\n<!-- leaderboard --sae a,b -->\n")
    assert text.endswith("<!-- /leaderboard -->\nafter\n")
    assert "64 latents, 1000 training tokens, 2 seeds. core: text, context 32." in text
    assert "| `a` | 30.0 | 0.905 ± 0.064 |" in text
    assert "`c`" not in text
    assert main([*fill, "--check"]) == 0
    assert "up to date" in capsys.readouterr().out


def test_a_block_without_options_refuses_them(tmp_path):
    block = "<!-- reliability --model tiny -->\n<!-- /reliability -->\n"
    _, fill = document(tmp_path, over_seeds("a", [0.9, 0.91]), block)
    with pytest.raises(UsageError, match="has no options: leave out '--model tiny'"):
        main(fill)


def test_sizes_in_which_rows_differ_have_a_column():
    text = to_markdown([board_of(made("a"), made("b", d_sae=128), made("random", tokens=0, trained=False))])
    assert "1000 training tokens, 1 seeds. core" in text, "an untrained row has no training tokens"
    assert "| SAE | L0 | latents | CE score ↑ |" in text
    assert "| `b` | 30.0 | 128 |" in text


def test_columns_are_chosen_by_key_in_that_order_and_need_no_head(tmp_path):
    results = [*over_seeds("a", [0.9, 0.91]), made("b")]
    del results[-1]["eval_result_metrics"]["model_performance_preservation"]
    del results[-1]["eval_result_unstructured"]["explained_variance_corrected"]
    block = "<!-- leaderboard --columns explained_variance_corrected,core.ce_loss_score,l0 --no-commands -->\n<!-- /leaderboard -->"
    file, fill = document(tmp_path, results, block)
    assert main(fill) == 0
    text = file.read_text()
    assert "| SAE | L0 | seeds | explained variance ↑ | CE score ↑ | L0 |" in text
    assert "python -m" not in text
    assert "| `b` | 30.0 | 1 | - | - | 30.0 |" in text, "its L0 is among the columns"
    file.write_text(block.replace(",l0 ", " "))
    assert main(fill) == 0
    assert "`b`" not in file.read_text(), "a row without any of the numbers"
    file.write_text(block.replace("--no-commands", "--complete"))
    assert main(fill) == 0
    assert "| `b` |" not in file.read_text(), "a row without one of the numbers"


def test_a_table_of_a_document_has_at_most_ten_columns_and_a_row(tmp_path):
    probing = {f"sae_top_{k}_test_accuracy": 0.7 for k in (1, 2, 5, 10, 20, 50)}
    results = [made("a"), made("a") | {"eval_type_id": "sparse_probing", "eval_result_metrics": {"sae": probing}}]
    keys = ",".join(["ce_loss_score", "frac_alive", "explained_variance_corrected", *probing])
    file, fill = document(tmp_path, results, f"<!-- leaderboard --columns {keys} -->\n<!-- /leaderboard -->")
    with pytest.raises(UsageError, match="has 11 columns, more than 10: choose with --columns"):
        main(fill)
    file.write_text(f"<!-- leaderboard --columns {keys.partition(',')[2]} -->\n<!-- /leaderboard -->")
    assert main(fill) == 0
    for options, says in (
        ("--l0 3000", "line 1: <!-- leaderboard --l0 3000 -->: no results for its table"),
        ("--columns ce_loss", "did you mean 'ce_loss_score'"),
        ("--sae 'a", "<!-- leaderboard --sae 'a -->: its options cannot be read: no closing quotation$"),
        ("--help", "<!-- leaderboard --help -->: unrecognized arguments: --help$"),
    ):
        file.write_text(f"<!-- leaderboard {options} -->\n<!-- /leaderboard -->")
        with pytest.raises(UsageError, match=says):
            main(fill)


def test_a_column_that_two_evaluations_have_is_named_with_its_evaluation():
    scaling = made("a") | {"eval_type_id": "scaling", "eval_result_metrics": {"error": {"l0": 29.0}}}
    board = board_of(made("a"), scaling)
    with pytest.raises(UsageError, match=r"the column 'l0' is ambiguous: write core\.l0 or scaling\.l0"):
        select_columns(board, ["l0"])
    assert [column.key for column in select_columns(board, ["scaling.l0", "ce_loss_score"]).shown] == [
        "scaling.l0",
        "core.ce_loss_score",
    ]


def test_variants_and_evaluations_have_generated_tables(tmp_path):
    results = [made("a", seed) for seed in range(3)]
    for result, seconds in zip(results, (60, 90, 600), strict=True):
        result["eval_result_unstructured"]["provenance"] |= {"target": "sandbox", "seconds": seconds}
    elsewhere = made("b")
    elsewhere["eval_result_unstructured"]["provenance"]["seconds"] = 6000
    file, fill = document(
        tmp_path,
        [*results, elsewhere],
        "<!-- variants -->\n<!-- /variants -->\n<!-- evaluations -->\n<!-- /evaluations -->\n",
    )
    assert main([*fill, "--check"]) == 1
    assert main(fill) == 0
    text = file.read_text()
    assert "| name | idea | paper | saves as |" in text
    (temporal,) = [line for line in text.splitlines() if line.startswith("| `temporal` |")]
    assert temporal.endswith("| `refined` |")
    (topk,) = [line for line in text.splitlines() if line.startswith("| `topk` |")]
    assert topk.endswith("| stock `topk` |")
    assert "](https://arxiv.org/abs/" in temporal
    assert "| `hierarchical` |" in text
    assert "`batchtopk`" in next(line for line in text.splitlines() if line.startswith("| `stock:ARCHITECTURE` |"))
    assert "| name | question | minutes |" in text
    (core,) = [line for line in text.splitlines() if line.startswith("| `core` |")]
    assert core.endswith("| 1.5 |"), "the median of 1, 1.5 and 10 minutes on the sandbox"
    assert next(line for line in text.splitlines() if line.startswith("| `n2g` |")).endswith("| - |")


def test_the_picture_draws_a_metric_over_l0(tmp_path, capsys):
    write(
        tmp_path / "r",
        [*over_seeds("a", [0.9, 0.91]), *over_seeds("a[k=60]", [0.95, 0.96], l0=60.0), made("b", 0, 0.8)],
    )
    command = ["leaderboard", "--results", str(tmp_path / "r"), "--picture"]
    assert main([*command, str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == ""
    assert main([*command, str(tmp_path / "p.svg"), "--columns", "frac_alive"]) == 0
    assert (tmp_path / "p.svg").read_text().count("<!-- a -->") == 1, "one line for both L0"
    with pytest.raises(UsageError, match=r"--picture ends with \.png, \.svg, \.pdf, not 'p\.txt'"):
        main([*command, str(tmp_path / "p.txt")])
    (tmp_path / "q-dark.png").mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*q-dark\.png; give another --picture"):
        main([*command, str(tmp_path / "q.png")])
    write(tmp_path / "r" / "more", [made("c", context_size=64)])
    with pytest.raises(UsageError, match=r"one board, not 2: their conditions differ \(core: context_size is \d+ here"):
        main([*command, str(tmp_path / "p.png"), "--model", "tiny", "--evals", "core"])


@pytest.mark.parametrize(
    ("name", "says"),
    [("law.csv", r"not .law\.csv."), ("law", "not 'law'"), ("law.svg", r"of scaling ends with \.png,")],
)
def test_a_law_is_not_drawn_in_another_format(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Scaling, "summarize_all", lambda self, results: ([], {"law.csv": b"", "law.png": b""}))
    words = ["leaderboard", "--results", "results/published", "--model", "sandbox", "--evals", "scaling", "--recipe"]
    with pytest.raises(UsageError, match=says):
        main([*words, "--sae", "topk", "--picture", str(tmp_path / name)])
    assert list(tmp_path.iterdir()) == []


def test_boards_of_several_models_are_chosen_by_their_names(tmp_path):
    write(tmp_path / "r", [made("a"), made("b", model_name="other")])
    with pytest.raises(UsageError, match=r"one board, not 2: choose with --model \(other, tiny\)"):
        main(["leaderboard", "--results", str(tmp_path / "r"), "--picture", str(tmp_path / "p.png")])


DOCUMENTS = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "results").glob("*.md")))]


def test_tables_and_numbers_in_the_documents_are_those_of_the_published_results(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = [word for file in DOCUMENTS for word in ("--readme", file)]
    assert main(["leaderboard", *words, "--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("file", DOCUMENTS)
def test_documents_have_no_wide_table_and_fold_their_commands(file):
    lines = (ROOT / file).read_text().splitlines()
    assert all(line.count(" | ") < 10 for line in lines if line.startswith("| "))
    assert file != "README.md" or "<summary>" not in "".join(lines)


def test_make_leaderboard_fills_every_document():
    recipe = (ROOT / "Makefile").read_text().partition("leaderboard:")[2].partition("\n\n")[0]
    assert "README.md $(wildcard results/*.md)" in recipe
