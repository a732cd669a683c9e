"""Sparse autoencoder variants for SAELens.

`names()` lists them, `build(name, d_in=..., d_sae=...)` makes one to train, `load(folder)` reads a trained one;
`@register(Config)` above a training class makes a new one, in another package, too.
After `import sae_variants` SAELens' own runner and loader know our architectures as well.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from sae_variants.common.errors import UsageError
from sae_variants.language_model.folders import register_sandbox
from sae_variants.registry.build import build, load
from sae_variants.registry.contract import TrainingHooks, VariantConfig
from sae_variants.registry.variants import import_variants, register
from sae_variants.registry.variants import variant_names as names

__all__ = ["TrainingHooks", "UsageError", "VariantConfig", "build", "load", "names", "register"]


class _RegisterAfter(MetaPathFinder):
    """Registers our architectures as soon as SAELens has been imported, whichever comes first.

    Importing SAELens takes seconds, and `--help` must not; so `import sae_variants` waits for it instead.
    """

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "sae_lens":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("sae_lens")
        if spec is not None and spec.loader is not None:
            _run_after(spec.loader)
        return spec


def _run_after(loader: Loader) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        _register_all()

    loader.exec_module = exec_module  # type: ignore[method-assign]


def _register_all() -> None:
    import_variants()
    register_sandbox()


if "sae_lens" in sys.modules:
    _register_all()
else:
    sys.meta_path.insert(0, _RegisterAfter())
