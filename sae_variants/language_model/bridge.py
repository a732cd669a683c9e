"""TransformerLens' bridge over a Hugging Face model: its modules compute, under the names of TransformerLens' hooks.

It serves the models that TransformerLens does not convert, or converts to other numbers.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def make_bridge(hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: str) -> HookedTransformer:
    """Return a model that runs `hf_model`'s modules and answers the calls of a HookedTransformer.

    Args:
        hf_model: Loaded model; its modules are wrapped.
        tokenizer: Its tokenizer.
        device: Device to move it to.
    """
    from transformer_lens.model_bridge import TransformerBridge

    hf_model.set_attn_implementation("eager")  # attention patterns are hooks too
    moved: Any = hf_model.requires_grad_(False)
    bridge: Any = TransformerBridge.boot_transformers(
        "bridge", hf_model=moved.to(device), tokenizer=tokenizer, device=device, dtype=hf_model.dtype
    )
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    bridge.__class__ = _bridge_class()
    return bridge


@cache
def _bridge_class() -> type:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge

    class Bridge(TransformerBridge):
        """Bridge that SAEBench's type checks accept, and that can stop after the last layer.

        TransformerLens' own runs on to the logits there.
        """

        __class__ = property(lambda self: HookedTransformer)  # pyright: ignore

        def forward(self, input: Any, *args: Any, stop_at_layer: int | None = None, **kwargs: Any) -> Any:
            """Run the model; after `stop_at_layer` layers return the residual stream."""
            if stop_at_layer is None or stop_at_layer != self.cfg.n_layers:
                return super().forward(input, *args, stop_at_layer=stop_at_layer, **kwargs)
            stream: list[Any] = []
            last = f"blocks.{stop_at_layer - 1}.hook_resid_post"
            with self.hooks(fwd_hooks=[(last, lambda acts, hook: stream.append(acts))]):
                super().forward(input, *args, **kwargs)
            return stream[0]

    return Bridge
