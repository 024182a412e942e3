"""axolotl's trainer, made by its own `load_cfg`, `load_datasets` (which takes tokens as they are where a data set has
no type), model loader and trainer builder, as its `train` does.

axolotl           its defaults: one row a micro-batch, 16 accumulated. Its trainer sets `model_accepts_loss_kwargs` off,
                  so that each micro-batch's mean loss weighs the same, however many tokens of it are trained: its
                  reference (`rows`) is that objective, another than most arms'
axolotl_sorted    16 rows in one micro-batch, in the order of their lengths (`curriculum_sampling`)
axolotl_packing   `sample_packing` of about 16 rows into one flat row. Several rows of 512 in a micro-batch would be
                  dropped where they do not fill it, and accumulated ones be weighed as above

Its LoRA kernels, which it switches on by itself where there is no dropout, do not find their place in OPT's code and
end the run: they are off there.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .peer import Rows
from .trainer import OnTrainer, by_length, packs_a_step

KERNELS = ("lora_qkv_kernel", "lora_o_kernel", "lora_mlp_kernel")


class Arm(OnTrainer):
    """From its configuration on."""

    libraries = ("axolotl", "torchao", "bitsandbytes")

    def __init__(self, work: dict[str, Any], arm: str, given: Rows):
        os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
        super().__init__(work, arm, given)

    def configured(self, rows: Rows, **more: Any) -> Any:
        """Its configuration over these rows, checked and filled in by itself."""
        from axolotl.cli.config import load_cfg
        from axolotl.utils.dict import DictDefault

        work, lora, packed = self.work, self.work["lora"], self.arm == "axolotl_packing"
        folder = tempfile.mkdtemp()
        kept = by_length(rows) if self.arm == "axolotl_sorted" else rows
        lines = (json.dumps({**row, "attention_mask": [1] * len(row["input_ids"])}) for row in kept)
        (Path(folder) / "rows.jsonl").write_text("\n".join(lines), "utf-8")
        told = json.loads((Path(work["model"]) / "config.json").read_text("utf-8"))
        kernels = {} if told["model_type"] == "llama" else dict.fromkeys(KERNELS, False)
        given = {
            **kernels,
            "base_model": work["model"],
            "adapter": "lora",
            "lora_model_dir": work["start"],
            "lora_r": lora["r"],
            "lora_alpha": lora["alpha"],
            "lora_dropout": 0.0,
            "lora_target_modules": lora["targets"],
            "datasets": [{"path": f"{folder}/rows.jsonl", "ds_type": "json", "type": None}],
            "dataset_prepared_path": f"{folder}/prepared",
            "dataset_num_proc": 1,
            "val_set_size": 0,
            "output_dir": f"{folder}/out",
            "sequence_len": work["longest"] * (packs_a_step(work) if packed else 1),
            "sample_packing": packed,
            "pad_to_sequence_len": False,
            "curriculum_sampling": self.arm == "axolotl_sorted",
            "shuffle_merged_datasets": False,
            "micro_batch_size": work["rows_per_step"] if self.arm == "axolotl_sorted" else 1,
            "gradient_accumulation_steps": work["rows_per_step"] if self.arm == "axolotl" else 1,
            "num_epochs": 1,
            "optimizer": "adamw_torch",
            "lr_scheduler": "constant",
            "learning_rate": work["lr"],
            "weight_decay": 0.0,
            "max_grad_norm": work["clip_norm"],
            "attn_implementation": "sdpa",
            "bf16": work["dtype"] == "bfloat16",
            "fp16": False,
            "tf32": False,
            "seed": 0,
            "save_strategy": "no",
            "logging_steps": 1 << 30,
            "dataloader_pin_memory": self.on_gpu,
            "dataloader_num_workers": 0,
            **more,
        }
        return load_cfg(DictDefault(given))

    def load(self) -> Any:
        """Through its own loader."""
        from axolotl.train import setup_model_and_tokenizer

        self.loaded = setup_model_and_tokenizer(self.configured(self.rows))
        return self.loaded[0]

    def trainer(self, rows: Rows, **more: Any) -> Any:
        """As its `train` makes it."""
        from axolotl.common.datasets import load_datasets
        from axolotl.utils.trainer import setup_trainer

        config = self.configured(rows, **more)
        data = load_datasets(cfg=config)
        model, tokenizer, peft_config, processor = self.loaded
        return setup_trainer(
            cfg=config,
            train_dataset=data.train_dataset,
            eval_dataset=None,
            model=model,
            tokenizer=tokenizer,
            processor=processor,
            total_num_steps=data.total_num_steps,
            peft_config=peft_config,
        )
