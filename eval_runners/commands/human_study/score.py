"""python -m eval_runners human-study score: turn the answers of raters into results of the SAEs of a study.

A file of answers names its study and its rater. The key of the study, which `human-study make` wrote, gives the SAE of
each question.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval_runners.commands.human_study.files import COMMAND, find_key, read_answers, read_key
from eval_runners.contract.contract import RESULT_METRICS, UNSTRUCTURED, Result
from eval_runners.contract.registry import load_evaluator
from eval_runners.harness.options import add_output_option
from eval_runners.leaderboard.boards import make_boards
from eval_runners.leaderboard.terminal import print_boards
from eval_runners.measures.intrusion import Item, intrusion_scores
from eval_runners.store.envelope import output_class
from eval_runners.store.paths import without_paths
from eval_runners.store.result import validate_result, write_result
from sae_variants.cli.options import Parser
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_folder_writable

KINDS = {"people": "human", "models": "model"}
"""Category of the metrics -> kind of the raters."""
RATERS = {"people": "people", "models": "language models"}
"""Category of the metrics -> what summaries call the raters."""


def main(argv: list[str]) -> int:
    """Score the study, print the leaderboard, and write a result for each SAE.

    Raises:
        UsageError: answers or a key that do not fit.
    """
    parser = Parser(prog="python -m eval_runners human-study score", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="Answers, as the page and `judge` save them.")
    parser.add_argument(
        "--key", metavar="FILE", help="The key (default: the key of the study that lies beside the answers)."
    )
    add_output_option(parser)
    args = parser.parse_args(argv)
    files, output = [Path(file) for file in args.files], Path(args.output)
    by_rater = [read_answers(file) for file in files]
    if len(studies := {answers["study"] for answers in by_rater}) > 1:
        raise UsageError("the files answer different studies: score each study alone")
    key = read_key(Path(args.key)) if args.key else find_key(studies.pop(), files)
    _check_answers(key, files, by_rater)
    check_folder_writable(output)
    results = score_study(key, by_rater, [*COMMAND, "score", "FILE..."])  # file names would give raters' names away
    paths = [output / sae["path"] for sae in key["saes"]]
    for path, result in zip(paths, results, strict=True):
        validate_result(output_class(load_evaluator("human_study")), result)
        write_result(path, result, {})
    print_boards(make_boards(results))
    for path, result in zip(paths, results, strict=True):
        for line in describe_result(result):
            print(f"{result['sae_lens_id']}: {line}")
        print(path)
    unanswered = {answers["rater"]: len(key["items"]) - len(answers["answers"]) for answers in by_rater}
    if any(unanswered.values()):
        print(f"unanswered questions: {', '.join(f'{rater}: {count}' for rater, count in unanswered.items())}")
    return 0


def _check_answers(key: Mapping[str, Any], files: Sequence[Path], by_rater: Sequence[Mapping[str, Any]]) -> None:
    """Refuse answers to other questions than the key's, files without answers, and two files of one rater."""
    for file, answers in zip(files, by_rater, strict=True):
        if answers["study"] != key["study"]:
            raise UsageError(f"{file} answers another study than the key is of")
        if unknown := set(answers["answers"]) - set(key["items"]):
            raise UsageError(f"{file} answers question {min(unknown)}, which the study does not have")
        if not answers["answers"]:
            raise UsageError(f"{file} holds no answer")
    raters = [(answers["kind"], answers["rater"].strip()) for answers in by_rater]
    if doubled := next((rater for rater in raters if raters.count(rater) > 1), None):
        raise UsageError(f"two files are of the rater {doubled[1]!r}: give only one, or change the name in one of them")


def score_study(key: Mapping[str, Any], by_rater: Sequence[Mapping[str, Any]], command: Sequence[str]) -> list[Result]:
    """Score every SAE of a study.

    Args:
        key: as `read_key` returns it.
        by_rater: answers, as `read_answers` returns them.
        command: the command line, for the provenance.
    """
    items = {name: Item(known["sae"], known["has_latent"], known["intruder"]) for name, known in key["known"].items()}
    untrained = next((number for number, sae in enumerate(key["saes"]) if not sae["learns"]), None)
    results = []
    for number, sae in enumerate(key["saes"]):
        result = json.loads(json.dumps(sae["result"]))
        for category, kind in KINDS.items():
            raters = [answers["answers"] for answers in by_rater if answers["kind"] == kind]
            if raters:
                result[RESULT_METRICS][category] |= intrusion_scores(items, raters, number, untrained)
        unstructured = result[UNSTRUCTURED]
        unstructured["raters"] = [{"kind": a["kind"], "answers": len(a["answers"])} for a in by_rater]
        unstructured["study"] = key["study"]
        unstructured["provenance"]["command"] = shlex.join(without_paths(list(command)))
        results.append(result)
    return results


def describe_result(result: Result) -> list[str]:
    """A sentence for each kind of raters: accuracy, differences to the baselines, agreement."""
    lines = []
    for category, raters in RATERS.items():
        scores = result[RESULT_METRICS].get(category) or {}
        if scores.get("accuracy") is None:
            continue
        low, high = scores["accuracy_low"], scores["accuracy_high"]
        line = f"{raters} find the intruder in {scores['accuracy']:.0%} [{low:.0%}, {high:.0%}]"
        line += f" of {scores['answers']:.0f} answers"
        for difference, baseline, title in (
            ("over_random", "random_sae", "untrained"),
            ("difference", "control", "controls"),
        ):
            if scores.get(difference) is not None:
                interval = f"[{scores[f'{difference}_low']:+.0%}, {scores[f'{difference}_high']:+.0%}]"
                line += f", {scores[difference]:+.0%} {interval} against {scores[baseline]:.0%} ({title})"
        if scores.get("kappa") is not None:
            line += f"; kappa {scores['kappa']:.2f} between {scores['raters']:.0f} raters"
        lines.append(line)
    return lines
