"""python -m eval_runners export saebench FOLDER: results as files that SAEBench's own graphs and scripts read.

    FOLDER/<evaluation>/<target>_<SAE>_seed<n>_eval_results.json

Those are SAEBench's file names; the evaluations are SAEBench's, each in the folder of its name. SAEBench's graphs match
an SAE's files by name, group SAEs by `architecture`, and read `training_tokens` from the SAE's config. There the files
hold the name of the variant, or SAEBench's name of a stock architecture, and the tokens of the training. No number is
changed. Imports no torch.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from eval_runners.contract.contract import Result
from eval_runners.leaderboard.rows import Row, provenance_of
from eval_runners.leaderboard.select import add_filters, add_result_folders, find_boards
from eval_runners.store.paths import without_paths
from eval_runners.store.read import conditions_of
from sae_variants.cli.options import Parser
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_folder_writable, write_atomically
from sae_variants.common.hashing import hash_value

ENDING = "_eval_results.json"
LONGEST = 200
"""Bytes of a name before the ending; file systems allow 255, the ending and that of a temporary file included."""
FOLDERS = {
    "core": "core",
    "sparse_probing": "sparse_probing",
    "sparse_probing_sae_probes": "sparse_probing_sae_probes",
    "absorption_first_letter": "absorption",
    "autointerp": "autointerp",
    "scr": "scr",
    "tpp": "tpp",
    "unlearning": "unlearning",
}
"""Type of the results that SAEBench's graphs read -> SAEBench's folder. They read no others, of SAEBench or of ours."""
STOCK_NAMES = {"batchtopk": "batch_topk", "matryoshka_batchtopk": "matryoshka_batch_topk"}
"""SAELens' name of an architecture -> SAEBench's, where they differ."""
TRAINERS = ("standard", "jumprelu", "topk", "batch_topk", "p_anneal", "matryoshka_batch_topk", "gated")
"""SAEBench's names of architectures."""
MISREAD = ("tpp", "scr", "absorption", "autointerp", "sparse_probing", "unlearning")
"""Parts of a path from which SAEBench's graphs conclude, in this order, that a file is of another evaluation."""


def main(argv: list[str]) -> int:
    """Run the command. Returns 1 if a file holds no result."""
    parser = Parser(prog="python -m eval_runners export saebench", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="Folder to write to; files of the same name are replaced.")
    add_result_folders(parser)
    add_filters(parser)
    args = parser.parse_args(argv)
    boards, broken = find_boards(args)
    files: dict[str, Result] = {}
    for board in boards:
        evaluations = [name for name in FOLDERS if name in board.conditions]
        for name, result in (file for row in board.rows for file in _files_of(row, evaluations)):
            is_other = name in files and conditions_of(files[name]) != conditions_of(result)
            ending = f"_{hash_value(conditions_of(result))[:6]}{ENDING}" if is_other else ENDING
            files[name.removesuffix(ENDING) + ending] = result
    if not files:
        raise UsageError(f"no results of {', '.join(FOLDERS)} among those: SAEBench's graphs read no others")
    folder = check_folder_writable(Path(args.folder), "FOLDER")
    for name, result in files.items():
        write_atomically(folder / name, json.dumps(result, indent=2, allow_nan=False) + "\n", "FOLDER")
    others = {path.relative_to(folder).as_posix() for path in folder.glob(f"*/*{ENDING}")} - set(files)
    if others:
        print(
            f"warning: {folder} also holds {len(others)} results that are not of this export: {min(others)}",
            file=sys.stderr,
        )
    print(f"{folder}: {len(files)} results, of {', '.join(sorted({name.partition('/')[0] for name in files}))}")
    if missing := {Path(name).name for name in files} - {Path(name).name for name in files if name.startswith("core/")}:
        print(
            f"warning: SAEBench's graphs take L0 from core, which {len(missing)} of the SAEs lack: {min(missing)}",
            file=sys.stderr,
        )
    if words := [word for word in MISREAD if word in str(folder.resolve())]:
        print(
            f"warning: SAEBench's graphs read the evaluation from the path, and take {words[0]!r} in "
            f"{folder.resolve()} for one: give them relative paths, or export to another folder",
            file=sys.stderr,
        )
    return 1 if broken else 0


def _files_of(row: Row, evaluations: Iterable[str]) -> Iterator[tuple[str, Result]]:
    """Path in the folder, and content, of each of a row's results of these evaluations."""
    for evaluation in evaluations:
        for result in row.results.get(evaluation, []):
            seed = provenance_of(result).get("seed")
            name = _name(str(result.get("sae_lens_release_id")), row.label, f"seed{seed}" if seed is not None else "")
            yield f"{FOLDERS[evaluation]}/{name}{ENDING}", _as_saebench_reads(row, result)


def _name(target: str, label: str, seed: str) -> str:
    """Return the first part of a file's name; a long one ends in a hash of the label instead of the label's end."""
    words = [re.sub(r"[^\w.=-]+", "-", word).strip("-") for word in (target, label, seed) if word]
    for word in MISREAD:
        words = [part.replace(word, f"{word[0]}-{word[1:]}") for part in words]
    name = "_".join(words).encode()
    if len(name) <= LONGEST:
        return name.decode()
    start = name[: LONGEST - 40].decode(errors="ignore")
    return "_".join([f"{start}-{hash_value([target, label])}", *words[2:]])


def _as_saebench_reads(row: Row, result: Result) -> Result:
    """Return a copy of a result whose config names the variant and its training tokens."""
    exported = without_paths(copy.deepcopy(result))
    if not provenance_of(result):
        return exported  # a result of SAEBench
    cfg = exported.setdefault("sae_cfg_dict", {})
    cfg["saved_architecture"] = cfg.get("architecture")
    cfg["architecture"] = _trainer_name(row.name)
    cfg["training_tokens"] = row.training_tokens
    return exported


def _trainer_name(name: str) -> str:
    """Return an SAE's name in SAEBench's graphs, which tells a variant from SAEBench's architecture of that name."""
    if name.startswith("stock:"):
        architecture = name.removeprefix("stock:")
        return STOCK_NAMES.get(architecture, architecture)
    return f"{name} (sae-variants)" if name in TRAINERS else name
