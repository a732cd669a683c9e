"""python -m eval_runners human-study score: what raters answered, as results of the SAEs of the study.

A file of answers names its study and its rater; the key of that study, which `human-study make` wrote, says which
question is about which SAE.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval_runners.commands.human_study.files import key_of, read_answers, read_key
from eval_runners.harness.options import add_output_option
from eval_runners.measures.intrusion import Item, intrusion_scores
from sae_variants.cli.options import Parser
from sae_variants.common.errors import UsageError


def main(argv: list[str]) -> int:
    from eval_runners.contract.registry import load_evaluator
    from eval_runners.leaderboard.boards import make_boards
    from eval_runners.leaderboard.terminal import print_boards
    from eval_runners.store.envelope import output_class
    from eval_runners.store.result import validate_result, write_result
    from sae_variants.common.files import check_folder_writable

    parser = Parser(prog="python -m eval_runners human-study score", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="answers of raters, as the page and `judge` save them")
    parser.add_argument("--key", metavar="FILE", help="the key (default: the one of that study beside the answers)")
    add_output_option(parser)
    args = parser.parse_args(argv)
    files = [Path(file) for file in args.files]
    said = [read_answers(file) for file in files]
    if len(studies := {one["study"] for one in said}) > 1:
        raise UsageError("the files answer different studies: score each on its own")
    key = read_key(Path(args.key)) if args.key else key_of(studies.pop(), files)
    for file, one in zip(files, said, strict=True):
        if one["study"] != key["study"]:
            raise UsageError(f"{file} answers another study than the key is of")
        if unknown := set(one["answers"]) - set(key["items"]):
            raise UsageError(f"{file} answers question {min(unknown)}, which the study does not have")
    raters = [(one["kind"], one["rater"].strip()) for one in said]
    if empty := [str(file) for file, one in zip(files, said, strict=True) if not one["answers"]]:
        raise UsageError(f"{empty[0]} holds no answer")
    if doubled := next((rater for rater in raters if raters.count(rater) > 1), None):
        raise UsageError(f"two files are of the rater {doubled[1]!r}: give one of them, or change its name")
    check_folder_writable(Path(args.output))
    results = score_study(
        key, said, ["python", "-m", "eval_runners", "human-study", "score", "FILE..."]
    )  # raters' names
    for one, result in zip(key["saes"], results, strict=True):
        validate_result(output_class(load_evaluator("human_study")), result)
        write_result(Path(args.output) / one["path"], result, {})
    print_boards(make_boards(results))
    for one, result in zip(key["saes"], results, strict=True):
        for line in describe_result(result):
            print(f"{result['sae_lens_id']}: {line}")
        print(Path(args.output) / one["path"])
    open_questions = [f"{one['rater']}: {len(key['items']) - len(one['answers'])}" for one in said]
    if any(len(one["answers"]) < len(key["items"]) for one in said):
        print(f"questions left open: {', '.join(open_questions)}")
    return 0


def score_study(key: dict[str, Any], said: list[dict[str, Any]], command: list[str]) -> list[dict[str, Any]]:
    """A result for every SAE of the study."""
    import shlex

    from eval_runners.store.paths import without_paths

    items = {name: Item(known["sae"], known["has_latent"], known["intruder"]) for name, known in key["known"].items()}
    untrained = next((number for number, one in enumerate(key["saes"]) if not one["learns"]), None)
    of_kind = {"people": "human", "models": "model"}
    results = []
    for number, one in enumerate(key["saes"]):
        result = json.loads(json.dumps(one["result"]))
        for category, kind in of_kind.items():
            raters = [answers["answers"] for answers in said if answers["kind"] == kind]
            if raters:
                scores = intrusion_scores(items, raters, number, untrained)
                result["eval_result_metrics"][category] |= scores
        ours = result["eval_result_unstructured"]
        ours["raters"] = [{"kind": answers["kind"], "answers": len(answers["answers"])} for answers in said]
        ours["study"] = key["study"]
        ours["provenance"]["command"] = shlex.join(without_paths(command))
        results.append(result)
    return results


def describe_result(result: dict[str, Any]) -> list[str]:
    """What a result says, in words."""
    found = []
    for category, who in (("people", "people"), ("models", "language models")):
        of = result["eval_result_metrics"].get(category) or {}
        if of.get("accuracy") is None:
            continue
        line = f"{who} find the intruder in {of['accuracy']:.0%} [{of['accuracy_low']:.0%}, {of['accuracy_high']:.0%}]"
        line += f" of {of['answers']:.0f} answers"
        for less, whose, what in (("over_random", "random_sae", "untrained"), ("difference", "control", "controls")):
            if of.get(less) is not None:
                interval = f"[{of[f'{less}_low']:+.0%}, {of[f'{less}_high']:+.0%}]"
                line += f", {of[less]:+.0%} {interval} against {of[whose]:.0%} ({what})"
        if of.get("kappa") is not None:
            line += f"; kappa {of['kappa']:.2f} between {of['raters']:.0f} raters"
        found.append(line)
    return found
