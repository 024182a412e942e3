"""`luthier serve` from its words to a server, as far as it decides something before it listens."""

import pytest
from serving_world import made

from luthier.adapted import attach
from luthier.cli import app as cli
from luthier.context import CONTEXTS
from luthier.data.templates import choose
from luthier.models.load import load_base, read_config, resolve
from luthier.models.settings import ModelSettings
from luthier.serve import app
from luthier.tasks import TASKS


@pytest.fixture
def listened(monkeypatch):
    """The servers that would have listened."""
    servers = []

    class Listener:
        def __init__(self, config):
            servers.append(config.app.server)

        def run(self, sockets):
            sockets[0].close()
            servers[-1].worker.close(0)

    monkeypatch.setattr(app, "listener", Listener)
    return servers


def test_the_deadline_is_that_of_the_option(listened, capsys):
    words = ["serve", "--base", "builtin", "--port", "0", "--threads", "1"]
    assert cli.outcome([*words, "--deadline", "12.5"]) == 0
    assert cli.outcome(words) == 0
    assert [server.limits.deadline_s for server in listened] == [12.5, 300.0]
    assert cli.outcome([*words, "--deadline", "0"]) == 2


def test_runs_with_different_window_plans_do_not_share_a_server(listened, tmp_path, capsys):
    """Refused before anything listens, with the two plans in the text."""
    config = read_config(resolve("builtin"))
    plan = CONTEXTS.parse({"name": "yarn", "length": 2 * config["max_position_embeddings"]}).plan(config)
    base = load_base(ModelSettings(path="builtin"), context=plan)
    adapted = attach(
        base, {"name": "lora", "r": 2}, TASKS.parse("instruct"), choose("chat", base.tokenizer, "instruct"), seed=0
    )
    for weight in adapted.parameters_by_name().values():
        weight.data += 0.1
    adapted.save(tmp_path / "long")
    made(tmp_path, "short", {"name": "lora", "r": 2})
    code = cli.outcome(["serve", str(tmp_path / "long"), str(tmp_path / "short"), "--port", "0", "--threads", "1"])
    told = " ".join(capsys.readouterr().err.split())
    window = plan["from"]
    wanted = f"trained with no extension, the base is built with yarn {window} → {2 * window}"
    assert code != 0
    assert wanted in told
    assert listened == []
