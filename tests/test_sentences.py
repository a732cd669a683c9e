"""Numbers in the sentences of documents: what they are, when they are stale, and when their sentence is false."""

from __future__ import annotations

import pytest
from test_documents import document
from test_leaderboard import made, over_seeds

from eval_runners.__main__ import main
from sae_variants.common.errors import UsageError

RESULTS = [
    *over_seeds("a", [0.93, 0.94, 0.96, 0.90]),
    *over_seeds("b[k=2 window=4]", [0.91, 0.91, 0.92, 0.87]),  # below a by 0.02, 0.03, 0.04, 0.03
    *over_seeds("stock:c", [0.94, 0.92, 0.96], ev=0.7),  # above a by 0.01, -0.02, 0
    *over_seeds("d", [0.91, 0.91996, 0.93998]),  # below a by 0.02, 0.02004, 0.02002
    made("alone", 0, 0.5),
    *over_seeds("a", [0.5, 0.5, 0.5], model_name="other"),
]
DEFAULTS = "<!-- numbers --model tiny --metric ce_loss_score --seeds 0,1,2 -->\n"


def filled(tmp_path, sentence, defaults=DEFAULTS):
    """The sentence as it is after its document was filled."""
    file, fill = document(tmp_path, RESULTS, defaults + sentence)
    assert main(fill) == 0
    assert main([*fill, "--check"]) == 0, "what was just filled is up to date"
    text = file.read_text()
    assert text.startswith(defaults)
    return text.removeprefix(defaults)


@pytest.mark.parametrize(
    ("stale", "fresh", "comment"),
    [
        # Standard deviation 0.01 over three seeds: half of the interval is 4.302653 * 0.01 / sqrt(3) = 0.02484.
        ("0.999 ± 0.999", "0.030 ± 0.025", "a - b[k=2 window=4]"),
        ("9.99 ±\n  0.9", "0.03 ±\n  0.02", "a - b[k=2 window=4]"),
        ("9.99\n  ± 0.9", "0.03\n  ± 0.02", "a - b[k=2 window=4]"),
        ("0.9 ± 0.9", "0.03 ± 0.02", "a - b[k=2 window=4]"),  # with one digit half of the interval would be 0.0
        ("-9.99", "-0.03", "b[k=2 window=4] - a"),
        # Standard deviation 0.00002: 4.302653 * 0.00002 / sqrt(3) = 0.0000497.
        ("0.000 ± 0.000", "0.02002 ± 0.00005", "a - d"),
        # Mean -0.01 / 3 and standard deviation 0.015275: half of the interval is 0.03795.
        ("0.000 ± 0.000", "-0.003 ± 0.038", "? stock:c - a"),
        ("0.0 ± 0.0", "0.1 ± 0.0", "a - stock:c: explained_variance_corrected"),
        # Mean 2.83 / 3 and standard deviation 0.015275.
        ("0.000 ± 0.000", "0.943 ± 0.038", "a"),
        ("12.5 %", "94.3 %", "a"),
        ("25.0", "30.0", "a: core.l0"),
        # Four seeds: mean 3.73 / 4; differences of standard deviation 0.0081650, 3.182446 * 0.0081650 / 2 = 0.01299.
        ("1.0000", "0.9325", "a, seeds 0,1,2,3"),
        ("0.0000 ± 0.0000", "0.0300 ± 0.0130", "a - b[k=2 window=4]: ce_loss_score, seeds 0,1,2,3"),
        ("0.7", "0.5", "other/a"),
        # A difference that is told apart from 0 is not written as 0.
        ("0", "0.03", "a - b[k=2 window=4]"),
        ("0.0", "0.03", "a - b[k=2 window=4]"),
        ("−0.0 ± 0.9", "−0.03 ± 0.02", "b[k=2 window=4] - a"),
        ("0 %", "3 %", "a - b[k=2 window=4]"),
        ("1", "0", "? stock:c - a"),
    ],
)
def test_a_number_is_what_the_comment_behind_it_says(stale, fresh, comment, tmp_path):
    sentence = "at k = 2 it is (%s<!-- " + comment + " -->) and 7 more"
    assert filled(tmp_path, sentence % stale) == sentence % fresh


def test_defaults_hold_until_the_next_ones_and_without_seeds_all_common_ones_count(tmp_path):
    four = "<!-- numbers --model tiny --metric ce_loss_score -->\n0.0000 ± 0.0000<!-- a - b[k=2 window=4] -->\n"
    other = "<!-- numbers --model other --metric frac_alive -->\n0.5<!-- a -->\n"
    text = filled(tmp_path, four + other, defaults="0.5<!-- alone: ce_loss_score -->\n")
    assert text == four.replace("0.0000 ± 0.0000", "0.0300 ± 0.0130") + other.replace("0.5", "1.0")


def test_a_stale_number_is_reported_and_generated_blocks_are_left_alone(tmp_path, capsys):
    text = "<!-- leaderboard --model tiny --sae a -->\n0.5<!-- nobody -->\n<!-- /leaderboard -->\n0.5<!-- a -->\n"
    file, fill = document(tmp_path, RESULTS, DEFAULTS + text)
    assert main(fill) == 0
    assert "nobody" not in file.read_text()
    file.write_text(stale := file.read_text().replace("0.9<!-- a -->", "0.8<!-- a -->"))
    assert main([*fill, "--check"]) == 1
    assert "out of date: run make leaderboard; line 21: '0.8' is now '0.9'\n" in capsys.readouterr().out
    assert file.read_text() == stale


@pytest.mark.parametrize(
    ("sentence", "says"),
    [
        (
            "`c` keeps 0.9<!-- a --> and loses\n**more** by 0.001 ± 0.001<!-- a - stock:c -->.",
            r'README.md: line 3: <!-- a - stock:c -->: rewrite the sentence "\.\.\. `c` keeps 0.9 and loses \*\*more\*\* by 0.001": '
            "it is now 0.003333 ± 0.037946, not told apart from 0$",
        ),
        ("by 0.030<!-- b[k=2 window=4] - a -->", "it is now -0.030000 ± 0.024841, told apart from 0$"),
        ("by -0.030<!-- a - b[k=2 window=4] -->", "it is now 0.030000 ± 0.024841, told apart from 0$"),
        ("by 0.030<!-- ? a - b[k=2 window=4] -->", "it is now 0.030000 ± 0.024841, told apart from 0$"),
        ("0.9 <!-- a -->", "README.md: line 2: <!-- a -->: it has no number right before it"),
        ("**0.9** ± 0.1<!-- a -->", "0.1 is only a part of its number"),
        ("1,024<!-- a -->", "line 2: <!-- a -->: 024 is only a part of its number: write it like 1024"),
        ("1.024.5<!-- a -->", "024.5 is only a part of its number"),
        ("1e-2<!-- a -->", "2 is only a part of its number"),
        ("0.013 +- 0.002<!-- a -->", "0.002 is only a part of its number"),
        ("0.013 +/- 0.002<!-- a -->", "0.002 is only a part of its number"),
        (".9<!-- a -->", "9 is only a part of its number"),
        ("by –0.03<!-- b[k=2 window=4] - a -->", "0.03 is only a part of its number: write it like 1024, -0.01"),
        ("by − 0.03<!-- b[k=2 window=4] - a -->", "0.03 is only a part of its number"),
        ("by −0.03<!-- a - b[k=2 window=4] -->", "it is now 0.030000 ± 0.024841, told apart from 0$"),
        ("0.9<!-- a", "line 2: a comment begins with <!-- and ends with -->"),
        ("0.9<!- a -->", "a comment begins with <!-- and ends with -->"),
        ("0.9<-- a -->", "a comment begins with <!-- and ends with -->"),
        ("0.9<!-- a\n0.9<!-- a -->", "line 2: <!-- a 0.9<!-- a -->: a comment begins with"),
        ("0.9<!-- TODO -->", "unknown row 'TODO'"),
        ("**0.9** <!-- TODO -->", "<!-- TODO -->: it has no number right before it"),
        ("0.9 %\n<!-- TODO -->", "<!-- TODO -->: it has no number right before it"),
        ("nine<!-- a: core.l0 -->", "it has no number right before it"),
        ("nine<!-- ? b[k=2 window=4], seeds 0 -->", "it has no number right before it"),
        ("nine<!-- aa - other/a -->", "it has no number right before it"),
        ("<!-- leaderboard -->", "a block begins with <!-- leaderboard --> at the end of a line, and ends with"),
        (
            "<!-- numbers --model 'tiny -->",
            "<!-- numbers --model 'tiny -->: its options cannot be read: no closing quot",
        ),
        ("<!-- numbers --help -->", "<!-- numbers --help -->: unrecognized arguments: --help$"),
        ("0.9<!--a-b-->", "unknown row 'a-b'"),
        ("0.9<!-- ? a -->", r"unknown row '\? a'"),
        ("0.9<!-- stock:d -->", "unknown row 'stock:d': did you mean 'stock:c'"),
        ("0.9<!-- b[k=2] -->", r"unknown row 'b\[k=2\]': did you mean 'b\[k=2 window=4\]'"),
        ("0.9<!-- a: ce_loss -->", "unknown column 'ce_loss': did you mean 'ce_loss_score'"),
        ("0.9<!-- a: slow.latents -->", "unknown column 'slow.latents'"),
        ("0.9<!-- a - alone, seeds 0 -->", "its rows share 1 seeds: a difference needs 3"),
        ("0.9<!-- a - stock:c, seeds 2,3,1 -->", "stock:c has no core.ce_loss_score of seed 3"),
        ("0.9<!-- a, seeds 1,1 -->", "argument --seeds: '1,1' names a seed twice"),
        ("0.9 ± 0.1<!-- alone, seeds 0 -->", "one seed has no interval"),
        ("<!-- numbers --model tiny -->\n0.9<!-- a -->", "it names no metric"),
        (
            "<!-- numbers --metric ce_loss_score -->\n0.9<!-- a -->",
            r"2 rows are called a \(other, tiny\): name --model",
        ),
        ("<!-- numbers --model tini -->\n0.9<!-- a: l0 -->", "unknown model 'tini': did you mean 'tiny'"),
        (
            "<!-- numbers --modell tiny -->",
            "line 2: <!-- numbers --modell tiny -->: unrecognized arguments: --modell tiny$",
        ),
        ("<!-- numbers --seeds a -->", "not a list of whole numbers"),
    ],
)
def test_what_is_false_or_not_there_is_named_in_one_line(sentence, says, tmp_path):
    file, fill = document(tmp_path, RESULTS, DEFAULTS + sentence)
    for words in (fill, [*fill, "--check"]):
        with pytest.raises(UsageError, match=says) as error:
            main(words)
        assert "\n" not in str(error.value)
    assert file.read_text() == DEFAULTS + sentence


def test_a_row_without_the_metric_says_why(tmp_path):
    del (results := [made("a"), made("b")])[1]["eval_result_unstructured"]["explained_variance_corrected"]
    _, fill = document(tmp_path, results, "0.8<!-- b: explained_variance_corrected -->")
    with pytest.raises(UsageError, match=r"b has no core\.explained_variance_corrected: not among its numbers"):
        main(fill)


@pytest.mark.parametrize(
    "text",
    [
        "```markdown\n0.5<!-- nobody -->\n<!-- leaderboard -->\n<!-- /leaderboard -->\n```",
        "~~~~\n```\n~~~\n0.5<!-- nobody\n~~~~",
        "An example:\n\n    <!-- numbers --metric no -->\n\n    0.5<!-- nobody -->",
        "see `0.5<!-- a -->` and ``a ` 0.5<!- a\n-->``",
        "<!-- TODO: more -->\nSee `a`<!-- TODO --> in 2024.\n\n<!-- TODO - later -->",
    ],
)
def test_code_and_comments_on_nothing_are_left_alone(text, tmp_path):
    assert filled(tmp_path, text + "\n\n0.9<!-- a -->\n") == text + "\n\n0.9<!-- a -->\n"


@pytest.mark.parametrize(
    "above", ["- one `tick\n- ", "- item\n\n    ", "a `b\nc` ", "\\` ", "<!-- ` -->\n", "two\n    "]
)
def test_what_only_resembles_code_is_filled(above, tmp_path):
    assert filled(tmp_path, above + "0.5<!-- a --> and `code`\n") == above + "0.9<!-- a --> and `code`\n"


def test_every_refusal_of_a_document_has_a_line(tmp_path):
    text = "0.5<!-- nobody -->\n<!-- leaderboard --l0 3000 -->\n<!-- /leaderboard -->\n\n0.5<!-- a, seeds 9 -->\n"
    file, fill = document(tmp_path, RESULTS, DEFAULTS + text)
    with pytest.raises(UsageError) as error:
        main(fill)
    starts = [(2, "<!-- nobody -->"), (3, "<!-- leaderboard --l0 3000 -->"), (6, "<!-- a, seeds 9 -->")]
    lines = str(error.value).split("\n")
    assert len(lines) == len(starts)
    for line, (number, comment) in zip(lines, starts, strict=True):
        assert line.startswith(f"{file}: line {number}: {comment}: ")
