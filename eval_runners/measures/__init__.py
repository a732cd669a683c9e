"""Statistics of latents and of what a language model does without them: pure functions of tensors."""
