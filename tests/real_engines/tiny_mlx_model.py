"""Writes a tiny Llama with random weights that mlx_lm can load: ``python tiny_mlx_model.py DIRECTORY``.

Runs in the environment of mlx_lm.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_WIDTH, _LAYERS, _HEADS, _CONTEXT = 64, 2, 2, 4096
_CONTROL = ("<s>", "</s>")
_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write(directory: Path) -> None:
    """Write weights, tokenizer and chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    tokens = _write_tokenizer(directory)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": _WIDTH,
        "num_hidden_layers": _LAYERS, "intermediate_size": 2 * _WIDTH, "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS, "rms_norm_eps": 1e-5, "vocab_size": tokens, "rope_theta": 10000.0,
        "max_position_embeddings": _CONTEXT, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    shapes = {"model.embed_tokens": (tokens, _WIDTH), "lm_head": (tokens, _WIDTH)}
    for layer in range(_LAYERS):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.self_attn.{part}_proj": (_WIDTH, _WIDTH) for part in "qkvo"}
        shapes |= {f"{block}.mlp.{part}_proj": (2 * _WIDTH, _WIDTH) for part in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj": (_WIDTH, 2 * _WIDTH)}
        shapes |= {f"{block}.{norm}_layernorm": (_WIDTH,) for norm in ("input", "post_attention")}
    shapes["model.norm"] = (_WIDTH,)
    weights = {
        f"{name}.weight": np.ones(shape) if len(shape) == 1 else random.normal(size=shape) / np.sqrt(shape[1])
        for name, shape in shapes.items()
    }
    # It never ends by itself, so a reply has exactly max_tokens tokens.
    weights["model.embed_tokens.weight"][:, 0] = 8.0
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name][0] = 0.0
    weights["lm_head.weight"][:, 0] = 0.0
    weights["lm_head.weight"][: len(_CONTROL)] = 0.0
    weights["lm_head.weight"][: len(_CONTROL), 0] = -50.0
    arrays = {name: mx.array(value.astype(np.float32)) for name, value in weights.items()}
    mx.save_safetensors(str(directory / "model.safetensors"), arrays, metadata={"format": "mlx"})


def _write_tokenizer(directory: Path) -> int:
    """One token for each byte. Returns the number of tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: at for at, token in enumerate((*_CONTROL, *letters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_CONTROL))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": _CONTROL[0], "eos_token": _CONTROL[1],
        "chat_template": _TEMPLATE, "model_max_length": _CONTEXT,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
