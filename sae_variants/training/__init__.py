"""From a name and a target to a trained SAE in its folder."""
