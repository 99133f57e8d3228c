"""Arrays and tensors only: nothing in here knows AnnData or MuData."""
