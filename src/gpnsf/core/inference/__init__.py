"""From counts to a posterior: starts, training, moves, the spatial test and the local stage."""
