"""Counts as they are kept and summed over: nonzeros, row blocks, and the compiled code behind both."""
