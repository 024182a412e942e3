import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))


@pytest.fixture
def luthier(capsys):
    """Run words in this process → (exit code, stdout, stderr)."""
    from luthier.cli import app, console

    def call(*words: str):
        console.forget()
        code = app.outcome(list(map(str, words)))
        seen = capsys.readouterr()
        console.forget()
        return code, seen.out, seen.err

    return call
