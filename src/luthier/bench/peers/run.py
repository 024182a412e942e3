"""The script that a peer's interpreter runs: `python run.py FOLDER ARM THREADS`.

A script's own folder would come first on `sys.path`, where a file of ours called torchtune.py would hide the library
of that name. So this folder is taken off it and becomes a package under another name.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

NAME = "bench_peers"


def main(folder: Path, arm: str, threads: int) -> None:
    """Make the package, then answer orders."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    spec = importlib.util.spec_from_file_location(NAME, here / "__init__.py", submodule_search_locations=[str(here)])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = package
    spec.loader.exec_module(package)
    importlib.import_module(f"{NAME}.peer").answer_orders(folder, arm, threads)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
