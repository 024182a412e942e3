"""The self-test's little world, its healthy runs, and one planted fault for every diagnosis."""
