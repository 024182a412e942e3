"""Knows Hugging Face; nothing above does: loading, anatomy, tokenizer, forward, decoding."""
