"""python -m eval_runners publish: SAEs, their results and a card, as a repository on the Hugging Face Hub.

    README.md                                     the card: what the SAEs are, how to load them, their results
    <id>/cfg.json, sae_weights.safetensors, sparsity.safetensors, runner_cfg.json         SAELens' layout
    <id>/results/<evaluation>.json                the results of the SAE

--dry-run DIR writes that folder and uploads nothing. An SAE without results, or with a result that calls it untrained,
is refused unless --force is given; then the card begins with a warning. No path of this machine is published. The token
is that of huggingface_hub (`hf auth login`, or HF_TOKEN).
"""

from __future__ import annotations

import re
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval_runners.harness.find_sae import SAERequest, locate_all, resolve_requests
from eval_runners.harness.options import add_sae_option, parse_with_overrides
from eval_runners.leaderboard.select import add_result_folders, read_requested
from sae_variants.cli.options import Parser, add_target_options, parse_seeds, target_from
from sae_variants.common.console import hide_host_warnings
from sae_variants.common.errors import UsageError
from sae_variants.formats.source import is_folder

if TYPE_CHECKING:
    from eval_runners.contract.contract import Result
    from eval_runners.contract.located import LocatedSAE


def main(argv: list[str]) -> int:
    """Publish SAEs.

    Returns:
        0.

    Raises:
        UsageError: an SAE that cannot or should not be published, or a Hub that refuses or cannot be reached.
    """
    args, overrides = parse_with_overrides(_parser(), argv)
    _check_repo(args.repo)
    hide_host_warnings()
    names = list(dict.fromkeys(args.saes))
    requests = resolve_requests(names, target_from(args), overrides, seeds=args.seeds, trained=args.trained)
    _check_requests(requests)
    located = locate_all(requests, "cpu")
    results, _ = read_requested(args)
    return _write_folder(args, located, results) if args.dry_run else _upload(args, located, results)


def _parser() -> Parser:
    parser = Parser(prog="python -m eval_runners publish", description=__doc__)
    parser.add_argument(
        "--repo", required=True, metavar="USER/NAME", help="Repository on the Hub, created if it does not exist."
    )
    parser.add_argument("--private", action="store_true", help="Create the repository as a private repository.")
    parser.add_argument(
        "--dry-run", metavar="DIR", help="Write the repository's files to a folder, and upload nothing."
    )
    parser.add_argument(
        "--licence", default="mit", help="Licence of the weights, in the Hub's spelling (default: %(default)s)."
    )
    add_sae_option(parser, "A variant that is trained, or a folder; may be repeated.")
    parser.add_argument(
        "--seeds", type=parse_seeds, default=[0], metavar="0,1,2", help="Seeds of variants (default: 0)."
    )
    parser.add_argument("--force", action="store_true", help="Publish SAEs that have no results, or are untrained.")
    add_result_folders(parser)
    add_target_options(parser)
    parser.epilog = "A variant trained with other fields takes --train.FIELD VALUE, as for the evaluations."
    return parser


def _check_repo(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UsageError(f"--repo is written user/name, not {repo!r}")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"--repo: {str(error).splitlines()[0]}") from error


def _check_requests(requests: Sequence[SAERequest]) -> None:
    """Refuse variants that are not trained, and SAEs that are on the Hub already."""
    for request in requests:
        if request.plan and not request.plan.is_trained:
            raise UsageError(
                f"{request.plan.label} is not trained with seed {request.plan.settings.seed}: train and score it "
                "first, by python -m eval_runners suite with the same --sae, --train and --seeds"
            )
        if request.plan is None and not is_folder(request.name):
            raise UsageError(f"{request.name} is on the Hub already")


def _write_folder(args: Namespace, located: Sequence[LocatedSAE], results: Sequence[Result]) -> int:
    from eval_runners.commands.publish.repository import build_repository, print_published

    folder = Path(args.dry_run)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--dry-run {folder} is not empty: give a new folder")
    try:
        saes = build_repository(folder, args.repo, located, results, args.licence, args.force)
    except OSError as error:
        raise UsageError(f"cannot write --dry-run {folder}: {error.strerror}") from error
    print_published(f"{folder}: not uploaded", saes, args.repo)
    return 0


def _upload(args: Namespace, located: Sequence[LocatedSAE], results: Sequence[Result]) -> int:
    from eval_runners.commands.publish.hub import read_repository, upload
    from eval_runners.commands.publish.repository import build_repository, print_published

    with tempfile.TemporaryDirectory() as temporary:
        folder, kept = Path(temporary), read_repository(args.repo)
        saes = build_repository(folder, args.repo, located, results, args.licence, args.force, kept)
        upload(folder, args.repo, args.private, replaced=[sae.id for sae in saes])
    print_published(f"published: {args.repo}", saes, args.repo)
    return 0
