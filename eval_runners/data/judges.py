"""Judges that answer SAEBench's questions about latents: a language model behind an endpoint, or marked words.

`words` needs no network. Its explanation of a latent is the words that are marked most often, and it finds those
examples that hold one of them. It is no language model, and its scores bound from below what one reaches on latents for
words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from eval_runners.data.endpoint import FEWEST_REFUSED, Refused, ask, check_endpoint, require_reachable
from eval_runners.store.cache import cache_root
from sae_variants.common.errors import UsageError
from sae_variants.common.files import write_atomically
from sae_variants.common.hashing import hash_value

Messages = Sequence[Mapping[str, str]]
PEOPLE = "people reach an accuracy of 0.65 and agree with each other on 0.87 of such questions (arXiv 2507.08473)"
"""Published anchors of a judge's score."""
WORDS = "words"
"""Name of the judge that needs no network."""
MOST_WORDS = 8
"""Words of an explanation."""
QUOTED = re.compile(r"«(.*?)»")
MARKED, NUMBERED = re.compile(r"<<(.*?)>>"), re.compile(r"^(\d+)\. (.*)$", re.MULTILINE)
REFUSED = "\N{EMPTY SET}refused"
"""Stands for a reply that there is not; SAEBench leaves its latent out."""
CHARACTERS = 4
"""Of a token, about."""


def check_judge(url: str, model_name: str, budget: int | None, n_latents: int, tokens_of_latent: int) -> None:
    """Check an endpoint and a budget, and print what will be asked; without an endpoint nothing is.

    Raises:
        UsageError: one of them cannot be right.
    """
    if bool(url) != bool(model_name):
        raise UsageError("--url and --model-name belong together: the endpoint, and its name of a language model")
    if not url:
        return
    check_endpoint(url)
    needed = tokens_of_latent * n_latents
    if budget is not None and needed > budget:
        raise UsageError(
            f"{n_latents} latents take about {needed} tokens, more than --budget {budget}: lower --n-latents or raise "
            "the budget"
        )
    require_reachable(url)
    judge = EndpointJudge(url, model_name)
    if judge.answer(TRIAL, 8) == REFUSED:  # a wrong key, name or address is found before anything is trained
        raise UsageError(f"{judge.refused[0]}: check --model-name and --url")
    print(f"{model_name} is asked about {needed} tokens for each SAE, less those of replies that are kept")


TRIAL = ({"role": "user", "content": "Reply with the word yes."},)
"""Question that is asked first, to see whether the endpoint answers at all."""


class Judge(Protocol):
    """Answers one question."""

    def answer(self, messages: Messages, max_tokens: int) -> str:
        """Return the reply to a conversation."""
        ...


class WordsJudge:
    """Marked words as explanations, and the same words as a test."""

    def answer(self, messages: Messages, max_tokens: int) -> str:
        """Return an explanation if examples are marked, else the numbers of the examples that hold its words."""
        text = messages[-1]["content"]
        if marked := Counter(word.strip().lower() for word in MARKED.findall(text) if word.strip()):
            words = [word for word, _ in marked.most_common(MOST_WORDS)]
            return "This neuron activates on " + " ".join(f"«{word}»" for word in words)
        explanation, _, examples = text.partition("Here are the examples:")
        words = QUOTED.findall(explanation)
        found = [
            number for number, line in NUMBERED.findall(examples) if any(_holds(line.lower(), word) for word in words)
        ]
        return ", ".join(found) or "None"


@dataclass
class EndpointJudge:
    """A language model behind an endpoint; its replies are kept, so that nothing is asked twice."""

    url: str
    """The endpoint's address."""
    model: str
    """Its name of the language model."""
    tokens: int = 0
    """Tokens, about, of those that were asked now."""
    asked: int = 0
    """Replies of this run."""
    reused: int = 0
    """Replies that an earlier run has kept."""
    refused: list[str] = field(default_factory=list)
    """Reasons why questions were not accepted."""

    def answer(self, messages: Messages, max_tokens: int) -> str:
        """Return the reply, from the disk or from the endpoint.

        Raises:
            UsageError: the endpoint does not answer.
        """
        if REFUSED in messages[-1]["content"]:  # its explanation was refused
            return REFUSED
        kept = self._folder / f"{hash_value([self.model, list(messages), max_tokens], size=12)}.json"
        if (reply := _read_kept(kept)) is not None:
            self.reused += 1
            return reply
        try:
            reply = ask(self.url, self.model, messages, max_tokens=max_tokens)
        except Refused as error:
            self.refused.append(str(error))
            if len(self.refused) >= max(FEWEST_REFUSED, self.asked + self.reused + 1):
                raise UsageError(f"{error}: check --model-name") from error
            return REFUSED
        self.asked += 1
        self.tokens += sum(len(message["content"]) for message in messages) // CHARACTERS + max_tokens
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps({"reply": reply, "messages": list(messages)}), "the answers")
        return reply

    @property
    def _folder(self) -> Path:
        root = cache_root()
        return root.with_name(f"{root.name}-answers") / hash_value(self.url.rstrip("/"), size=8)


def _read_kept(path: Path) -> str | None:
    """A reply that is kept; None where there is none, or the file is damaged."""
    try:
        reply = json.loads(path.read_text())["reply"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return reply if isinstance(reply, str) else None


def _holds(line: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", line) is not None if word[:1].isalnum() else word in line
