"""Dataclass -> command line: each field is an option, the docstring under it is the help.

Options that were not given are absent from the result, so that a recipe's defaults can stand behind them.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, NoReturn

from sae_variants.common.errors import UsageError
from sae_variants.language_model import target as _targets
from sae_variants.language_model.target import Target


class Parser(argparse.ArgumentParser):
    """Prints one line on bad input instead of the whole usage."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def field_docs(config_class: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass, inherited ones included."""
    docs: dict[str, str] = {}
    for cls in reversed(config_class.__mro__):
        if cls.__module__ == "builtins":
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        except (OSError, TypeError):
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for statement, after in pairwise(statements):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = after.value if isinstance(after, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    docs[statement.target.id] = " ".join(text.value.split())
    return docs


def dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse_value(text: str) -> Any:
    """`32` -> 32, `1e-3` -> 0.001, `true` -> True, `none` -> None, `1,2` -> [1, 2], anything else -> itself."""
    word = {"true": True, "false": False, "none": None}
    if text.lower() in word:
        return word[text.lower()]
    if "," in text:
        return [parse_value(part) for part in text.split(",")]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _typed(annotation: str) -> Any:
    def convert(text: str) -> Any:
        value = parse_value(text)
        kind = annotation.split("|")[0].strip()
        if kind.startswith("tuple"):
            one = _typed(kind.removeprefix("tuple[").partition(",")[0])
            parts = [part.strip() for part in text.split(",") if part.strip()]
            if not parts:
                raise argparse.ArgumentTypeError("at least one value is needed")
            return tuple(one(part) for part in parts)
        if kind == "int" and (isinstance(value, bool) or not isinstance(value, int)):
            if isinstance(value, float) and value.is_integer():
                return int(value)
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
        if kind == "float" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number")
        if kind == "bool" and not isinstance(value, bool):
            raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
        return text if kind == "str" else float(value) if kind == "float" else value

    return convert


def _metavar(annotation: str) -> str:
    kind = annotation.split("|")[0].strip()
    return "A,B,..." if kind.startswith("tuple") else kind.upper()


def _default(value: Any) -> str:
    if value is None:
        return ""
    return f" (default: {','.join(map(str, value)) if isinstance(value, tuple) else value})"


def add_fields(parser: argparse.ArgumentParser, config_class: type, title: str) -> None:
    """One option per field; a field that was not given is absent from the parsed namespace."""
    group = parser.add_argument_group(title)
    docs = field_docs(config_class)
    for f in fields(config_class):
        flag: dict[str, Any] = {"nargs": "?", "const": True} if str(f.type) == "bool" else {}
        group.add_argument(
            dashed(f.name),
            dest=f.name,
            **flag,
            type=_typed(str(f.type)),
            default=argparse.SUPPRESS,
            metavar=_metavar(str(f.type)),
            help=docs.get(f.name, "").replace("%", "%%") + _default(f.default),
        )


def given(args: argparse.Namespace, config_class: type) -> dict[str, Any]:
    """The fields of a dataclass that stood on the command line."""
    return {f.name: getattr(args, f.name) for f in fields(config_class) if hasattr(args, f.name)}


def split_unknown(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(words the parser knows, options that it does not, each with its value), wherever they stand."""
    known = set(parser._option_string_actions)
    ours, extra, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word.partition("=")[0] in known:
            ours.append(word)
            continue
        extra.append(word)
        if "=" not in word and words and not words[0].startswith("--"):
            extra.append(words.pop(0))
    return ours, extra


def extra_options(extra: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """`--name value` and `--name=value` pairs that the parser did not know, as a dict of underscored names."""
    options: dict[str, Any] = {}
    words = list(extra)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--" + prefix) or len(name) == len("--" + prefix):
            raise UsageError(f"unknown option or argument {word!r}")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UsageError(f"option {name} needs a value")
            value = words.pop(0)
        options[name.removeprefix("--" + prefix).replace("-", "_")] = parse_value(value)
    return options


def add_grid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--grid", action="append", default=[], metavar="FIELD=A,B,...",
        help="train one SAE for every value of a field; may be repeated, every combination is a cell",
    )  # fmt: skip
    parser.add_argument(
        "--vary", action="append", default=[], metavar="FIELD=A,FIELD=B",
        help="train also one SAE that differs in these fields alone, as for an ablation; may be repeated",
    )  # fmt: skip


def add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target")
    group.add_argument(
        "--target", default=_targets.DEFAULT, help="language model, hook and text (default: %(default)s)"
    )
    group.add_argument("--model", metavar="FOLDER", help="instead of --target: a local Hugging Face causal LM")
    group.add_argument("--hook-name", metavar="HOOK", help="with --model: e.g. blocks.3.hook_resid_post")
    group.add_argument("--dataset", metavar="PATH", help="with --model: a .txt, .jsonl or .parquet file, or a folder")
    group.add_argument(
        "--trained", metavar="FOLDER", help="where trained SAEs lie (default: ~/.cache/sae_variants/trained)"
    )
    group.add_argument("--device", default=None, help="cpu, cuda, ... (default: cuda if there is one)")


def target_of(args: argparse.Namespace) -> Target:
    return _targets.choose(args.target, args.model, args.hook_name, args.dataset)


def targets_of(args: argparse.Namespace) -> list[Target]:
    """Those of a command that takes several, parted by commas."""
    names = dict.fromkeys(name.strip() for name in args.target.split(","))
    return [_targets.choose(name, args.model, args.hook_name, args.dataset) for name in names]


def device_of(args: argparse.Namespace) -> str:
    """The device asked for, or the best there is. UsageError if it is not to be had."""
    import torch

    if args.device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=args.device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {args.device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return args.device


def seeds(text: str) -> list[int]:
    """`0` or `0,1,2`."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers like 0,1,2") from error
    if min(found) < 0:
        raise argparse.ArgumentTypeError("seeds must not be negative")
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
    return found


def whole(text: str) -> int:
    """A number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def positive(text: str) -> int:
    if whole(text) < 1:
        raise argparse.ArgumentTypeError("there must be at least 1")
    return int(text)


def quiet() -> None:
    """Notices of SAELens, TransformerLens and datasets that a user of these commands can do nothing about."""
    import warnings

    if not sys.warnoptions:
        warnings.filterwarnings("ignore", message="Dataset is not tokenized")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
