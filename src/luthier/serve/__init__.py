"""Many adapters of many kinds on one base, behind an OpenAI-compatible API."""
