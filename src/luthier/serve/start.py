"""Before the server listens: names of the adapters, one base for all of them, and proof that it is served exactly."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from luthier.adapted import adapter_folder, read_card
from luthier.core.errors import ModelError, RecipeError
from luthier.models.base import Base

if TYPE_CHECKING:
    from luthier.serve.engine import Engine

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PROBES = 3
NEW_TOKENS = 8
GAP = 1e-3
"""Two best logits nearer than this may swap places between two ways to compute the same thing."""


def named(runs: Sequence[str]) -> dict[str, Path]:
    """`NAME=RUN` or `RUN` (then its folder's name) → adapter folder. RecipeError for a name that stands twice."""
    found: dict[str, Path] = {}
    for given in runs:
        name, equals, path = given.partition("=")
        if not equals or not NAME.fullmatch(name):
            name, path = Path(given.rstrip("/")).resolve().name, given
        if name == "adapter":
            name = Path(path).resolve().parent.name
        name = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        if name in found:
            raise RecipeError(f"two adapters are called {name!r}", where="RUN", remedy=f"name one: {name}-2={path}")
        folder = adapter_folder(Path(path))
        if not folder.is_dir():
            raise ModelError(f"no run or adapter at {path}", where=path)
        found[name] = folder
    return found


def open_base(path: str | None, adapters: dict[str, Path], threads: int | None = None) -> Base:
    """The named base, else that of the first adapter; with its window plan, and packed as it was in its training."""
    import psutil
    import torch

    from luthier.models.load import load_base
    from luthier.models.settings import ModelSettings

    torch.set_num_threads(threads or psutil.cpu_count(logical=False) or 1)
    cards = [read_card(folder) for folder in adapters.values()]
    context = next((card["context"] for card in cards if card.get("context")), None)
    known = next((card["base"]["path"] for card in cards if card.get("base")), None)
    if path is None and known is None:
        raise RecipeError("nothing says which base to serve", where="--base", remedy="--base MODEL, or name a run")
    packed = next((card["base"].get("quantize", "none") for card in cards if card.get("base")), "none")
    settings = ModelSettings(path=str(path or known), quantize=packed)
    if not _is_encoder(settings.path):
        return load_base(settings, context=context)
    # Many encoders can be built with a head only. Each run brings its own and takes the layers of this one.
    labels = next((card["labels"] for card in cards if card.get("labels")), ("no", "yes"))
    return load_base(settings, task="classify", labels=tuple(labels), context=context)


def _is_encoder(path: str) -> bool:
    from luthier.models.anatomy import kind_of_config
    from luthier.models.load import read_config, resolve

    folder = resolve(path)
    if not (folder / "config.json").is_file():
        return False  # `load_base` says what is missing
    return kind_of_config(SimpleNamespace(**read_config(folder))) == "encoder"


def engine_for(base: Base, slots: int) -> tuple[Callable[[], Engine], str, str]:
    """How engines are built, the attention of the adapters' trees, and why answers are made one by one ("": they are
    not). The slot engine where it is exact, else the model's own forward; an encoder answers in labels only, for
    which no slot is needed."""
    from luthier.serve import attention
    from luthier.serve.engine import Engine
    from luthier.serve.one_by_one import OneByOne

    plainly = str(base.model.config._attn_implementation)
    if base.kind == "encoder":
        return lambda: OneByOne(base, slots=0), plainly, ""
    try:
        prove_exact(Engine(base, slots=2), base)
    except ModelError as error:
        return lambda: OneByOne(base, slots), plainly, error.what
    return lambda: Engine(base, slots=slots), attention.NAME, ""


def prove_exact(engine: Any, base: Base) -> None:
    """The engine must choose the tokens that the model's own forward chooses. ModelError names the first difference.

    A prompt whose two best logits come nearer than GAP is skipped from there on: either may be right.
    """
    import torch

    from luthier.serve.adapters import Served
    from luthier.serve.request import Request, Sampling

    source = torch.Generator().manual_seed(0)
    words: Any = base.model.get_input_embeddings()
    size = int(words.weight.shape[0])
    for length in (3, 17, 40)[:PROBES]:
        if length + NEW_TOKENS > base.anatomy.window:
            continue
        prompt = torch.randint(0, size, (length,), generator=source).tolist()
        request = Request(Served("probe", None, base), list(prompt), Sampling(0.0, max_new_tokens=NEW_TOKENS), _drop)
        engine.submit(request)
        while not engine.idle:
            engine.step()
        ids = torch.tensor([[*prompt, *request.made]], device=engine.pool.device)
        with torch.no_grad():
            logits = base.model(input_ids=ids).logits[0, length - 1 : -1].float()
        best = logits.topk(2)
        for place, token in enumerate(request.made):
            if float(best.values[place, 0] - best.values[place, 1]) < GAP:
                break
            if int(best.indices[place, 0]) != token:
                raise ModelError(
                    "the serving engine does not compute this architecture exactly",
                    where=str(base.path),
                    remedy="export the run and serve it elsewhere, or use `luthier chat`",
                )
        if not request.made:
            raise ModelError("the serving engine cannot run this architecture", where=str(base.path))


def _drop(token: Any) -> None:
    """Nobody listens to the probe."""
