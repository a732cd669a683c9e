"""python -m eval_runners human-study judge: a language model answers the questions that people are asked.

Through any endpoint that speaks OpenAI's API and is asked for; a key, if it needs one, comes from OPENAI_API_KEY and is
never shown. After an interruption, the same command asks what is left.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from eval_runners.commands.human_study.files import read_answers, read_key
from eval_runners.measures.intrusion import CHOICES
from sae_variants.cli.options import Parser
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_file_writable, write_atomically

KEY_VARIABLE = "OPENAI_API_KEY"
TRIES, TIMEOUT = 3, 120
PASSING = (429, 500, 502, 503, 504)
"""What an endpoint answers that may answer better soon."""


class Refused(Exception):
    """One question that an endpoint does not take."""


def main(argv: list[str]) -> int:
    parser = Parser(prog="python -m eval_runners human-study judge", description=__doc__)
    parser.add_argument("key", metavar="KEY", help="what `make` wrote beside the page")
    parser.add_argument("--url", required=True, help="an OpenAI-compatible endpoint, such as http://localhost:8000/v1")
    parser.add_argument("--model", required=True, metavar="NAME", help="what the endpoint calls the model")
    parser.add_argument("--output", metavar="FILE", help="its answers (default: beside the key)")
    args = parser.parse_args(argv)
    key = read_key(Path(args.key))
    if not re.match(r"https?://[^/\s]+", args.url):
        raise UsageError(f"--url must begin with http:// or https://, not {args.url!r}")
    if "@" in args.url:
        raise UsageError(f"--url must hold no password: set {KEY_VARIABLE}")
    if not (secret := os.environ.get(KEY_VARIABLE, "")).isascii() or re.search(r"\s", secret):
        raise UsageError(f"{KEY_VARIABLE} holds what no key does: a blank, a line's end, or letters that are not ASCII")
    name = re.sub(r"[^\w.-]+", "_", args.model)
    output = Path(args.output) if args.output else Path(args.key).with_name(f"{name}.answers.json")
    check_file_writable(output, "--output")
    said: dict[str, Any] = {"study": key["study"], "rater": args.model, "kind": "model", "answers": {}}
    if output.exists():
        there = read_answers(output)
        if (there["study"], there["rater"], there["kind"]) != (said["study"], said["rater"], "model"):
            raise UsageError(f"{output} holds other answers; give another --output")
        said = there
    from tqdm import tqdm

    left = [name for name in key["items"] if name not in said["answers"]]
    unclear, refused = 0, []
    for name in tqdm(left, desc="questions"):
        try:
            choice = _choice(_ask(args.url, args.model, make_prompt(key["items"][name])))
        except Refused as error:
            refused.append(str(error))
            if len(refused) == TRIES and not said["answers"]:
                raise UsageError(f"{refused[0]}: check --model") from error
            continue
        if choice is None:
            unclear += 1
            continue
        said["answers"][name] = choice
        write_atomically(output, json.dumps(said), "--output")
    print(f"{output}: {len(said['answers'])} of {len(key['items'])} answers")
    if unclear:
        print(f"{unclear} replies did not name one number from 1 to {CHOICES}; the same command asks those again")
    if refused:
        print(f"{len(refused)} questions were refused, the first so: {refused[0]}")
    return 0 if said["answers"] else 1


def make_prompt(excerpts: list[dict[str, Any]]) -> str:
    """One question in words; the token on which a feature is strongest in double brackets."""
    lines = [
        f"{number}. " + "".join(f"[[{t}]]" if i == one["at"] else t for i, t in enumerate(one["tokens"]))
        for number, one in enumerate(excerpts, start=1)
    ]
    return (
        f"Four of these {CHOICES} excerpts of text have something in common at or before the marked place, and one "
        "does not belong. Sometimes nothing is to be seen: then guess.\n\n"
        + "\n\n".join(lines)
        + "\n\nWhich one does not belong? Answer with its number alone."
    )


def _choice(reply: str) -> int | None:
    """The number in a reply that holds one, from 0."""
    found = set(re.findall(rf"\b[1-{CHOICES}]\b", reply))
    return int(found.pop()) - 1 if len(found) == 1 else None


def _ask(url: str, model: str, question: str) -> str:
    """The reply. UsageError in one line for an endpoint that does not give one; the key is in none of them."""
    import requests

    secret = os.environ.get(KEY_VARIABLE)
    body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
    place = url.rstrip("/") + "/chat/completions"

    def signed(request: Any) -> Any:  # in the place of what ~/.netrc may hold
        if secret:
            request.headers["Authorization"] = f"Bearer {secret}"
        return request

    for attempt in range(TRIES):
        try:
            answer = requests.post(place, json=body, timeout=TIMEOUT, auth=signed)
        except requests.RequestException as error:
            if attempt + 1 == TRIES:
                raise UsageError(f"cannot reach {place} ({type(error).__name__}): check --url") from error
        else:
            if answer.status_code not in PASSING or attempt + 1 == TRIES:
                return _reply(place, answer)
        _wait(attempt)
    raise AssertionError("unreachable")


def _reply(place: str, answer: Any) -> str:
    if answer.status_code in (401, 403):
        raise UsageError(f"{place} refuses (HTTP {answer.status_code}): set {KEY_VARIABLE} to a key of it")
    if answer.status_code in (400, 413, 422):
        raise Refused(f"{place} answers HTTP {answer.status_code}: {' '.join(answer.text.split())[:200]}")
    if answer.status_code != 200:
        raise UsageError(f"{place} answers HTTP {answer.status_code}: check --url and --model")
    try:
        return str(answer.json()["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(f"{place} answers what is no chat completion: check --url") from error


def _wait(attempt: int) -> None:
    import time

    time.sleep(2**attempt)
