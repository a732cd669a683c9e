"""Runs where SAEDashboard is installed and this package is not: a page of an SAE's latents, and the numbers on it.

    python sae_dashboard_page.py MODEL_FOLDER SAE_FOLDER TOKENS PAGE

MODEL_FOLDER is a Hugging Face folder, TOKENS a safetensors file with `ids`, PAGE the HTML file to write. The numbers,
and the model's activations at the SAE's hook, go to PAGE.json and PAGE.safetensors.
"""

import json
import sys

import torch
from sae_dashboard.data_writing_fns import save_feature_centric_vis
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE, HookedSAETransformer
from safetensors.torch import load_file, save_file
from transformer_lens import loading_from_pretrained
from transformers import AutoModelForCausalLM, AutoTokenizer

model_folder, sae_folder, tokens_file, page = sys.argv[1:]
loading_from_pretrained.OFFICIAL_MODEL_NAMES.append(model_folder)  # TransformerLens refuses other names
model = HookedSAETransformer.from_pretrained_no_processing(
    model_folder,
    hf_model=AutoModelForCausalLM.from_pretrained(model_folder, torch_dtype=torch.float32),
    tokenizer=AutoTokenizer.from_pretrained(model_folder),
    device="cpu",
    dtype=torch.float32,
)
sae = SAE.load_from_disk(sae_folder, device="cpu")
hook, ids = sae.cfg.metadata.hook_name, load_file(tokens_file)["ids"]
x = model.run_with_cache(ids, names_filter=hook)[1][hook]
config = SaeVisConfig(hook, features=list(range(sae.cfg.d_sae)), minibatch_size_features=32, minibatch_size_tokens=8)
config.ignore_tokens = {model.tokenizer.bos_token_id}
data = SaeVisRunner(config).run(encoder=sae, model=model, tokens=ids)
save_feature_centric_vis(data, page)
numbers = {}
for latent, shown in data.feature_data_dict.items():
    logits = shown.logits_table_data
    numbers[latent] = {
        "density": (shown.acts_histogram_data.title or "").partition("DENSITY = ")[2],
        "heights": shown.acts_histogram_data.bar_heights,
        "centres": shown.acts_histogram_data.bar_values,
        "top": [logits.top_token_ids, logits.top_logits],
        "bottom": [logits.bottom_token_ids, logits.bottom_logits],
        "logit heights": shown.logits_histogram_data.bar_heights,
        "channels": shown.feature_tables_data.neuron_alignment_indices,
        "examples": {group.title: len(group.seq_data) for group in shown.sequence_data.seq_group_data},
    }
with open(f"{page}.json", "w") as file:
    json.dump(numbers, file)
save_file({"x": x.contiguous()}, f"{page}.safetensors")
