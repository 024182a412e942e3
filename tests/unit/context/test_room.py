"""Rows that the window cannot hold are refused before training, with the row and the length that fits."""

import re

import pytest
from tests.unit.context.test_stages import TRAIN, recipe_of, text  # noqa: F401

from luthier.core.errors import DataError
from luthier.pipeline import story


@pytest.mark.parametrize(("method", "room"), [({"name": "lora", "r": 2}, 64), ({"name": "prefix", "length": 4}, 60)])
def test_rows_longer_than_the_window_are_refused_before_training(method, room, folders, text, tmp_path):  # noqa: F811
    data = {"train": str(text), "template": "plain", "max_length": room + 1, "split": {"validation": 2, "test": 2}}
    with pytest.raises(DataError, match=rf"40 of 60 train rows do not fit.* docs:\d+#0, has {room + 1} tokens") as told:
        story.run(recipe_of(folders("llama"), text, method=method, data=data), tmp_path / "run")
    assert re.search(rf"data.max_length: {room}\b", str(told.value))
    fitting = recipe_of(folders("llama"), text, method=method, data={**data, "max_length": room}, train=TRAIN)
    assert story.check(fitting)["ok"]
