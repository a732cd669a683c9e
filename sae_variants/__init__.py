"""Sparse autoencoder variants for SAELens.

`names()` lists them, `build(name, d_in=..., d_sae=...)` builds one for training, `load(folder)` reads a trained one.
`@register(Config)` above a training class adds a variant, in this package or another.

SAELens' own runner and loader know our architectures as soon as both packages are imported, in either order. Importing
SAELens takes seconds and `--help` must not, so `import sae_variants` does not import it.
"""

from __future__ import annotations

from types import ModuleType

import wrapt

from sae_variants.common.errors import UsageError
from sae_variants.formats.layouts import load
from sae_variants.language_model.folders import register_sandbox
from sae_variants.registry.build import build
from sae_variants.registry.contract import TrainingHooks, VariantConfig
from sae_variants.registry.variants import import_variants, register
from sae_variants.registry.variants import variant_names as names

__all__ = ["TrainingHooks", "UsageError", "VariantConfig", "build", "load", "names", "register"]


@wrapt.when_imported("sae_lens")
def _register_all(module: ModuleType) -> None:
    import_variants()
    register_sandbox()
