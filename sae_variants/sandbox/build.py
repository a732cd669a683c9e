"""Run `sae_variants.commands.make_sandbox` under its earlier name, `python -m sae_variants.sandbox.build`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("sae_variants.commands.make_sandbox", run_name="__main__", alter_sys=True)
