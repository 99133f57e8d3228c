"""The methods beside the family: deconvolution, FactVAE, scAI and MEFISTO."""
