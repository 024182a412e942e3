"""Text becomes Examples, Examples become Rows, Rows become Batches."""
