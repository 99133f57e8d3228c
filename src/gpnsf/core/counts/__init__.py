"""Counts as they are kept and summed over.

Nonzeros, row blocks, and the compiled code behind both.
"""
