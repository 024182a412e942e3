"""The GGUF file in llama.cpp itself (`pip install xllamacpp`, its Python build; skipped by name where it is absent)."""

import json
import subprocess
import sys

import pytest
from export_world import TEXTS, rows_for, trained

from luthier.core.types import Turn
from luthier.export.run import export

ASK = """
import json, sys
import xllamacpp
asked = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = asked["file"], 512, 1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server, found = xllamacpp.Server(params), []
for question, ids in asked["prompts"]:
    greedy = {"temperature": 0, "max_tokens": 24, "cache_prompt": False}
    by_ids = server.handle_completions({"prompt": ids, **greedy})["choices"][0]["text"]
    turns = [{"role": "user", "content": question}]
    chat = server.handle_chat_completions({"messages": turns, **greedy})["choices"][0]["message"]["content"]
    found.append([by_ids, chat])
print("\\n" + json.dumps(found))
"""


def test_llama_cpp_says_what_luthier_says(tmp_path):
    """By token ids and through the chat template that is in the file: the same greedy text, English and Chinese."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    tuned = trained({"name": "lora", "r": 4})
    export(tuned, rows_for(tuned), tmp_path / "out", "gguf")
    prompts = [
        (question, list(tuned.template.prompt_ids((Turn("user", question),), tuned.base.tokenizer)))
        for question, _ in (*TEXTS, ("艾达住在哪里？", ""), ("  two  spaces\tand <|end|> in it", ""))
    ]
    asked = {"file": str(tmp_path / "out" / "model.gguf"), "prompts": prompts}
    done = subprocess.run(
        [sys.executable, "-c", ASK], input=json.dumps(asked), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    ours = [tuned.generate(question, max_new_tokens=24) for question, _ in prompts]
    assert [by_ids for by_ids, _ in found] == ours
    assert [chat for _, chat in found[:-1]] == ours[:-1]  # to llama.cpp a control token in a question is one
