"""The report of a run: reads the files of the run directory, and nothing else."""
