"""The numbers that diagnoses read. Probes fill them; a number that could not be measured is None, never zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LayerNumbers:
    """One place where the method acts.

    relative_strength: ‖D‖_F / ‖base output‖_F, D the branch's output on real tokens (`strength_p95` over tokens).
    activation_entropy: entropy of D² over channels divided by log(channels), mean over tokens; 0 to 1.
    activation_rate: share of cells with |D| > 1e-3 · rms(base output); of a bottleneck's hidden units: share > 0.
    weight_norm_ratio: ‖ΔW‖_F / ‖W‖_F (of a bottleneck: its linear map against the identity of the residual).
    effective_rank: exp(entropy of the normalised singular values) of ΔW. rank: the most that it could be.
    """

    name: str
    layer: int | None = None
    relative_strength: float | None = None
    strength_p95: float | None = None
    activation_entropy: float | None = None
    activation_rate: float | None = None
    dead_units: float | None = None
    weight_norm_ratio: float | None = None
    spectral_ratio: float | None = None
    stable_rank: float | None = None
    effective_rank: float | None = None
    rank: int | None = None
    projection: float | None = None
    """⟨W, ΔW⟩ / ‖ΔW‖²: about 0 on the right base, about 1 where ΔW is already in W."""
    projection_error: float | None = None
    """Its standard error, were W and ΔW unrelated: ‖W‖ / (‖ΔW‖ √(m n))."""
    intruders: int | None = None
    """Of the ten largest left singular directions of W + ΔW, those that W does not have (largest |cos| < 0.5)."""
    gradient_norm: float | None = None
    prefix_mass: float | None = None
    """Mean share of the attention that goes to the prefix."""
    state_cosine: float | None = None
    """Likeness of the hidden states behind this layer with and without the adapter: mean cosine a token."""
    state_cka: float | None = None
    """The same as linear CKA over tokens: 1 also where the states were only turned or scaled."""
    finite: bool = True

    def as_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass
class Facts:
    """Everything that is known of an adapter. See the diagnoses for what they need."""

    layers: list[LayerNumbers] = field(default_factory=list)
    model_layers: int = 0
    expected_layers: int | None = None
    covered_layers: int | None = None
    """Layers of the base in which the method acts; None for virtual tokens before the first layer."""
    virtual: bool = False
    """The method puts virtual tokens before the text."""
    inplace: bool = False
    """The method trains the base's own weights."""
    effect: float | None = None
    """Largest |output on − output off| over the probe rows."""
    state_change: float | None = None
    """‖h_on − h_off‖ / ‖h_off‖ of the final hidden states."""
    finite: bool = True
    # rows
    rows: int = 0
    unsupervised_rows: int = 0
    fully_trained_rows: int = 0
    """Rows whose every token is trained, the prompt too."""
    stop_trained_rows: int | None = None
    answers_expected: bool = False
    """Rows are a prompt and an answer (instruct)."""
    # losses on the probe rows
    base_loss: float | None = None
    tuned_loss: float | None = None
    loss_change_ci: tuple[float, float] | None = None
    # behaviour
    stop_rate: float | None = None
    base_stop_rate: float | None = None
    distinct2: float | None = None
    reference_distinct2: float | None = None
    same_answers: float | None = None
    """Share of answers equal to the most frequent one."""
    same_references: float | None = None
    top_class: float | None = None
    """Share of rows that are called the most frequently predicted class."""
    top_true_class: float | None = None
    padding_difference: float | None = None
    # general text
    general_base: float | None = None
    general_tuned: float | None = None
    general_ci: tuple[float, float] | None = None
    # identity
    expected: Mapping[str, Any] = field(default_factory=dict)
    """What the adapter says of its base: {"fingerprint", "template", "stop_ids", "context"}; empty when it does not."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """The same of the model at hand."""
    has_head: bool = False
    head_change: float | None = None
    """Relative change of the task head from its fresh start."""
    # history
    train_curve: Sequence[tuple[int, float]] = ()
    validation_curve: Sequence[tuple[int, float]] = ()
    gradient_norms: Sequence[float | None] = ()
    overfitting: Mapping[str, Any] = field(default_factory=dict)
    """The verdict that the evaluation recorded: it knows single validation rows, and what the weights remember."""
    # longer window
    far_mass: float | None = None
    """Share of the attention on keys farther back than the old window, of tokens that have such."""
    even_mass: float | None = None
    """The same if attention were evenly spread."""
    prompt: Mapping[str, Any] | None = None
    """Drift of trained prompt embeddings from the words of the vocabulary."""
    # ablation
    ablation: Sequence[tuple[int, float, float, float]] = ()
    """(layer, loss with the layer's branch off minus loss, low, high)."""
