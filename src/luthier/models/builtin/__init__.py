"""The small base model that ships with luthier. No torch here: only where it is."""

from pathlib import Path


def folder() -> Path:
    """The Hugging Face model folder."""
    return Path(__file__).parent / "weights"
