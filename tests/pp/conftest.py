"""What preparation may and may not change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from anndata import AnnData
from mudata import MuData


@pytest.fixture
def slots() -> Callable[[AnnData | MuData], dict[str, object]]:
    """Everything that an object holds, by its place: two objects are alike if these are equal."""

    def content(data: AnnData | MuData) -> dict[str, object]:
        mods = data.mod if isinstance(data, MuData) else {"": data}
        found = {f"obs/{column}": values.tolist() for column, values in data.obs.items()}
        found |= {f"obsm/{key}": None for key in data.obsm} | {
            f"uns/{key}": None for key in data.uns
        }
        for name, mod in mods.items():
            found[f"{name}/X"] = mod.X.toarray().tolist()
            found |= {
                f"{name}/layers/{key}": layer.toarray().tolist()
                for key, layer in mod.layers.items()
            }
            found |= {f"{name}/var/{column}": values.tolist() for column, values in mod.var.items()}
            found |= {f"{name}/obs/{column}": values.tolist() for column, values in mod.obs.items()}
        return found

    return content
