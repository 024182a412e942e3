"""Where an architecture keeps its parts: layers, attention, MLP, embeddings, positions, head.

Found by structure, not by a table of model names: the layers are the longest ModuleList of the backbone, the
attention of a layer is the child whose class says so, linear roles come from the layers' own attribute names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from luthier.core.errors import ModelError
from luthier.models.changing_rope import constant_within

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PositionKind = Literal["rope", "learned", "sinusoidal", "alibi", "t5", "none"]
Named = tuple[str, nn.Module]

_ROLES = {
    "q": ("q_proj", "query", "q", "q_lin"),
    "k": ("k_proj", "key", "k", "k_lin"),
    "v": ("v_proj", "value", "v", "v_lin"),
    "qkv": ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "in_proj"),
    "o": ("o_proj", "out_proj", "o", "out_lin"),
    "gate": ("gate_proj", "wi_0"),
    "up": ("up_proj", "fc1", "c_fc", "dense_h_to_4h", "wi_1", "wi", "lin1", "gate_up_proj"),
    "down": ("down_proj", "fc2", "dense_4h_to_h", "wo", "lin2"),
}
"""role → the names that architectures give to the linear layer."""


@dataclass(frozen=True)
class Site:
    """One sub-layer as its first and last module: the input of `first` goes in, the output of `last` comes out.

    Both are leaf modules wherever that is possible ([B, T, hidden] tensors, before dropout, residual and norm),
    so hooks on them need no knowledge of the architecture's tuples.
    """

    name: str
    kind: Literal["attention", "ffn"]
    layer: int
    first: str
    last: str


@dataclass(frozen=True)
class Anatomy:
    """Parts with their full names in the model."""

    kind: str
    backbone: nn.Module
    backbone_name: str
    layers: list[Named]
    attentions: list[Named]
    mlps: list[Named]
    embeddings: Named
    final_norm: Named | None
    head: Named | None
    linear_names: dict[str, list[str]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    hidden_size: int = 0
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    window: int = 0
    position_kind: PositionKind = "none"
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    sliding_window: int | None = None
    local_window: int | None = None
    """Tokens that the narrowest layers see: a sliding window, or a chunk."""
    local_layers: frozenset[int] = frozenset()
    """Layers that see no more than a window."""
    rope_constant_within: int | None = None
    """Positions within which rotary frequencies do not hang on the batch; None where they never do."""

    @property
    def cached_attentions(self) -> list[Named]:
        """Self-attentions that take a prefix: one of every layer, in encoder-decoder models of the decoder's only."""
        return [one for one in self.attentions if self.kind != "encoder_decoder" or "decoder." in one[0]]


def of(model: PreTrainedModel) -> Anatomy:
    """The anatomy of a loaded model. ModelError names what could not be found."""
    config: Any = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    backbone: Any = model.base_model
    if backbone is model:  # Llama 4 names a part that its text model does not have
        backbone = getattr(model, "model", model)
    name = next((n for n, m in model.named_modules() if m is backbone), "")
    layers = _layers(backbone, name)
    head = model.get_output_embeddings() or _row_head(model)
    attentions, mlps = [_child(layer, "attention", "attn") for layer in layers], [_mlp(layer) for layer in layers]
    roles = _linear_roles(layers)
    hidden = _first(config, "hidden_size", "n_embd", "d_model", "dim")
    heads = _first(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    sliding = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    local = _local_layers(config, sliding, len(layers))
    chunk = getattr(config, "attention_chunk_size", None)
    return Anatomy(
        kind=kind_of(model),
        backbone=backbone,
        backbone_name=name,
        layers=layers,
        attentions=attentions,
        mlps=mlps,
        embeddings=_named(model, model.get_input_embeddings()),
        final_norm=_final_norm(backbone, name),
        head=_named(model, head) if head is not None else None,
        linear_names=roles,
        sites=_sites(layers, roles, attentions, mlps),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=_cached_heads(config, heads),
        head_dim=int(getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or hidden // heads),
        window=window_length(config),
        position_kind=_position_kind(model, config),
        logit_scale=_logit_scale(config),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        sliding_window=sliding,
        local_window=min((size for size in (sliding, chunk) if size), default=None) if local else None,
        local_layers=local,
        rope_constant_within=constant_within(config),
    )


def _local_layers(config: Any, sliding: int | None, count: int) -> frozenset[int]:
    """By the config's layer types; without them, all or none."""
    types = getattr(config, "layer_types", None)
    if types:
        found = [index for index, kind in enumerate(types) if str(kind).startswith(("sliding", "chunked", "local"))]
        return frozenset(found)
    return frozenset(range(count)) if sliding or getattr(config, "attention_chunk_size", None) else frozenset()


def kind_of(model: PreTrainedModel) -> str:
    """decoder | encoder | encoder_decoder."""
    return kind_of_config(model.config)


def kind_of_config(config: Any) -> str:
    """The kind of a model that need not be built for it."""
    if config.is_encoder_decoder:
        return "encoder_decoder"
    encoders = ("bert", "roberta", "distilbert", "xlm-roberta", "electra", "deberta", "deberta-v2", "mpnet", "albert")
    if config.model_type in encoders or config.model_type.endswith("bert"):
        return "decoder" if getattr(config, "is_decoder", False) else "encoder"
    return "decoder"


def window_length(config: Any) -> int:
    """Positions that the model was built for; the target of a stored window plan where there is one."""
    value = next(
        (
            getattr(config, key)
            for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
            if getattr(config, key, None)
        ),
        1 << 30,
    )
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "dynamic":
        return int(value * rope.get("factor", 1))
    return int(value) - (2 if config.model_type in ("roberta", "xlm-roberta") else 0)


def _first(config: Any, *names: str) -> int:
    for name in names:
        if getattr(config, name, None):
            return int(getattr(config, name))
    raise ModelError(f"{config.model_type}: the config has none of {', '.join(names)}", remedy="use a supported model")


def _cached_heads(config: Any, heads: int) -> int:
    """Key and value heads that the cache holds: Falcon's and StarCoder's `multi_query` shares one."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    return int(getattr(config, "num_key_value_heads", None) or heads)


def _named(model: nn.Module, wanted: nn.Module) -> Named:
    for name, module in model.named_modules(remove_duplicate=False):
        if module is wanted:
            return name, module
    raise ModelError(f"{type(wanted).__name__} is not a part of {type(model).__name__}")


def _layers(backbone: nn.Module, prefix: str) -> list[Named]:
    parts = [(part, getattr(backbone, part)) for part in ("encoder", "decoder") if hasattr(backbone, part)]
    if len(parts) == 2:  # an encoder-decoder has two lists
        return [layer for name, part in parts for layer in _layers(part, ".".join(filter(None, (prefix, name))))]
    lists = [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)]
    top = [
        (name, module)
        for name, module in lists
        if len(module) and not any(name.startswith(o + ".") for o, _ in lists if o != name)
    ]
    if not top:
        raise ModelError(f"no list of layers in {type(backbone).__name__}", remedy="use a transformer model")
    name, found = max(top, key=lambda item: len(item[1]))
    return [(".".join(part for part in (prefix, name, str(i)) if part), layer) for i, layer in enumerate(found)]


def _child(layer: Named, *words: str) -> Named:
    name, module = layer
    for inner, child in module.named_children():
        if any(word in type(child).__name__.lower() for word in words) and "norm" not in type(child).__name__.lower():
            return f"{name}.{inner}", child
    for inner, child in module.named_children():
        if isinstance(child, nn.ModuleList) and len(child):  # T5: layer[0] is the self-attention block
            return f"{name}.{inner}.0", child[0]
    raise ModelError(f"no attention in {name} ({type(module).__name__})", remedy="use another method or model")


def _mlp(layer: Named) -> Named:
    name, module = layer
    for inner, child in module.named_children():
        kind = type(child).__name__.lower()
        if any(word in kind for word in ("mlp", "ffn", "feedforward", "moe")):
            return f"{name}.{inner}", child
    for inner in ("fc2", "output"):
        if hasattr(module, inner):
            return f"{name}.{inner}", getattr(module, inner)
    for inner, child in module.named_children():
        if isinstance(child, nn.ModuleList) and len(child):
            return f"{name}.{inner}.{len(child) - 1}", child[-1]
    raise ModelError(f"no feed-forward part in {name} ({type(module).__name__})", remedy="use another method")


def _linear_roles(layers: list[Named]) -> dict[str, list[str]]:
    from transformers.pytorch_utils import Conv1D

    roles: dict[str, list[str]] = {}
    for name, layer in layers:
        for inner, module in layer.named_modules():
            if not isinstance(module, nn.Linear | Conv1D) or type(module).__name__.endswith(("Router", "Gate")):
                continue  # a router of experts is a linear layer that gives a tuple: no layer to adapt
            leaf = inner.rpartition(".")[2]
            role = next((role for role, names in _ROLES.items() if leaf in names), None)
            if leaf in ("c_proj", "dense"):
                attention = "attn" in inner or "attention" in inner
                role = "o" if attention else ("down" if leaf == "c_proj" or "output" in inner else "up")
            roles.setdefault(role or leaf, []).append(f"{name}.{inner}")
    return roles


def _sites(layers: list[Named], roles: dict[str, list[str]], attentions: list[Named], mlps: list[Named]) -> list[Site]:
    """Attention and feed-forward of every layer; a part without one outgoing linear (experts) is taken whole."""
    found = []
    for index, (name, _) in enumerate(layers):

        def one(whole: str, *wanted: str, inside: str = name + ".") -> str:
            names = [item for role in wanted for item in roles.get(role, ()) if item.startswith(inside)]
            return names[0] if names else whole

        attention, mlp = attentions[index][0], mlps[index][0]
        many = sum(item.startswith(name + ".") for item in roles.get("down", ())) > 1
        ffn = (mlp, mlp) if many else (one(mlp, "gate", "up"), one(mlp, "down"))
        found.append(Site(f"{name}.attention", "attention", index, one(attention, "q", "qkv"), one(attention, "o")))
        found.append(Site(f"{name}.ffn", "ffn", index, *ffn))
    return found


def _final_norm(backbone: nn.Module, prefix: str) -> Named | None:
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm", "decoder.final_layer_norm", "model.norm"):
        try:
            module = backbone.get_submodule(name)
        except AttributeError:
            continue
        if module is not None:
            return ".".join(part for part in (prefix, name) if part), module
    return None


def _row_head(model: nn.Module) -> nn.Module | None:
    for name in ("score", "classifier", "classification_head"):
        if hasattr(model, name):
            found: nn.Module = getattr(model, name)
            return found
    return None


def _position_kind(model: nn.Module, config: Any) -> PositionKind:
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "alibi"
    if hasattr(config, "relative_attention_num_buckets"):
        return "t5"
    for name, module in model.named_modules():
        if "rotary" in type(module).__name__.lower():
            return "rope"
        leaf = name.rpartition(".")[2]
        if leaf in ("wpe", "embed_positions", "position_embeddings"):
            return "learned" if isinstance(module, nn.Embedding) else "sinusoidal"
    return "none"


def _logit_scale(config: Any) -> float:
    """What the config says; `logit_scale.checked` measures it when a base is loaded."""
    if getattr(config, "logits_scaling", None):  # Granite divides, HyperCLOVAX multiplies
        scaling = float(config.logits_scaling)
        return scaling if config.model_type.startswith("hyperclovax") else 1.0 / scaling
    if getattr(config, "scale_decoder_outputs", False):  # T5 with a tied head
        return float(config.d_model) ** -0.5
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):  # Cohere, Falcon-H1, MuseSpark
        if isinstance(getattr(config, name, None), int | float):
            return float(getattr(config, name))
    return 1.0
