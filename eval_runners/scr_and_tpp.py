"""SAEBench's SCR and TPP, one after the other: its module of both; see `scr` and `tpp`."""

from __future__ import annotations

if __name__ == "__main__":
    import sys

    from eval_runners.__main__ import main
    from sae_variants.common.console import run_command

    run_command(lambda: main(["scr_and_tpp", *sys.argv[1:]]))
