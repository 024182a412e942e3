"""Answers with the model of this folder: `python answer.py "text"`. Needs torch, transformers and safetensors.

Prints the answer, the likeliest label, all labels above one half (a run with several labels a text; nothing where none
is), or the value of a regression. A text beyond the model's window ends with exit code 2; a text to be labelled loses
its middle instead, as in the evaluation of the run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer, DynamicCache, EncoderDecoderCache


class TooLong(ValueError):
    """A prompt that leaves no place for an answer."""


class Bundle:
    """The model, and the prompt exactly as it was in training."""

    def __init__(self, folder: Path):
        self.facts: dict[str, Any] = json.loads((folder / "prompt.json").read_text("utf-8"))
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        dtype = getattr(torch, self.facts["dtype"])
        loader: Any = getattr(transformers, self.facts["loader"])
        self.model = loader.from_pretrained(folder / "model", dtype=dtype, use_safetensors=True, **options).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model", **options)
        file = folder / "virtual_tokens.safetensors"
        self.virtual = load_file(file) if file.is_file() else None
        self.two_sided = self.facts["loader"] == "AutoModelForSeq2SeqLM"

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
        if self.facts["frame"] is not None:
            return self.framed("\n".join(message["content"] for message in messages))
        if shape is None:
            made = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            return [int(token) for token in made]
        ids = list(shape["start"])
        if messages[0]["role"] != "system":
            ids += shape["default"]
        for message in messages:
            before, after = shape["around"][message["role"]]
            ids += [*before, *self._ids(message["content"]), *after]
        return ids + list(shape["opening"])

    def framed(self, text: str) -> list[int]:
        """A text to be labelled, or a document to be continued. The former loses its middle where it is too long."""
        before, (first, last), after = (self.facts["frame"][part] for part in ("before", "text", "after"))
        ids = self._ids(first + text + last)
        if self.facts["labels"]:
            longest = max((len(one) for one in self.facts["endings"]), default=0)
            keep = max(4, self.facts["limit"] - longest - len(before) - len(after))
            if len(ids) > keep:
                ids = ids[: keep // 4] + ids[len(ids) - (keep - keep // 4) :]
        return [*before, *ids, *after]

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
        return {"input_ids": rows, **({} if self.facts["has_head"] else {"position_ids": positions})}

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
    def logits(self, ids: list[int], prompt: int = 0) -> torch.Tensor:
        """[n, vocabulary] float32 for the n ids, or [1, labels]. Of an encoder-decoder, which reads the first
        `prompt` ids and speaks the others: [n − prompt + 1, vocabulary]."""
        if self.two_sided:
            spoken = torch.tensor([[self.facts["start"], *ids[prompt:]]])
            out = self.model(input_ids=torch.tensor([ids[:prompt]]), decoder_input_ids=spoken, use_cache=False)
            return out.logits[0].float()
        options: dict[str, Any] = {}
        if self.virtual is not None:
            options = {"past_key_values": DynamicCache(), "use_cache": True}
        made = self.model(**self._inputs(ids, 0, options.get("past_key_values")), **options).logits
        return made.reshape(-1, made.shape[-1])[-len(ids) :].float()

    def _likelihood(self, ids: list[int], ending: list[int]) -> float:
        """Σ log p of a label's tokens behind the prompt (by token where the run says so); its stop token not."""
        rows = self.logits([*ids, *ending], len(ids))[-len(ending) - 1 : -2].double().log_softmax(-1)
        total = float(rows[torch.arange(len(rows)), torch.tensor(ending[:-1])].sum())
        return total / len(rows) if self.facts["normalize"] == "tokens" else total

    def label(self, ids: list[int]) -> str:
        """The likeliest label, the labels above one half, or the value."""
        names = self.facts["labels"]
        if not self.facts["has_head"]:
            scores = [self._likelihood(ids, ending) for ending in self.facts["endings"]]
            return str(names[max(range(len(scores)), key=lambda at: scores[at])])
        made = self.logits(ids)[-1]
        if self.facts["problem"] == "regression":
            return f"{float(made[0]):.6g}"
        if self.facts["problem"] == "multi":
            return ", ".join(name for name, logit in zip(names, made.tolist(), strict=True) if logit >= 0)
        return str(names[int(made.argmax())])

    @torch.no_grad()
    def answer(self, messages: list[dict[str, str]], max_new_tokens: int = 200) -> str:
        """The likeliest answer; of a run with labels what `label` says. TooLong where no token fits any more."""
        ids = self.prompt_ids(messages)
        if self.facts["labels"]:
            return self.label(ids)
        room = self.facts["limit"] - len(ids)
        if room < 1:
            raise TooLong(f"{len(ids)} tokens leave no room for an answer: the model takes {self.facts['limit']}")
        begun, most = len(ids), min(max_new_tokens, room)
        for token in self._spoken(ids) if self.two_sided else self._continued(ids):
            ids.append(token)
            if token in self.facts["stop_ids"] or len(ids) - begun >= most:
                break
        return str(self.tokenizer.decode(ids[begun:], skip_special_tokens=True))

    def _continued(self, ids: list[int]) -> Any:
        """Greedy tokens; `ids` grows by each before the next is asked for."""
        cache: Any = DynamicCache()
        fed = 0
        while True:
            out = self.model(**self._inputs(ids, fed, cache), past_key_values=cache, use_cache=True)
            fed = len(ids)
            yield int(out.logits[0, -1].argmax())

    def _spoken(self, ids: list[int]) -> Any:
        """The same for an encoder-decoder: the prompt is read once."""
        read = self.model.get_encoder()(input_ids=torch.tensor([ids]))
        cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        last = self.facts["start"]
        while True:
            fed = torch.tensor([[last]])
            out = self.model(encoder_outputs=read, decoder_input_ids=fed, past_key_values=cache, use_cache=True)
            last = int(out.logits[0, -1].argmax())
            yield last


if __name__ == "__main__":
    words = " ".join(sys.argv[1:]) or sys.stdin.read()
    try:
        sys.stdout.write(Bundle(Path(__file__).parent).answer([{"role": "user", "content": words}]) + "\n")
    except TooLong as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
