"""Run as a program: a hundred hostile models, adapters, templates, tokenizers and data files under an audit hook.

    python audited.py WORK [N]      prints one JSON line: count, refused, loaded, events, control; every N-th only

Nothing may be executed, started, connected to, or opened that is code or a pickle. At the end the hook is shown
what it must see (positive control).
"""

import json
import os
import shutil
import sys
from pathlib import Path

import hostile
import test_data_faults
import test_model_faults

from luthier import adapted
from luthier.core import limits
from luthier.core.errors import LuthierError
from luthier.data import load
from luthier.data.settings import DataSettings
from luthier.models import gate
from luthier.models.load import load_base, resolve
from luthier.models.settings import ModelSettings

OURS = [sys.executable, "-I", "-B", "-c", limits._BOOT]
"""The limited child process is the one program that may be started."""
CODE = (".py", ".pyc", ".so", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
ACTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn", "socket.connect", "socket.bind",
        "socket.getaddrinfo", "pickle.find_class", "ctypes.dlopen")  # fmt: skip


class Watch:
    """Collects the events that must not be, while it is on."""

    def __init__(self, work):
        self.work, self.on, self.seen = str(work), False, []
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if not self.on:
            return
        if event in ACTS or (event == "subprocess.Popen" and list(arguments[1]) != OURS):
            self.seen.append((event, str(arguments)[:200]))
            return
        name = str(arguments[0]) if event in ("open", "import") else ""
        if (self.work in name and name.endswith(CODE)) or (event == "import" and "evil" in name):
            self.seen.append((event, name))


def models(work):
    """Folders of base models."""
    source = resolve("builtin")
    folder = work / "model"
    for name, spoil in hostile.hostile_folders((source / "model.safetensors").read_bytes()):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        spoil(folder)
        yield f"model: {name}", lambda: load_base(ModelSettings(path=str(folder), device="cpu"))


def adapters(work):
    """adapter_config.json, luthier.json, and pickles in an adapter folder."""
    lora = test_model_faults.saved({"name": "lora", "r": 4}, work / "lora")
    folder, base = work / "adapter", test_model_faults.fresh()
    for file, changes in (("adapter_config.json", hostile.CONFIGS), ("luthier.json", hostile.CARDS)):
        clean = json.loads((lora / file).read_text())
        for name, change in changes.items():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(lora, folder)
            (folder / file).write_text(json.dumps(clean | change))
            yield f"{file}: {name}", lambda: adapted.load_onto(folder, base)
    shutil.rmtree(folder)
    shutil.copytree(lora, folder)
    for name in hostile.pickles(folder):
        yield f"pickle: {name}", lambda: adapted.load_onto(folder, base)


def texts(work):
    """Chat templates, tokenizers, data files."""
    for name, text in hostile.TEMPLATES.items():
        yield f"template: {name}", lambda text=text: gate.check_template(text)
    for name, text in hostile.tokenizers((resolve("builtin") / "tokenizer.json").read_text("utf-8")).items():
        (work / "tokenizer.json").write_text(text, "utf-8")
        yield f"tokenizer: {name}", lambda: gate.check_tokenizer(work / "tokenizer.json")
    data = work / "data"
    data.mkdir()
    for name, path in test_data_faults.archives(data).items():
        yield f"data: {name}", lambda path=path: load.load(DataSettings(train=str(path)), "instruct")
    line = json.dumps(test_data_faults.GOOD[0])
    for name, damage in test_data_faults.DAMAGE.items():
        (data / "rows.jsonl").write_text(f"{line}\n{damage(line)}\n", "utf-8", "surrogatepass")
        yield f"data: {name}", lambda: load.load(DataSettings(train=str(data / "rows.jsonl")), "instruct")


def main(work, nth=1):
    """All of them; what each says is not of interest here, only that it is refused and what was touched."""
    load_base(ModelSettings(path="builtin", device="cpu"))  # everything is imported before the watch begins
    watch, refused, loaded = Watch(work), 0, []
    for number, (name, act) in enumerate(each(work)):
        if number % nth:
            continue
        watch.on = True
        try:
            act()
            loaded.append(name)
        except LuthierError:
            refused += 1
        finally:
            watch.on = False
    canaries = [str(path) for path in work.rglob(hostile.CANARY)] + ["."] * Path(hostile.CANARY).exists()
    events, watch.on = list(watch.seen), True
    (work / "evil.py").write_text("x = 1")
    os.system("true")
    watch.on = False
    control = sorted({event for event, _ in watch.seen[len(events) :]})
    print(json.dumps({"count": refused + len(loaded), "refused": refused, "loaded": loaded, "events": events,
                      "canaries": canaries, "control": control}))  # fmt: skip


def each(work):
    """(name, attempt), made one after another."""
    yield from models(work)
    yield from adapters(work)
    yield from texts(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
