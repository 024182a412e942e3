"""Answers with the model of this folder: `python answer.py "text"`. Needs torch, transformers and safetensors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, DynamicCache


class Bundle:
    """The model, and the prompt exactly as it was in training."""

    def __init__(self, folder: Path):
        self.facts: dict[str, Any] = json.loads((folder / "prompt.json").read_text("utf-8"))
        loader: Any = AutoModelForSequenceClassification if self.facts["labels"] else AutoModelForCausalLM
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        dtype = getattr(torch, self.facts["dtype"])
        self.model = loader.from_pretrained(folder / "model", dtype=dtype, use_safetensors=True, **options).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model", **options)
        file = folder / "virtual_tokens.safetensors"
        self.virtual = load_file(file) if file.is_file() else None

    def _ids(self, text: str) -> list[int]:
        """Ids of a text as a continuation, in which control tokens are only text."""
        anchor = self.facts["anchor"]
        options = {"add_special_tokens": False, "split_special_tokens": True}
        before, whole = (list(self.tokenizer(t, **options).input_ids) for t in (anchor, anchor + text))
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return list(self.tokenizer(text, **options).input_ids)

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """[{"role": "user", "content": "…"}] → ids."""
        shape = self.facts["shape"]
        if shape is None:
            text = "\n".join(message["content"] for message in messages)
            return [int(token) for token in self.tokenizer(text).input_ids]
        ids = list(shape["start"])
        if messages[0]["role"] != "system":
            ids += shape["default"]
        for message in messages:
            before, after = shape["around"][message["role"]]
            ids += [*before, *self._ids(message["content"]), *after]
        return ids + list(shape["opening"])

    def _inputs(self, ids: list[int], fed: int, cache: Any) -> dict[str, Any]:
        """What the next forward takes: the whole prompt with its virtual tokens, or only what is new."""
        rows = torch.tensor(ids[fed:])[None]
        count = 0 if self.virtual is None else len(self.virtual["prompt_embeddings"])
        if cache is not None and self.virtual is not None and fed == 0 and int(self.virtual["kind"]) == 0:
            self._prefix(cache)
        if fed == 0 and self.virtual is not None and int(self.virtual["kind"]) == 1:
            words = self.model.get_input_embeddings()(rows)
            ahead = self.virtual["prompt_embeddings"][None].to(words.dtype)
            return {"inputs_embeds": torch.cat([ahead, words], 1)}
        positions = torch.arange(fed + count, len(ids) + count)[None]
        return {"input_ids": rows, **({} if self.facts["labels"] else {"position_ids": positions})}

    def _prefix(self, cache: Any) -> None:
        """The table [tokens, layers × 2 × heads × size] into the cache of every layer."""
        assert self.virtual is not None
        table, config = self.virtual["prompt_embeddings"], self.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        laid = table.view(len(table), config.num_hidden_layers * 2, heads, -1).permute(1, 2, 0, 3)
        for layer in range(config.num_hidden_layers):
            key, value = (laid[2 * layer + side][None].to(self.model.dtype).contiguous() for side in (0, 1))
            cache.update(key, value, layer)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """[n, vocabulary] float32 for the n ids, or [1, labels]."""
        options: dict[str, Any] = {}
        if self.virtual is not None:
            options = {"past_key_values": DynamicCache(), "use_cache": True}
        made = self.model(**self._inputs(ids, 0, options.get("past_key_values")), **options).logits
        return made.reshape(-1, made.shape[-1])[-len(ids) :].float()

    @torch.no_grad()
    def answer(self, messages: list[dict[str, str]], max_new_tokens: int = 200) -> str:
        """The likeliest answer; for a classifier the likeliest label."""
        ids = self.prompt_ids(messages)
        if self.facts["labels"]:
            return str(self.facts["labels"][int(self.logits(ids)[-1].argmax())])
        cache: Any = DynamicCache()
        fed, begun = 0, len(ids)
        while len(ids) < begun + max_new_tokens:
            out = self.model(**self._inputs(ids, fed, cache), past_key_values=cache, use_cache=True)
            fed = len(ids)
            ids.append(int(out.logits[0, -1].argmax()))
            if ids[-1] in self.facts["stop_ids"]:
                break
        return str(self.tokenizer.decode(ids[begun:], skip_special_tokens=True))


if __name__ == "__main__":
    words = " ".join(sys.argv[1:]) or sys.stdin.read()
    sys.stdout.write(Bundle(Path(__file__).parent).answer([{"role": "user", "content": words}]) + "\n")
