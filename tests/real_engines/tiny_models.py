"""Writes a tiny model with random weights in Hugging Face's format: ``python tiny_models.py KIND DIRECTORY``.

The kind is ``chat``, ``embed`` or ``rerank``. Runs in the environment of the engine that is to load the model: a
tokenizer must be written by a version of transformers like the one that reads it.
"""

# ruff: noqa: S106 - these tokens are no passwords

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

_TEXT = ["the quick brown fox jumps over the lazy dog. hello world, how are you? a proxy routes requests. "] * 8
_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
_CONTEXT = 2048


def write_chat_model(directory: Path) -> None:
    """A Llama with 0.1 million parameters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    tokenizer.train_from_iterator(
        _TEXT, trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, special_tokens=special)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=_TEMPLATE,
        model_max_length=_CONTEXT,
    )
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=_CONTEXT,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    fast.save_pretrained(directory)
    LlamaForCausalLM(config).save_pretrained(directory)


def write_bert(directory: Path, *, is_reranker: bool) -> None:
    """A BERT that embeds texts, or one that rates pairs of them."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(_TEXT, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, special.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
    )
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        num_labels=1,
    )
    fast.save_pretrained(directory)
    model = BertForSequenceClassification(config) if is_reranker else BertModel(config)
    model.save_pretrained(directory)


if __name__ == "__main__":
    kind, path = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(0)
    if kind == "chat":
        write_chat_model(path)
    else:
        write_bert(path, is_reranker=kind == "rerank")
