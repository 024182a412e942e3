"""TRL's SFTTrainer on pre-tokenised rows.

trl               its defaults, 4 rows × 4
trl_single        1 row × 16: nothing is padded
trl_grouped       16 rows, grouped by length
trl_sorted        16 rows in the order of their lengths: what grouping comes to over a large data set
trl_packing       packing to 512 (best-fit), about 16 rows a step
trl_padding_free  16 rows in one flat row
"""

from __future__ import annotations

from typing import Any

from .peer import Rows
from .trainer import OnTrainer, arguments, by_length, packs_a_step


class Arm(OnTrainer):
    """Its own trainer, its own data set."""

    def trainer(self, rows: Rows, **more: Any) -> Any:
        """Of this arm."""
        from datasets import Dataset
        from transformers import AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        work, arm = self.work, self.arm
        size = {"trl": 4, "trl_single": 1, "trl_packing": packs_a_step(work)}.get(arm, work["rows_per_step"])
        options = arguments(work, size, 1 if arm == "trl_packing" else work["rows_per_step"] // size)
        options |= {
            "max_length": work["longest"],
            "completion_only_loss": True,
            "gradient_checkpointing": False,
            **more,
        }
        if arm == "trl_grouped":
            options["train_sampling_strategy"] = "group_by_length"
        if arm == "trl_sorted":
            rows = by_length(rows)
            options["train_sampling_strategy"] = "sequential"
        if arm == "trl_packing":
            options |= {"packing": True, "padding_free": False}
        if arm == "trl_padding_free":
            options |= {"padding_free": True, "max_length": None}  # TRL refuses a length here; no row is longer
        data = Dataset.from_dict(
            {
                "input_ids": [row["input_ids"] for row in rows],
                "completion_mask": [[int(label != -100) for label in row["labels"]] for row in rows],
            }
        )
        tokenizer = AutoTokenizer.from_pretrained(work["model"])
        return SFTTrainer(self.model, SFTConfig(**options), train_dataset=data, processing_class=tokenizer)
