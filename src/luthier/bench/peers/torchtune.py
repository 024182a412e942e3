"""torchtune's recipe `lora_finetune_single_device`, taken from its file (its folder of recipes cannot be imported),
with its builder `lora_llama3`, its checkpointer's conversion, and rows as a data set component.

torchtune           as its configuration for Llama 3.2 1B has it: 4 rows × 4, chunked loss, nothing recomputed
torchtune_single    1 row × 16: nothing is padded
torchtune_sorted    16 rows in the order of their lengths
torchtune_packing   `packed` to 512 (rows in their order, a dense mask keeps them apart), about 16 rows a step

Its documentation says that the recipe is not for a CPU; it runs on one. It drops the last rows where they do not fill a
micro-batch and makes no update where they do not fill a step. So micro-batches here are the largest that the number
of rows is a multiple of, and of packs one by one: none is left out. The recipe saves nothing inside the clock. It
builds Llamas here; torchtune knows no OPT.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .factors import from_torchtune, to_torchtune
from .litgpt import save_factors
from .peer import Peer, Rows
from .trainer import by_length, packs_a_step


class Arm(Peer):
    """One recipe an epoch: it makes its model when it is set up."""

    libraries = ("torchtune", "torchao")

    def load(self) -> Any:
        """Of a recipe that is set up over all rows."""
        self.told = json.loads((Path(self.work["model"]) / "config.json").read_text("utf-8"))
        if self.told["model_type"] != "llama":
            raise RuntimeError(f"the bench knows no builder of torchtune for {self.told['model_type']}")
        self.adapter = self.work["start"]
        self.recipe_class = recipe_class()
        self.recipe = self.set_up(self.rows, False)
        return self.recipe._model

    def embeddings(self) -> Any:
        """Token embeddings."""
        return self.model.tok_embeddings

    def reset(self, adapter: str) -> None:
        """The next recipe begins with it."""
        self.adapter = adapter

    def training(self, rows: Rows, one_step: bool) -> Callable[[], float]:
        """A recipe over these rows, with the adapter put in."""
        from safetensors.torch import load_file

        self.recipe = self.set_up(rows, one_step)
        self.model = self.recipe._model
        self.embeddings().register_forward_pre_hook(self._count)
        given = to_torchtune(
            load_file(Path(self.adapter) / "adapter_model.safetensors"), self.told["num_attention_heads"]
        )
        mine = self.factors()
        if given.keys() != mine.keys():
            raise RuntimeError(f"torchtune trains {sorted(mine)[:2]}, given are {sorted(given)[:2]}")
        for name, weight in mine.items():
            weight.data.copy_(given[name])

        def run() -> float:
            self.recipe.train()
            self.recipe.cleanup()
            return float(self.recipe.last_loss)

        return run

    def factors(self) -> dict[str, Any]:
        """Its trained weights by their names."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def gradients(self) -> dict[str, Any]:
        """By PEFT's names."""
        found = {name: weight.grad.detach().float().cpu().clone() for name, weight in self.factors().items()}
        return from_torchtune(found, self.told["num_attention_heads"])

    def save(self, folder: str) -> None:
        """By PEFT's names."""
        found = {name: weight.detach().cpu() for name, weight in self.factors().items()}
        save_factors(folder, from_torchtune(found, self.told["num_attention_heads"]))

    def set_up(self, rows: Rows, one_step: bool) -> Any:
        """A recipe ready to train."""
        from omegaconf import OmegaConf

        folder = tempfile.mkdtemp()
        kept = by_length(rows) if self.arm == "torchtune_sorted" else rows
        (Path(folder) / "rows.json").write_text(json.dumps(kept), "utf-8")
        config = OmegaConf.create(self.configured(folder, rows, one_step))
        recipe = self.recipe_class(config)
        recipe.setup(config)
        return recipe

    def configured(self, folder: str, rows: Rows, one_step: bool) -> dict[str, Any]:
        """What a configuration file of the recipe would say."""
        work, packed = self.work, self.arm == "torchtune_packing"
        size = {"torchtune": 4, "torchtune_single": 1, "torchtune_packing": 1}.get(self.arm, work["rows_per_step"])
        size = largest(size, len(rows))
        together = packs_a_step(work) if packed else max(1, work["rows_per_step"] // size)
        if one_step:
            together = len(rows_dataset(folder, packed, work["longest"])) // size
        loss = "torchtune.modules.loss.CEWithChunkedOutputLoss"
        return {
            "output_dir": folder,
            "model": self.builder(),
            "tokenizer": {"_component_": f"{__name__}.Padding"},
            "checkpointer": {
                "_component_": "torchtune.training.FullModelHFCheckpointer",
                "checkpoint_dir": work["model"],
                "checkpoint_files": ["model.safetensors"],
                "recipe_checkpoint": None,
                "output_dir": folder,
                "model_type": "LLAMA3_2" if self.told.get("tie_word_embeddings") else "LLAMA3",
            },
            "resume_from_checkpoint": False,
            "save_adapter_weights_only": True,
            "dataset": {
                "_component_": f"{__name__}.rows_for",
                "folder": folder,
                "packed": packed,
                "longest": work["longest"],
            },
            "seed": 0,
            "shuffle": self.arm != "torchtune_sorted" and not one_step,
            "batch_size": size,
            "optimizer": {"_component_": "torch.optim.AdamW", "fused": True, "weight_decay": 0.0, "lr": work["lr"]},
            "lr_scheduler": {"_component_": f"{__name__}.constant"},
            "loss": {"_component_": loss},
            "epochs": 1,
            "max_steps_per_epoch": None,
            "gradient_accumulation_steps": together,
            "clip_grad_norm": None if one_step else work["clip_norm"],
            "compile": False,
            "metric_logger": {"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": folder},
            "log_every_n_steps": 1,
            "device": work["device"],
            "dtype": {"float32": "fp32", "bfloat16": "bf16"}[work["dtype"]],
            "enable_activation_checkpointing": False,
            "enable_activation_offloading": False,
        }

    def builder(self) -> dict[str, Any]:
        """Its component for the same Llama."""
        told, lora = self.told, self.work["lora"]
        rope = told.get("rope_parameters") or {}
        return {
            "_component_": "torchtune.models.llama3.lora_llama3",
            "lora_attn_modules": lora["targets"],
            "apply_lora_to_mlp": False,
            "apply_lora_to_output": False,
            "vocab_size": told["vocab_size"],
            "num_layers": told["num_hidden_layers"],
            "num_heads": told["num_attention_heads"],
            "num_kv_heads": told["num_key_value_heads"],
            "embed_dim": told["hidden_size"],
            "max_seq_len": told["max_position_embeddings"],
            "intermediate_dim": told["intermediate_size"],
            "norm_eps": told["rms_norm_eps"],
            "rope_base": int(rope.get("rope_theta", told.get("rope_theta", 10000))),
            "lora_rank": lora["r"],
            "lora_alpha": lora["alpha"],
            "lora_dropout": 0.0,
        }


def recipe_class() -> Any:
    """Its recipe, which keeps the loss that it logs and saves nothing."""
    import torchtune

    file = Path(torchtune.__file__).parents[1] / "recipes" / "lora_finetune_single_device.py"
    spec = importlib.util.spec_from_file_location("lora_finetune_single_device", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Recipe(module.LoRAFinetuneRecipeSingleDevice):  # type: ignore[name-defined, misc]
        """Its own loop."""

        last_loss = 0.0

        def setup(self, cfg: Any) -> None:
            """Its own, then a look at what is logged."""
            super().setup(cfg)
            write = self._metric_logger.log_dict

            def log_dict(payload: dict[str, Any], step: int) -> None:
                self.last_loss = float(payload["loss"])
                write(payload, step)

            self._metric_logger.log_dict = log_dict

        def save_checkpoint(self, epoch: int) -> None:
            """Not inside the clock."""

    return Recipe


class Padding:
    """All that the recipe asks of a tokenizer."""

    pad_id = 1


def rows_for(tokenizer: Any, *, folder: str, packed: bool, longest: int) -> Any:
    """A data set component: its recipe hands the tokenizer first."""
    return rows_dataset(folder, packed, longest)


def rows_dataset(folder: str, packed: bool, longest: int) -> Any:
    """Rows by torchtune's names, packed by its own PackedDataset."""
    rows = json.loads((Path(folder) / "rows.json").read_text("utf-8"))
    kept = [{"tokens": row["input_ids"], "labels": row["labels"]} for row in rows]
    if not packed:
        return kept
    from torchtune.datasets import PackedDataset

    return PackedDataset(kept, max_seq_len=longest, padding_idx=Padding.pad_id)


def constant(optimizer: Any, num_training_steps: int, last_epoch: int) -> Any:
    """A schedule component that keeps the rate."""
    import torch

    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def largest(size: int, rows: int) -> int:
    """The largest micro-batch of at most `size` that `rows` are a multiple of: the recipe drops a part of one."""
    return next(each for each in range(size, 0, -1) if rows % each == 0)
