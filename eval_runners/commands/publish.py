"""python -m eval_runners publish: an SAE, its results and a card, as a repository on the Hugging Face Hub.

    README.md                                     card: what it is, how to load it, its results beside the baselines
    <id>/cfg.json, sae_weights.safetensors, sparsity.safetensors, runner_cfg.json         SAELens' layout
    <id>/results/<evaluation>.json                its results

--dry-run DIR writes that folder and uploads nothing. An SAE without results, or with one that says it is untrained, is
refused unless --force is given, and then the card begins with that. No path of this machine is published. The token is
that of huggingface_hub (`hf auth login`, or HF_TOKEN).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval_runners.harness.find_sae import is_folder, locate_all, resolve_requests
from eval_runners.harness.options import parse_with_overrides
from eval_runners.leaderboard.boards import make_boards
from eval_runners.leaderboard.render import format_count
from eval_runners.leaderboard.rows import Row, metrics_of, written_at
from eval_runners.leaderboard.select import add_result_folders, read_requested
from eval_runners.store.paths import without_paths
from eval_runners.store.read import Result, provenance_of, read_results, weight_hash_of
from eval_runners.views.card import render_card
from sae_variants.cli.options import (
    Parser,
    add_target_options,
    parse_seeds,
    target_from,
)
from sae_variants.common.console import hide_host_warnings
from sae_variants.common.errors import UsageError
from sae_variants.language_model.hub import is_transport
from sae_variants.training.plan import RECORD, TRACE

COPIED = ("sae_weights.safetensors", "sparsity.safetensors", TRACE)
SAID = {
    401: "the Hub does not know you: log in with `hf auth login`, or set HF_TOKEN",
    403: "your token may not write there: give it write access, or another --repo",
    404: "there is no such repository, or you may not see it: check --repo",
    409: "the repository has changed in the meantime: run the command again",
    429: "the Hub asks for patience: run the command again in a few minutes",
}


def main(argv: list[str]) -> int:

    parser = Parser(prog="python -m eval_runners publish", description=__doc__)
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="repository on the Hub, made if need be")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--dry-run", metavar="DIR", help="write what would be published there, and upload nothing")
    parser.add_argument("--licence", default="mit", help="the weights' licence, in the Hub's spelling (default: mit)")
    parser.add_argument(
        "--sae", action="append", required=True, metavar="NAME", dest="saes",
        help="a variant that is trained, or a folder; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=parse_seeds, default=[0], metavar="0,1,2", help="seeds of variants (default: 0)"
    )
    parser.add_argument("--force", action="store_true", help="publish what has no results, or is untrained")
    add_result_folders(parser)
    add_target_options(parser)
    parser.epilog = "A variant trained with other fields takes --train.FIELD VALUE, as for the evaluations."
    args, overrides = parse_with_overrides(parser, argv)
    _check_repo(args.repo)
    hide_host_warnings()
    names = list(dict.fromkeys(args.saes))
    requests = resolve_requests(names, target_from(args), overrides, seeds=args.seeds, trained=args.trained)
    for request in requests:
        if request.plan and not request.plan.is_trained:
            raise UsageError(
                f"{request.plan.label} is not trained with seed {request.plan.settings.seed}: train and score it "
                "first, by python -m eval_runners suite with the same --sae, --train and --seeds"
            )
        if request.plan is None and not is_folder(request.name):
            raise UsageError(f"{request.name} is on the Hub already")
    found = locate_all(requests, "cpu")
    results, _ = read_requested(args)
    if args.dry_run:
        folder = Path(args.dry_run)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"--dry-run {folder} is not empty: give a new folder")
        try:
            saes = build_repository(folder, args.repo, found, results, args.licence, args.force)
        except OSError as error:
            raise UsageError(f"cannot write --dry-run {folder}: {error.strerror}") from error
        return _say(folder, saes, args.repo)
    with tempfile.TemporaryDirectory() as made:
        there = already_there(args.repo)
        saes = build_repository(Path(made), args.repo, found, results, args.licence, args.force, there)
        upload(Path(made), args.repo, args.private, replaced=[sae["id"] for sae in saes])
        return _say(None, saes, args.repo)


def _check_repo(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UsageError(f"--repo is written user/name, not {repo!r}")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"--repo: {str(error).splitlines()[0]}") from error


def build_repository(
    folder: Path,
    repo: str,
    found: list[Any],
    results: list[Result],
    licence: str,
    force: bool,
    there: Mapping[str, list[Result]] | None = None,
) -> list[dict[str, Any]]:
    """Writes the repository's files; what the card says of each SAE.

    Args:
        there: id -> results of the SAEs that the repository holds already; the card keeps them.

    Raises:
        UsageError: an SAE has no results or is untrained, and `force` is not given.
    """
    there = there or {}
    boards = make_boards([*results, *(result for own in there.values() for result in own)])
    saes, warnings = [], []
    for one in found:
        own = _newest([result for result in results if weight_hash_of(result) == one.weight_hash])
        reasons = [reason for result in own for reason in result["eval_result_unstructured"]["not_trained_because"]]
        problem = f"untrained: {'; '.join(dict.fromkeys(reasons))}" if reasons else "" if own else "without any result"
        if problem and not force:
            score = "; score it first, by python -m eval_runners suite with the same --sae, --train and --seeds"
            raise UsageError(f"{one.label} is {problem}{'' if own else score}; --force publishes it all the same")
        if problem:
            warnings.append(f"{one.label} is {problem}.")
        saes.append(_described(one, own))
    if len({sae["id"] for sae in saes}) < len(saes):
        saes = [{**sae, "id": f"{sae['id']}-{sae['hash'][:6]}"} for sae in saes]
    for one, sae in zip(found, saes, strict=True):
        _copy(one.folder, folder / sae["id"], sae["results"])
    others = [_known(name, own) for name, own in there.items() if name not in {sae["id"] for sae in saes}]
    (folder / "README.md").write_text(render_card(repo, saes, boards, licence, " ".join(warnings), others))
    return saes


def _newest(results: list[Result]) -> list[Result]:
    """One result of each evaluation."""
    return list({r["eval_type_id"]: r for r in sorted(results, key=written_at)}.values())


def _known(name: str, own: list[Result]) -> dict[str, Any]:
    """What the card says of an SAE that the repository holds, from its results alone."""
    said, cfg = ({}, {}) if not own else (provenance_of(own[0]), own[0].get("sae_cfg_dict") or {})
    label = str(own[0].get("sae_lens_id")) if own else name
    row = Row(label, cfg.get("d_sae"), said.get("training_tokens"), {r["eval_type_id"]: [r] for r in own})
    return {
        "id": name, "label": label, "name": row.name.replace(":", "-"), "hook_name": said.get("hook_name") or "-",
        "model": own[0]["eval_config"].get("model_name") if own else None, "d_sae": row.d_sae or "-",
        "l0": f"{row.l0:.1f}" if row.l0 else "-", "tokens": format_count(row.training_tokens),
        "seed": said.get("seed"), "hash": said.get("weight_hash"), "row": row,
    }  # fmt: skip


def _described(one: Any, own: list[Result]) -> dict[str, Any]:
    sae = one.load("cpu")
    metadata = sae.cfg.metadata
    row = Row(one.label, sae.cfg.d_sae, one.training_tokens, {r["eval_type_id"]: [r] for r in own})
    hook_name = metadata.hook_name or "hook"
    l0 = f"-L0-{row.l0:.0f}" if row.l0 else ""
    seed = f"-seed{one.seed}" if one.seed is not None else ""
    # what differs from a recipe is no part of a file's name, but must not fall into the folder of another SAE
    kind = f"-{(one.kind or one.weight_hash)[:6]}" if "[" in one.label else ""
    name = one.label.partition("[")[0].replace(":", "-").replace("/", "-")
    stock = type(sae).__module__.startswith("sae_lens.")
    return {
        "id": f"{hook_name}-{name}-{sae.cfg.d_sae}{l0}{seed}{kind}", "label": one.label, "name": name,
        "model": metadata.model_name, "hook_name": hook_name, "d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae,
        "l0": f"{row.l0:.1f}" if row.l0 else "-", "tokens": format_count(one.training_tokens), "seed": one.seed,
        "plain": sae.cfg.architecture() if stock else "", "hash": one.weight_hash, "row": row, "results": own,
    }  # fmt: skip


def _copy(source: Path, folder: Path, own: list[Result]) -> None:
    """SAELens' files and the results, without any path of this machine."""
    (folder / "results").mkdir(parents=True)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    runner = next((source / name for name in (RECORD, "runner_cfg.json") if (source / name).is_file()), None)
    texts = {"cfg.json": json.loads((source / "cfg.json").read_text())}
    if runner:
        texts["runner_cfg.json"] = json.loads(runner.read_text())
    texts |= {f"results/{result['eval_type_id']}.json": result for result in own}
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(without_paths(value), indent=2) + "\n")
    if without_paths(texts["cfg.json"]) == texts["cfg.json"]:
        shutil.copyfile(source / "cfg.json", folder / "cfg.json")  # its results are known by the hash of these bytes


@contextlib.contextmanager
def _refusals(repo: str) -> Iterator[None]:
    """What the Hub refuses, or that it cannot be reached, as one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UsageError(f"cannot publish to {repo}: {SAID[401]}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = SAID.get(status, "the Hub failed: run the command again")
        raise UsageError(f"cannot publish to {repo} (HTTP {status}): {said}") from error
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not is_transport(cause):  # an upload that breaks off is wrapped
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise UsageError(f"cannot reach the Hub ({type(error).__name__}): check the network, then run again") from error


def _api(endpoint: str | None = None, token: str | None = None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint, token, library_name="sae-variants", library_version=version("sae-variants"))


def already_there(repo: str) -> dict[str, list[Result]]:
    """Id -> results of the SAEs that the repository holds; none where there is no such repository."""
    from huggingface_hub.errors import RepositoryNotFoundError

    found: dict[str, list[Result]] = {}
    with _refusals(repo):
        api = _api()
        try:
            files = sorted(api.list_repo_files(repo))
        except RepositoryNotFoundError:
            return {}
        for name in (file.removesuffix("/cfg.json") for file in files if file.endswith("/cfg.json")):
            of = [file for file in files if file.startswith(f"{name}/results/") and file.endswith(".json")]
            paths = [Path(api.hf_hub_download(repo, file)) for file in of]
            found[name] = read_results(sorted({path.parent for path in paths}))[0]
    return found


def upload(
    folder: Path,
    repo: str,
    private: bool,
    endpoint: str | None = None,
    token: str | None = None,
    replaced: Iterable[str] = (),
) -> None:
    """One commit with all files, so that an upload that was cut off leaves nothing behind.

    Args:
        replaced: folders of which nothing stays that is not uploaded now.

    Raises:
        UsageError: the Hub refuses, or cannot be reached; in one line.
    """
    api = _api(endpoint, token)
    with _refusals(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        stale = [f"{name}/*" for name in replaced]
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="SAEs, results and card", delete_patterns=stale or None
        )


def _say(folder: Path | None, saes: list[dict[str, Any]], repo: str) -> int:
    """Where it lies, how to load it, and the stanza that makes it one of SAELens' known releases."""
    import yaml

    print(f"{folder}: not uploaded" if folder else f"published: {repo}")
    for sae in saes:
        print(f"  {sae['id']}: SAE.from_pretrained({repo!r}, {sae['id']!r}), or --sae {repo}:{sae['id']}")
    entries = []
    for sae in saes:
        core = {metric.key: sae["row"].number(("core", metric)) for metric in metrics_of("core")}
        said = {"l0": core["l0"], "variance_explained": core["explained_variance_corrected"]}
        known = {field: round(number[0], 3) for field, number in said.items() if number}
        entries.append({"id": sae["id"], "path": sae["id"], **known})
    release = {"model": saes[0]["model"], "repo_id": repo, "conversion_func": None, "saes": entries}
    stanza = {repo.replace("/", "-"): release}
    print("\nFor SAELens' pretrained_saes.yaml:\n")
    print(yaml.safe_dump(stanza, sort_keys=False).strip())
    return 0
