"""superpod-bench: how fast the collectives are on this machine, with every result checked."""
