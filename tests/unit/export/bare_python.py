"""An interpreter that can import what a requirements file names, with what that needs, and nothing else."""

import functools
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

RUN = """
import json, runpy, sys
folder, script, texts = sys.argv[1:]
sys.path.append(folder)
for text in json.loads(texts):
    sys.argv = [script, text]
    runpy.run_path(script, run_name="__main__")
"""


def distributions(names):
    """Those names and everything they require here, as name → distribution."""
    found, left = {}, list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        for line in found[name].requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                left.append(needed.name)
    return found


def environment(requirements, folder):
    """Links to the top-level files of these distributions, as the only place to import from."""
    folder.mkdir()
    names = [line.partition("==")[0] for line in requirements.read_text("utf-8").split()]
    for one in distributions(names).values():
        for top in {Path(str(file)).parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(one.locate_file(top))))
    return folder


@functools.cache
def missing(folder, name):
    """Whether this interpreter cannot import `name`."""
    code = f"import sys, importlib.util; sys.path.append({str(folder)!r}); print(importlib.util.find_spec({name!r}))"
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True).stdout == "None\n"


def run(folder, script, *texts, timeout=500):
    """What the script prints for each text, run without site-packages."""
    command = [sys.executable, "-I", "-S", "-c", RUN, str(folder), str(script), json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout
