"""LLaMA-Factory's CustomSeq2SeqTrainer, made of the parts that its `run_sft` makes it of: its argument parser,
tokenizer, template, `tokenized_path` data set, loader (with `adapter_name_or_path`), collator and trainer.

llamafactory           its defaults, 4 rows × 4: activations are recomputed (`disable_gradient_checkpointing` is off),
                       batches are padded to a multiple of 8
llamafactory_single    1 row × 16, padded to a multiple of 8 alone, nothing recomputed
llamafactory_sorted    16 rows in the order of their lengths (`disable_shuffling`), nothing recomputed
llamafactory_packing   `neat_packing` (a dense mask keeps rows apart), about 16 rows a step, nothing recomputed. Packed
                       rows hold one token less than `cutoff_len` and longer ones are left out, so it is 520 here
"""

from __future__ import annotations

import tempfile
from typing import Any

from .peer import Rows
from .trainer import OnTrainer, arguments, by_length, packs_a_step


class Arm(OnTrainer):
    """Its own everything; only the tokens are given."""

    libraries = ("llamafactory",)

    def parsed(self, **more: Any) -> tuple[Any, ...]:
        """Its five groups of arguments."""
        from llamafactory.hparams import get_train_args

        work, packed = self.work, self.arm == "llamafactory_packing"
        sizes = {"llamafactory": 4, "llamafactory_single": 1, "llamafactory_packing": packs_a_step(work)}
        size = sizes.get(self.arm, work["rows_per_step"])
        given = {
            **arguments(work, size, 1 if packed else work["rows_per_step"] // size),
            "report_to": "none",
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": work["model"],
            "adapter_name_or_path": work["start"],
            "dataset": "rows",
            "template": "empty",
            "finetuning_type": "lora",
            "cutoff_len": work["longest"] + 8 * packed,
            "disable_gradient_checkpointing": self.arm != "llamafactory",
            "disable_shuffling": self.arm == "llamafactory_sorted",
            "packing": packed,
            "neat_packing": packed,
            **more,
        }
        return tuple(get_train_args(given))

    def load(self) -> Any:
        """Through its own loader, which also sets up recomputation."""
        from llamafactory.data import get_template_and_fix_tokenizer
        from llamafactory.model import load_model, load_tokenizer

        model_args, data_args, _, finetuning_args, _ = self.parsed()
        self.model_args = model_args  # its loader writes `compute_dtype` into them
        self.words = load_tokenizer(model_args)
        self.template = get_template_and_fix_tokenizer(self.words["tokenizer"], data_args)
        return load_model(self.words["tokenizer"], model_args, finetuning_args, True)

    def trainer(self, rows: Rows, **more: Any) -> Any:
        """As `run_sft` makes it."""
        from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_dataset
        from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

        _, data_args, training_args, finetuning_args, _ = self.parsed(
            tokenized_path=self.tokenized(by_length(rows) if self.arm == "llamafactory_sorted" else rows), **more
        )
        data = get_dataset(self.template, self.model_args, data_args, training_args, stage="sft", **self.words)
        collate = SFTDataCollatorWith4DAttentionMask(
            template=self.template,
            model=self.model,
            pad_to_multiple_of=8,
            label_pad_token_id=-100,
            block_diag_attn=self.model_args.block_diag_attn,
            neat_packing=data_args.neat_packing,
            attn_implementation=getattr(self.model.config, "_attn_implementation", None),
            compute_dtype=self.model_args.compute_dtype,
            **self.words,
        )
        return CustomSeq2SeqTrainer(
            model=self.model,
            args=training_args,
            finetuning_args=finetuning_args,
            data_collator=collate,
            **data,
            **self.words,
        )

    def tokenized(self, rows: Rows) -> str:
        """A folder as its `tokenized_path` reads it; packed by its own processor."""
        from datasets import Dataset, DatasetDict

        made = {name: [row[name] for row in rows] for name in ("input_ids", "labels")}
        made["attention_mask"] = [[1] * len(row["input_ids"]) for row in rows]
        if self.arm == "llamafactory_packing":
            made = self.packed(rows)
        folder = tempfile.mkdtemp()
        DatasetDict({"train": Dataset.from_dict(made)}).save_to_disk(folder)
        return folder

    def packed(self, rows: Rows) -> dict[str, Any]:
        """Its greedy knapsack over rows that are tokens already."""
        from llamafactory.data.processor import PackedSupervisedDatasetProcessor

        class Packing(PackedSupervisedDatasetProcessor):
            """Encodes nothing."""

            def _encode_data_example(self, prompt: Any, **given: Any) -> tuple[list[int], list[int]]:
                return list(prompt[0]["input_ids"]), list(prompt[0]["labels"])

        data_args = self.parsed()[1]
        nothing = [None] * len(rows)
        names = ("_system", "_tools", "_images", "_videos", "_audios")
        examples = {
            "_prompt": [[row] for row in rows],
            "_response": [[None]] * len(rows),
            **dict.fromkeys(names, nothing),
        }
        return dict(Packing(self.template, **self.words, data_args=data_args).preprocess_dataset(examples))
