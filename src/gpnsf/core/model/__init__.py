"""The joint model of all modalities with its guide, and the evidence lower bound."""
