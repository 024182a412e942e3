"""ms-swift's SwiftSft: its arguments, its model and tuner, its template's collator and its Seq2SeqTrainer. Its own data
set (messages that a template turns into tokens) is the one part that is not gone through: rows are tokens already.

swift          its defaults, 4 rows × 4: activations are recomputed (`gradient_checkpointing` is on)
swift_single   1 row × 16: nothing is padded, nothing recomputed
swift_sorted   16 rows in the order of their lengths, nothing recomputed

Its loader's process, which it starts by default, is left out: the clock counts this process alone.

Its packing and padding-free ask for flash attention (`SftArguments` raises without), so that they do not exist on a
CPU. A folder is taken for an architecture that it knows; OPT is not among those.
"""

from __future__ import annotations

from typing import Any

from .peer import Rows
from .trainer import OnTrainer, arguments, by_length


class Arm(OnTrainer):
    """The steps of its pipeline's `run`."""

    libraries = ("ms-swift",)

    def given(self, **more: Any) -> Any:
        """Its arguments."""
        from swift.arguments import SftArguments

        work, usual = self.work, self.arm == "swift"
        size = {"swift": 4, "swift_single": 1}.get(self.arm, work["rows_per_step"])
        options = {
            **arguments(work, size, work["rows_per_step"] // size),
            "adam_beta2": 0.999,
            "model": work["model"],
            "model_type": "llama",
            "template": "dummy",
            "torch_dtype": work["dtype"],
            "adapters": [work["start"]],
            "tuner_type": "lora",
            "dataset": ["rows"],
            "max_length": work["longest"],
            "check_model": False,
            "dataloader_num_workers": 0,
            "add_version": False,
            "split_dataset_ratio": 0.0,
            "gradient_checkpointing": usual,
            "train_dataloader_shuffle": self.arm != "swift_sorted",
            **more,
        }
        return SftArguments(**options)

    def load(self) -> Any:
        """Base, template and adapter."""
        from swift.pipelines.train.sft import SwiftSft

        self.pipeline = SwiftSft(self.given())
        self.pipeline.model = self.pipeline.prepare_model(
            self.pipeline.args, self.pipeline.model, template=self.pipeline.template
        )
        return self.pipeline.model

    def trainer(self, rows: Rows, **more: Any) -> Any:
        """As its pipeline makes it."""
        from swift.trainers import TrainerFactory

        args = self.given(**more)
        ordered = by_length(rows) if self.arm == "swift_sorted" else rows
        return TrainerFactory.get_trainer_cls(args)(
            model=self.model,
            args=args.training_args,
            template=self.pipeline.template,
            train_dataset=[{**row, "length": len(row["input_ids"])} for row in ordered],
        )
