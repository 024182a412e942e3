"""The real files of the shared data: rows and formats as their table says; every one can be divided."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luthier.data import load, split
from luthier.data.settings import DataSettings

SHARED = Path(os.environ.get("LUTHIER_DATA", Path(__file__).parents[4] / "shared" / "data"))
FILES = [
    ("instruct/rasbt_instruction_data.json", "instruct", 1100, "instruction"),
    ("instruct/rasbt_preference_200.json", "instruct", 200, "preference"),
    ("instruct/self_instruct_seed_tasks.jsonl", "instruct", 175, "self_instruct"),
    ("instruct/self_instruct_user_oriented.jsonl", "instruct", 252, "self_instruct"),
    ("instruct/llamafactory_identity.json", "instruct", 91, "instruction"),
    ("instruct/llamafactory_alpaca_en_demo.json", "instruct", 999, "instruction"),
    ("instruct/llamafactory_alpaca_zh_demo.json", "instruct", 1000, "instruction"),
    ("instruct/llamafactory_glaive_toolcall_en_100.json", "instruct", 100, "chat"),
    ("instruct/fastchat_dummy_conversation.json", "instruct", 500, "chat"),
    ("instruct/gsm8k_train_2000.jsonl", "instruct", 2000, "question_answer"),
    ("instruct/gsm8k_test_300.jsonl", "instruct", 300, "question_answer"),
    ("instruct/mgsm_zh.tsv", "instruct", 250, "question_answer"),
    ("instruct/xquad_en_24articles.json", "instruct", 632, "squad"),
    ("instruct/xquad_zh_24articles.json", "instruct", 632, "squad"),
    ("classify/sentence_polarity", "classify", 5500, "text_label"),
    ("classify/sib200_eng_Latn", "classify", 1004, "text_label"),
    ("classify/sib200_zho_Hans", "classify", 1004, "text_label"),
    ("classify/banking77", "classify", 13083, "text_label"),
    ("classify/agnews_layout_sib200", "classify", 905, "text_label"),
    ("generate/e2e", "instruct", 7000, "prompt_response"),
    ("generate/scitldr_a_train_600.jsonl", "instruct", 600, "prompt_response"),
    ("generate/scitldr_a_dev_100.jsonl", "instruct", 100, "prompt_response"),
    ("generate/zh_poetry_tang_10000.json", "language_model", 1000, "plain_text"),
    ("longtext/tinystories_excerpt.txt", "language_model", 185, "plain_text"),
    ("longtext/moby_dick.txt", "language_model", None, "plain_text"),
    ("longtext/tinyshakespeare.txt", "language_model", None, "plain_text"),
]


@pytest.mark.parametrize(("name", "task", "rows", "layout"), FILES, ids=[name for name, *_ in FILES])
def test_shared_file(name, task, rows, layout):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    settings = DataSettings(train=str(path))
    found = load.load(settings, task)
    assert {source["format"] for source in found.report.sources} == {layout}
    assert rows is None or len(found.examples) == rows
    assert found.report.dropped == []
    sides = split.split(found, settings.split, task)
    assert all(len(getattr(sides, side)) > 0 for side in split.SIDES)
    if layout == "text_label":
        assert not any(row.label.isdigit() for row in found.examples[:50])
