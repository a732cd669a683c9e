"""Run `sae_variants.commands.measure_sandbox` under its earlier name, `python -m sae_variants.sandbox.measure`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("sae_variants.commands.measure_sandbox", run_name="__main__", alter_sys=True)
