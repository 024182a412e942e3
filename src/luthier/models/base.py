"""The base model in luthier's hands: weights, tokenizer, anatomy, fingerprint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from luthier.models.anatomy import Anatomy
    from luthier.models.trunk import TrunkCache

Kind = Literal["decoder", "encoder", "encoder_decoder"]


@dataclass
class Base:
    """What `models.load.load_base` returns and every method attaches to."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    kind: Kind
    path: Path
    """Local folder that the weights came from."""
    fingerprint: dict[str, Any]
    """{"config": sha256, "weights": sha256 over sampled tensors, "tokenizer": sha256, "name": …}"""
    stop_ids: tuple[int, ...]
    """Tokens that end an answer; the first one is trained."""
    pad_id: int
    head: tuple[str, ...] = ()
    """Modules that no checkpoint had (a classification head, a missing pooler): every method trains them fully."""
    context: dict[str, Any] = field(default_factory=dict)
    """The plan of a window extension, empty for the model's own window."""
    trunk: TrunkCache | None = None
    """States of the frozen layers below the lowest trained one (`models.trunk`)."""
    shared_prefix: bool = False
    """Rows of a flat batch that begin with the same tokens compute them once (`engine.sharing`)."""
    shifted_attention: int | None = None
    """Tokens of a group of shifted sparse attention while training (`engine.shifted`)."""
    token_step: int | None = None
    """Flat training batches are padded to multiples of so many tokens, by a segment of its own (CUDA graphs)."""
    compiled: list[Any] = field(default_factory=list)
    """Hooks that `models.compiled` put there."""
