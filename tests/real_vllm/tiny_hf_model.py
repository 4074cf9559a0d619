"""Writes a tiny random Llama model in Hugging Face's format: ``python tiny_hf_model.py DIRECTORY``.

Runs in vLLM's environment, which has torch, transformers and tokenizers.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, TURN, END = "<s>", "<|turn|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}" + TURN + "{{ message.role }}\n{{ message.content }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}" + TURN + "assistant\n{% endif %}"
)


def write_tiny_model(directory: Path) -> None:
    """Write weights, tokenizer and chat template, about 300 kB."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[BEGIN, TURN, END],
    )
    tokenizer.train_from_iterator(["one address in front of many engines, all of them always up"] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=BEGIN, chat_template=CHAT_TEMPLATE
    )
    wrapped.save_pretrained(directory)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        bos_token_id=wrapped.bos_token_id,
        eos_token_id=wrapped.eos_token_id,
        pad_token_id=wrapped.pad_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


if __name__ == "__main__":
    write_tiny_model(Path(sys.argv[1]))
