"""What a measurement is bound to: hashes of recipe, data, base and adapter. Evidence about other files is stale."""

from __future__ import annotations

from pathlib import Path

from luthier.core.fingerprint import of_file, of_value
from luthier.core.rundir import RunDir
from luthier.pipeline import place


def hashes(run: RunDir) -> dict[str, str]:
    """{"recipe", "data", "base", "adapter"}: sha256 of the files as they are now."""
    from luthier.models.load import fingerprint_files, fingerprint_weights, resolve

    recipe = place.reopen(run)
    folder = resolve(recipe.model.path)
    weights = "" if recipe.model.random_init else fingerprint_weights(folder)
    sources = [str(item["path"]) for item in (run.read(run.manifest) or {}).get("sources", ())]
    kept = sorted(path for path in run.adapter.rglob("*") if path.suffix in (".safetensors", ".json"))
    return {
        "recipe": recipe.fingerprint(),
        "data": of_value({path: of_file(Path(path)) if Path(path).is_file() else "absent" for path in sources}),
        "base": of_value({**fingerprint_files(folder), "weights": weights}),
        "adapter": of_value({str(path.relative_to(run.adapter)): of_file(path) for path in kept}),
    }
