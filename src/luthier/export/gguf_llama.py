"""A merged Llama as a GGUF file, and the same file read back and computed with, by its own metadata alone.

GGUF's llama turns neighbouring pairs of a head (2i, 2i+1); transformers turns (i, i + half). Query and key rows are
reordered for it, as llama.cpp's own converter does. The check below therefore shares no code with transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.core.errors import MissingExtra, ModelError
from luthier.export.gguf_vocabulary import Vocabulary

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
STOPS = ("eos", "eot", "eom")
"""The tokens at which llama.cpp ends an answer, as GGUF names them: end of sequence, of turn, of message."""
FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32}


def library() -> Any:
    """The `gguf` package."""
    try:
        import gguf
    except ImportError:
        raise MissingExtra("writing GGUF", "gguf") from None
    return gguf


def check(model: Any) -> None:
    """ModelError by name for what the file could not hold faithfully."""
    config = model.config
    name = type(model).__name__
    scaling = dict(getattr(config, "rope_parameters", None) or {})
    reasons = []
    if name != "LlamaForCausalLM":
        reasons.append(f"the architecture {name}")
    else:
        kind = scaling.get("rope_type", "default")
        reasons += [f"the position scaling {kind}"] if kind not in ("default", "linear") else []
        reasons += ["biases"] if config.attention_bias or config.mlp_bias else []
        reasons += [f"the activation {config.hidden_act}"] if config.hidden_act != "silu" else []
    if reasons:
        raise ModelError(
            f"GGUF is written for plain Llama models only, not for {', '.join(reasons)}",
            where="export",
            remedy="--as merged, then llama.cpp's own converter",
        )


def new_name(name: str) -> str:
    """transformers' name of a tensor → GGUF's."""
    if name in TOP:
        return TOP[name]
    if name == "lm_head.weight":
        return "output.weight"
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{LAYER[rest.removesuffix('.weight')]}.weight"


def write(source: Path, file: Path, config: Any, vocabulary: Vocabulary, dtype: str, facts: dict[str, Any]) -> None:
    """`source` holds the merged safetensors in `dtype`; tensors are copied one by one."""
    from safetensors import safe_open

    gguf = library()
    out = gguf.GGUFWriter(str(file), "llama")
    _metadata(gguf, out, config, vocabulary, dtype, facts)
    for shard in sorted(source.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                tensor = handle.get_tensor(name)
                heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
                turned = next((count for part, count in heads.items() if f".{part}." in name), None)
                _add(gguf, out, new_name(name), _paired(tensor, turned) if turned else tensor)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _paired(weight: Tensor, heads: int) -> Tensor:
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape).contiguous()


def _add(gguf: Any, out: Any, name: str, tensor: Tensor) -> None:
    if tensor.dim() == 1:  # norms stay float32, as llama.cpp wants them
        out.add_tensor(name, tensor.float().numpy())
    elif tensor.dtype == torch.bfloat16:
        raw = tensor.contiguous().view(torch.uint8).numpy()
        out.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        out.add_tensor(name, tensor.numpy())


def _metadata(gguf: Any, out: Any, config: Any, vocabulary: Vocabulary, dtype: str, facts: dict[str, Any]) -> None:
    head = config.head_dim or config.hidden_size // config.num_attention_heads
    rope = dict(config.rope_parameters or {})
    out.add_name(facts["name"])
    out.add_file_type(FILE_TYPES[dtype])
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_key_length(head)
    out.add_value_length(head)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_dimension_count(head)
    out.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    out.add_vocab_size(config.vocab_size)
    if rope.get("rope_type") == "linear":
        out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        out.add_rope_scaling_factor(float(rope["factor"]))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(vocabulary.way)
    out.add_token_list(vocabulary.tokens)
    out.add_token_types(vocabulary.types)
    out.add_token_merges(vocabulary.merges)
    for key, stop in zip(STOPS, facts["stop_ids"], strict=False):
        getattr(out, f"add_{key}_token_id")(stop)
    out.add_pad_token_id(facts["pad_id"])
    if facts["bos"] is not None:
        out.add_bos_token_id(facts["bos"])
    out.add_add_bos_token(bool(facts["begins_with_bos"]))
    if facts["chat_template"]:
        out.add_chat_template(facts["chat_template"])


class ReadBack:
    """A GGUF llama in torch, float32 arithmetic on the stored numbers."""

    def __init__(self, file: Path):
        gguf = library()
        reader = gguf.GGUFReader(str(file))
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {
            one.name: torch.from_numpy(np.array(gguf.quants.dequantize(one.data, one.tensor_type), dtype=np.float32))
            for one in reader.tensors
        }

    def _fact(self, name: str) -> Any:
        return self.fields[f"llama.{name}"]

    def logits(self, ids: Sequence[int]) -> Tensor:
        """[n, vocabulary]."""
        x = self.tensors["token_embd.weight"][list(ids)]
        for number in range(self._fact("block_count")):
            x = x + self._attention(number, self._norm(x, f"blk.{number}.attn_norm"))
            h = self._norm(x, f"blk.{number}.ffn_norm")
            gate = torch.nn.functional.silu(self._linear(h, f"blk.{number}.ffn_gate"))
            x = x + self._linear(gate * self._linear(h, f"blk.{number}.ffn_up"), f"blk.{number}.ffn_down")
        head = "output" if "output.weight" in self.tensors else "token_embd"
        return self._linear(self._norm(x, "output_norm"), head)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        size = x.pow(2).mean(-1, keepdim=True) + self._fact("attention.layer_norm_rms_epsilon")
        return x * torch.rsqrt(size) * self.tensors[f"{name}.weight"]

    def _turn(self, x_THD: Tensor) -> Tensor:
        """Rotate neighbouring pairs."""
        wide = self._fact("rope.dimension_count")
        factor = self.fields.get("llama.rope.scaling.factor", 1.0)
        place = torch.arange(len(x_THD)) / factor
        angle = place[:, None] * self._fact("rope.freq_base") ** (-torch.arange(0, wide, 2) / wide)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        even, odd = x_THD[..., 0::2], x_THD[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def _attention(self, number: int, h: Tensor) -> Tensor:
        heads, shared = self._fact("attention.head_count"), self._fact("attention.head_count_kv")
        count = len(h)
        q, k, v = (self._linear(h, f"blk.{number}.attn_{part}") for part in "qkv")
        q, k = self._turn(q.view(count, heads, -1)), self._turn(k.view(count, shared, -1))
        v = v.view(count, shared, -1)
        k, v = (part.repeat_interleave(heads // shared, 1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), float("-inf"))
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(count, -1)
        return self._linear(mixed, f"blk.{number}.attn_output")
