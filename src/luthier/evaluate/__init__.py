"""Base against tuned on the same rows: losses, predictions, samples, paired intervals."""
