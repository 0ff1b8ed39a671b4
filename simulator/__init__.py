"""superpod-sim: how long collectives would take on other machines, from the algorithms that run for real."""
