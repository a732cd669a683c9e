"""Time of `python -m eval_runners leaderboard` over a thousand results, in a fresh process, beside that of `list`.

python tests/benchmarks/leaderboard.py [--files 1000] [--repeats 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_leaderboard import over_seeds


def seconds(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "eval_runners", *words], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.files // 4):
            level = 15.0 * 2 ** (number % 3)  # many rows of one L0, which are ranked with one another
            for result in over_seeds(f"sae{number}", [0.9, 0.91, 0.92, 0.93], l0=level):
                path = Path(folder) / f"{number}-{result['eval_id']}.json"
                path.write_text(json.dumps(result | {"eval_result_details": [{"latent": i} for i in range(500)]}))
        leaderboard = ["leaderboard", "--results", folder, "--csv", f"{folder}/t.csv"]
        pairs = [(seconds(["list"]), seconds(leaderboard)) for _ in range(args.repeats)]
    listed, ranked = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"leaderboard over {args.files} files: {ranked:.2f} s, of which starting Python and listing: {listed:.2f} s")


if __name__ == "__main__":
    main()
