"""The engine against its peers: the same rows, base and adapter, whole epochs, interleaved, each in its own process."""
