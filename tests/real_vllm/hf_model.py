"""Converts the tiny GGUF model into Hugging Face's format: ``python hf_model.py GGUF DIRECTORY``.

llama.cpp and vLLM then serve the same model. Runs in vLLM's environment, which has torch and transformers.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM


def convert(source: Path, directory: Path) -> None:
    """Write weights, tokenizer and chat template."""
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, add_bos_token=True)
    # llama.cpp puts this token before each prompt, vLLM only before those without a template.
    tokenizer.chat_template = tokenizer.bos_token + tokenizer.chat_template
    tokenizer.save_pretrained(directory)
    loaded = LlamaForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    del loaded.config.quantization_config  # it says GGUF, which cannot be saved
    model = LlamaForCausalLM(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(directory)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
