"""litgpt's own Llama with its own LoRA, trained by the `fit` of `litgpt.finetune.lora`; weights by its own converter.

litgpt          its defaults: one row a micro-batch, 16 an update. Each row's mean loss weighs the same, however many
                tokens of it are trained: its reference (`rows`) is that objective, another than the other arms'
litgpt_sorted   16 rows in one micro-batch, in the order of their lengths: the mean over all trained tokens

Its loop clips no gradients and says so (`max_norm` is refused); its schedule is a warm-up and a cosine, for which a
constant one is put here, and the texts that it would generate after the last epoch are left out, as is the dropout
of .05 that it begins with. It knows no OPT.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .factors import from_litgpt, to_litgpt
from .peer import Peer, Rows
from .trainer import by_length


class Losses:
    """What litgpt's loop logs goes here."""

    def __init__(self) -> None:
        self.last = 0.0

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Lightning's interface of a logger."""
        self.last = float(metrics.get("loss", self.last))


class Arm(Peer):
    """Model, rows and loop are its own."""

    libraries = ("litgpt", "lightning")

    def load(self) -> Any:
        """Its GPT in litgpt's layout, under its Fabric."""
        import lightning
        import torch
        from litgpt.lora import GPT, mark_only_lora_as_trainable
        from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
        from safetensors.torch import load_file

        self.losses = Losses()
        precision = {"float32": "32-true", "bfloat16": "bf16-true"}[self.work["dtype"]]
        accelerator = "cuda" if self.on_gpu else "cpu"
        self.fabric = lightning.Fabric(accelerator=accelerator, devices=1, precision=precision, loggers=[self.losses])
        self.config = configured(self.work)
        with self.fabric.init_module(empty_init=False):
            model = GPT(self.config)
        mark_only_lora_as_trainable(model)
        weights: dict[str, torch.Tensor] = {}
        copy_weights_hf_llama(self.config, {}, weights, load_file(Path(self.work["model"]) / "model.safetensors"))
        found = model.load_state_dict(weights, strict=False)
        left = [name for name in found.missing_keys if "lora_" not in name]
        if left or found.unexpected_keys:
            raise RuntimeError(f"litgpt's converter left {left + found.unexpected_keys}")
        return self.fabric.setup_module(model)

    def embeddings(self) -> Any:
        """Token embeddings."""
        return self.model.transformer.wte

    def factors(self) -> dict[str, Any]:
        """Its trained weights by their names."""
        named = self.model.module.named_parameters()
        return {name: weight for name, weight in named if weight.requires_grad}

    def queries(self) -> int:
        """Outputs of the query projection."""
        return int(self.config.n_head * self.config.head_size)

    def reset(self, adapter: str) -> None:
        """From PEFT's names."""
        from safetensors.torch import load_file

        given = to_litgpt(load_file(Path(adapter) / "adapter_model.safetensors"))
        mine = self.factors()
        if given.keys() != mine.keys():
            raise RuntimeError(f"litgpt trains {sorted(mine)[:2]}, given are {sorted(given)[:2]}")
        for name, weight in mine.items():
            weight.data.copy_(given[name])

    def gradients(self) -> dict[str, Any]:
        """By PEFT's names."""
        found = {name: weight.grad.detach().float().cpu() for name, weight in self.factors().items()}
        return {name: value.clone() for name, value in from_litgpt(found, self.queries()).items()}

    def training(self, rows: Rows, one_step: bool) -> Callable[[], float]:
        """Its `fit` between the parts that its `main` makes."""
        import torch
        from litgpt.args import EvalArgs, TrainArgs
        from litgpt.data.base import get_sft_collate_fn
        from litgpt.finetune import lora
        from litgpt.utils import instantiate_torch_optimizer
        from torch.utils.data import DataLoader

        lora.generate_example = lambda *given: None
        usual = self.arm == "litgpt"
        whole = len(rows) if one_step else self.work["rows_per_step"]
        train = TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=whole,
            micro_batch_size=1 if usual else whole,
            epochs=1,
            max_seq_length=None,
        )
        kept = as_its_own(rows if usual else by_length(rows))
        options: Any = {"batch_size": train.micro_batch_size, "collate_fn": get_sft_collate_fn()}
        source = torch.Generator().manual_seed(0)
        loader: Any = DataLoader(kept, shuffle=usual, generator=source, **options)  # type: ignore[arg-type]
        nothing: Any = DataLoader([], **options)  # type: ignore[arg-type]
        loaders = self.fabric.setup_dataloaders(loader, nothing)
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": self.work["lr"], "weight_decay": 0.0}}
        made = self.fabric.setup_optimizers(instantiate_torch_optimizer(optimizer, self.model.parameters()))
        given: dict[str, Any] = {
            "fabric": self.fabric,
            "model": self.model,
            "optimizer": made,
            "scheduler": torch.optim.lr_scheduler.ConstantLR(made, factor=1.0),
            "train_dataloader": loaders[0],
            "val_dataloader": loaders[1],
            "devices": 1,
            "checkpoint_dir": Path(self.work["model"]),
            "out_dir": Path(tempfile.mkdtemp()),
            "train": train,
            "eval": EvalArgs(interval=1 << 30, max_new_tokens=1, max_iters=0, initial_validation=False),
            "data": None,
        }

        def run() -> float:
            lora.fit(**given)
            return self.losses.last

        return run

    def save(self, folder: str) -> None:
        """By PEFT's names."""
        save_factors(folder, from_litgpt({n: w.detach().cpu() for n, w in self.factors().items()}, self.queries()))


def save_factors(folder: str, factors: dict[str, Any]) -> None:
    """The file that PEFT would write."""
    from safetensors.torch import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in factors.items()}, Path(folder) / "adapter_model.safetensors")


def as_its_own(rows: Rows) -> list[dict[str, Any]]:
    """As its SFTDataset gives them."""
    import torch

    return [
        {
            "input_ids": torch.tensor(row["input_ids"]),
            "labels": torch.tensor(row["labels"]),
            "token_counts": {"raw": len(row["input_ids"]), "raw_plus_prompt_template": len(row["input_ids"])},
        }
        for row in rows
    ]


def configured(work: dict[str, Any]) -> Any:
    """litgpt's configuration of the same Llama, with LoRA on queries and values."""
    from litgpt.lora import Config

    told = json.loads((Path(work["model"]) / "config.json").read_text("utf-8"))
    if told["model_type"] != "llama":
        raise RuntimeError(f"litgpt has no {told['model_type']}")
    lora, rope = work["lora"], told.get("rope_parameters") or {}
    heads = told["num_attention_heads"]
    return Config(
        name="Llama-bench",
        block_size=told["max_position_embeddings"],
        n_layer=told["num_hidden_layers"],
        n_head=heads,
        n_embd=told["hidden_size"],
        n_query_groups=told["num_key_value_heads"],
        head_size=told.get("head_dim") or told["hidden_size"] // heads,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=told["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
        intermediate_size=told["intermediate_size"],
        rope_base=int(rope.get("rope_theta", told.get("rope_theta", 10000))),
        vocab_size=told["vocab_size"],
        padded_vocab_size=told["vocab_size"],
        lora_r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=0.0,
        lora_query=True,
        lora_value=True,
    )
