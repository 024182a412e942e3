"""Many runs of one recipe: a grid of settings, each point an ordinary run in its own process, and a comparison."""
