"""Every threshold of the diagnoses. Held against healthy runs of every method by benchmarks/calibrate_health.py,
whose data is benchmarks/health_calibration.json: no healthy run may reach any of them.
"""

DEAD_STRENGTH = 1e-4
"""‖branch‖ / ‖what it is added to‖, 95th percentile over tokens."""
FEWEST_LAYERS = 0.5
EXPLODING_WARN, EXPLODING_FAIL = 1.0, 2.0
"""‖ΔW‖ / ‖W‖."""
BROKEN_CHANGE = 2.0
"""Change of the final hidden states by virtual tokens, of their size, where the loss rose."""
COLLAPSED_RANK, ROOM_FOR_RANK, STRONG = 1.5, 4, 0.05
UNSUPERVISED_WARN, UNSUPERVISED_FAIL, PROMPT_TRAINED = 0.02, 0.2, 0.5
"""Shares of rows."""
STOP_WARN, STOP_FAIL = 0.2, 0.0
ONE_CLASS, CLASS_EXCESS = 0.95, 0.15
ONE_ANSWER, LOOPING = 0.8, 0.2
OVERFIT_WARN, OVERFIT_FAIL = 0.03, 0.5
"""Relative rise of the validation loss over its minimum."""
FORGOT_WARN, FORGOT_FAIL = 0.05, 0.2
"""Relative rise of the loss on general text."""
HARM = 0.0
"""Nats a token by which the lower end of the paired interval lies above zero."""
MERGED, SURE = 0.5, 5.0
"""Share of the update that stands in the base; standard errors."""
PADDING = 1e-3
"""Nats; float32 noise is below 1e-5."""
HEAD_MOVED = 1e-6
FAR_MASS = 0.01
"""Share of the attention on keys beyond the old window."""
HARMFUL, HARM_OF_LOSS = 0.02, 0.05
"""Nats; share of the loss."""
