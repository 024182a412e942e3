"""Loading a base: local files, safetensors, no foreign code, no questions on stdin; refused early and in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from luthier.core.errors import ModelError
from luthier.core.fingerprint import of_file, of_value
from luthier.models import anatomy, logit_scale
from luthier.models.base import Base
from luthier.models.gate import check_config, check_model_folder
from luthier.models.settings import ModelSettings

SAMPLED_TENSORS = 8
ATTENTION = "sdpa"


def resolve(path: str) -> Path:
    """The local folder of `builtin`, of a folder, or of a hub id (downloaded only when the hub is reachable)."""
    if path == "builtin":
        folder = Path(__file__).parent / "builtin" / "weights"
        if not folder.is_dir():
            raise ModelError("this installation has no built-in base", where="model.path", remedy="name a model folder")
        return folder
    if Path(path).is_dir():
        return Path(path)
    if path.count("/") != 1 or path.startswith((".", "/")) or path.endswith("/"):
        raise ModelError(
            f"no model folder at {path}", where="model.path", remedy="builtin, a local folder, or a hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(path, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} is neither a local folder nor in the local cache, and the hub did not give it",
            where="model.path",
            remedy=f"copy the model's folder here and name it ({type(error).__name__})",
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """config.json with the architecture's defaults filled in."""
    from transformers import AutoConfig

    check_model_folder(folder)
    return dict(AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).to_dict())


def load_base(
    settings: ModelSettings,
    *,
    task: str = "language_model",
    labels: Sequence[str] | None = None,
    problem: str = "single",
    context: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Base:
    """The base for a task; a classification head with `labels` is fresh unless the folder has one of that size.

    `context` is a window plan: its config changes are made before the model is built.
    """
    from luthier.models.tokenizer import load_tokenizer

    folder = resolve(settings.path)
    check_model_folder(folder)
    labels = labels if task == "classify" else None
    config = _config(folder, labels, problem, context)
    model, fresh = _build(folder, config, settings, labels, seed)
    if context and context.get("resize"):
        from luthier.models.window import resize_positions

        resize_positions(model, context, seed=0)
    if settings.dropout is not None:
        from luthier.models.dropout import set_dropout

        set_dropout(model, settings.dropout)
    if settings.quantize == "none":
        model.to(_device(settings.device))
    tokenizer, pad_id, stop_ids = load_tokenizer(folder, model)
    model.config.pad_token_id = pad_id  # row heads of decoders pool the last token that is no pad
    model.requires_grad_(False)
    model.eval()
    found = anatomy.of(model)
    kind: Any = found.kind
    weights = "" if settings.random_init else fingerprint_weights(folder)
    facts = {**fingerprint_files(folder), "weights": weights}
    head = _head_modules(model, fresh) if labels else ()
    base = Base(model, tokenizer, found, kind, folder, facts, stop_ids, pad_id, head, dict(context or {}))
    if labels:
        from luthier.models import suited

        suited.prove_head(base)
    else:
        base.anatomy = logit_scale.checked(base)
    return base


def _head_modules(model: Any, fresh: Sequence[str]) -> tuple[str, ...]:
    """The row head, and every other top part that the checkpoint did not have."""
    names = ("score", "classifier", "pre_classifier", "classification_head")
    found = [name for name in names if hasattr(model, name)]
    found += sorted({name.rpartition(".")[0] for name in fresh} - set(found))
    return tuple(name for name in found if not any(name.startswith(other + ".") for other in found))


def architecture(folder: Path) -> Any:
    """The model's config as transformers reads it, past the gate; no weight is read."""
    if (folder / "config.json").is_file():
        check_config(folder / "config.json")
    return _config(folder, None, "single", None)


def _config(folder: Path, labels: Sequence[str] | None, problem: str, context: Mapping[str, Any] | None) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ModelError("config.json is missing", where=str(folder), remedy="name a Hugging Face model folder")
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    if raw.get("auto_map") or str(raw.get("_attn_implementation", "")).count("/"):
        raise ModelError(
            "the config asks for foreign code", where=str(folder / "config.json"), remedy="remove auto_map"
        )
    changes: dict[str, Any] = {}
    if context and not context.get("resize"):
        changes |= dict(context["config"])
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **changes)
    if labels:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        kinds = {"single": "single_label_classification", "multi": "multi_label_classification"}
        config.problem_type = kinds.get(problem, "regression")
    return config


def _build(
    folder: Path, config: Any, settings: ModelSettings, labels: Sequence[str] | None, seed: int
) -> tuple[Any, tuple[str, ...]]:
    """The model and the names of weights that the folder did not have."""
    import transformers

    if labels:
        loader: Any = transformers.AutoModelForSequenceClassification
    elif config.is_encoder_decoder:
        loader = transformers.AutoModelForSeq2SeqLM
    else:
        loader = transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    dtype = _dtype(settings)
    attention = _attention(loader, config)
    if settings.random_init:
        return loader.from_config(config, trust_remote_code=False, attn_implementation=attention).to(dtype), ()
    _refuse_incomplete(folder)
    options: dict[str, Any] = {"config": config, "dtype": dtype, "trust_remote_code": False, "local_files_only": True}
    options["attn_implementation"] = attention
    if settings.quantize != "none":
        from luthier.models.quantized import quantization

        options["quantization_config"] = quantization(settings.quantize)
        options["device_map"] = {"": _device(settings.device)}
    with quiet():
        try:
            model, info = loader.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **options)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(
                f"the model does not load: {error}", where=str(folder), remedy="check the folder"
            ) from None
    _refuse_missing(info, bool(labels), folder)
    return model, tuple(sorted(info["missing_keys"]))


def _attention(loader: Any, config: Any) -> str:
    """sdpa where the architecture has it (soft caps have not)."""
    kind = loader._model_mapping.get(type(config), None)
    return ATTENTION if getattr(kind, "_supports_sdpa", True) else "eager"


@contextmanager
def quiet() -> Iterator[None]:
    """Inside: no load report and no progress bars on the terminal (what matters in them is raised)."""
    import transformers

    logging: Any = transformers.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _refuse_incomplete(folder: Path) -> None:
    """Every file that the weights need, named at once; pickled weights are never an answer."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    else:
        wanted = [] if list(folder.glob("*.safetensors")) else ["model.safetensors"]
    missing = [name for name in wanted if not (folder / name).is_file()]
    tokenizers = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "tokenizer_config.json",
    )
    if not any((folder / name).is_file() for name in tokenizers):
        missing.append("tokenizer.json")
    if not missing:
        return
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    hint = f" (pickled weights are not read: {', '.join(others)})" if others else ""
    raise ModelError(
        f"the model folder lacks {', '.join(missing)}{hint}",
        where=str(folder),
        remedy="convert the weights to safetensors" if others else "copy the whole folder again",
    )


def _refuse_missing(info: Mapping[str, Any], with_head: bool, folder: Path) -> None:
    heads = ("score", "classifier", "pre_classifier", "pooler", "classification_head")
    missing = [key for key in info["missing_keys"] if not (with_head and any(head in key for head in heads))]
    if missing or info.get("mismatched_keys"):
        shown = ", ".join(sorted(map(str, missing or info["mismatched_keys"]))[:5])
        raise ModelError(
            f"{len(missing)} weights are missing or misshapen: {shown}", where=str(folder), remedy="use a whole model"
        )


def _dtype(settings: ModelSettings) -> torch.dtype:
    if settings.dtype != "auto":
        found: torch.dtype = getattr(torch, settings.dtype)
        return found
    cuda = _device(settings.device).startswith("cuda")
    return torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float32


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"no {name} on this machine", where="model.device", remedy="auto or cpu")
    return name


def fingerprint_weights(folder: Path) -> str:
    """sha256 over the files: the same in every dtype and on every device.

    The beginning of every tensor, so that a merged adapter is another base whatever layers it was on, and some whole
    tensors, evenly by name.
    """
    from safetensors import safe_open

    found: dict[str, Any] = {}
    large: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                part = handle.get_slice(name)
                matrix = len(part.get_shape()) > 1
                found[f"{name}[:1]"] = _hash_of(part[:1] if matrix else handle.get_tensor(name))
                if matrix:
                    large[name] = file
    names = sorted(large)
    step = max(1, len(names) // SAMPLED_TENSORS)
    for name in names[::step][:SAMPLED_TENSORS]:
        with safe_open(large[name], framework="pt") as handle:
            found[name] = _hash_of(handle.get_tensor(name))
    return of_value(found)


def _hash_of(tensor: torch.Tensor) -> list[Any]:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return [str(tensor.dtype), list(tensor.shape), hashlib.sha256(raw).hexdigest()]


def fingerprint_files(folder: Path) -> dict[str, Any]:
    """Name, config and tokenizer of the folder."""
    tokenizer = next(
        (
            folder / name
            for name in ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
            if (folder / name).is_file()
        ),
        None,
    )
    return {
        "name": "builtin" if folder.parent.name == "builtin" else folder.name,
        "config": of_file(folder / "config.json"),
        "tokenizer": of_file(tokenizer) if tokenizer else "",
    }
