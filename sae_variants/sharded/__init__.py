"""One SAE in several processes, started by torchrun: its latents in shards, its tokens in groups."""
