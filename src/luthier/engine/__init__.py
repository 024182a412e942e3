"""Speed, as pure torch functions: batches, segment attention, losses. Nothing of Hugging Face in here."""
