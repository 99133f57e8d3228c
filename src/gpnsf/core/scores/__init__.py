"""Scores worked out from factors, loadings and counts once they are there, in numpy."""
