from __future__ import annotations

import fitted
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from gpnsf.pl.links import links

PAIRS = pd.DataFrame(
    {
        "gene": ["Forward"] * 4 + ["Backward"],
        "peak": ["near", "left", "right", "elsewhere", "near"],
        "score": [0.9, 0.5, -0.2, 0.8, 0.4],
        "q": [0.01, 0.3, 0.9, 0.5, 0.5],
    }
)
PEAKS = {
    "near": ("chr1", 1_009_750, 1_010_250),
    "left": ("chr1", 899_750, 900_250),
    "right": ("chr1", 1_099_750, 1_100_250),
    "elsewhere": ("chr2", 1, 2),
}
GENES = pd.DataFrame(
    {"chrom": "chr1", "start": 1_000_000, "end": 1_040_000, "strand": ["+", "-", ""]},
    index=["Forward", "Backward", "Unknown"],
)


@pytest.fixture
def toy():
    mdata = fitted.mudata(n_obs=36, n_genes=3, n_peaks=4)
    mdata["rna"].var_names = list(GENES.index)
    mdata["rna"].var[list(GENES)] = GENES
    mdata["atac"].var_names = list(PEAKS)
    mdata["atac"].var[["chrom", "chromStart", "chromEnd"]] = list(PEAKS.values())
    mdata.update()
    mdata.uns["gpnsf_links"] = PAIRS
    return mdata


def arcs(ax):
    """First and last point of each arc, and its score."""
    collection = ax.collections[0]
    ends = [(path.vertices[0, 0], path.vertices[-1, 0]) for path in collection.get_paths()]
    return dict(zip(np.round(collection.get_array(), 6).tolist(), ends, strict=True))


def ticks(ax):
    """Places of the ticks without and with an arc."""
    return [sorted(path.vertices[0, 0] for path in ax.collections[k].get_paths()) for k in (1, 2)]


def test_arcs_run_from_the_start_of_the_gene_to_its_peaks(toy):
    ax = links(toy, "Forward", min_score=-1.0, show=False)
    expected = {0.9: (1e6, 1_010_000), 0.5: (1e6, 900_000), -0.2: (1e6, 1_100_000)}
    assert {score: pytest.approx(ends) for score, ends in expected.items()} == arcs(ax)
    assert ax.get_title(loc="left") == "Forward"
    assert ax.texts[-1].get_text() == "3 of 3 peaks"
    assert ax.get_xlabel() == "chr1 (Mb)"
    low, high = ax.get_xlim()
    assert low < 900_000
    assert high > 1_100_000
    widths = dict(
        zip(ax.collections[0].get_array(), ax.collections[0].get_linewidths(), strict=True)
    )
    assert widths[0.9] > widths[0.5] > widths[-0.2]
    assert ax.child_axes[0].get_title() == "score"


def test_pairs_beyond_the_cuts_have_a_tick_alone(toy):
    ax = links(toy, "Forward", show=False)
    assert ticks(ax) == [[1_100_000], [900_000, 1_010_000]]
    ax = links(toy, "Forward", max_q=0.1, show=False)
    assert list(arcs(ax)) == [0.9]
    assert ticks(ax)[0] == [900_000, 1_100_000]
    assert ax.texts[-1].get_text() == "1 of 3 peaks with q up to 0.1"
    assert not arcs(links(toy, "Forward", max_q=0.0, show=False))


def test_the_gene_starts_where_its_strand_says(toy):
    ax = links(toy, "Backward", show=False)
    assert arcs(ax)[0.4] == pytest.approx((1_040_000, 1_010_000))
    assert ax.get_xlabel() == "chr1 (kb)"
    arrow = next(text for text in ax.texts if text.arrow_patch is not None)
    assert arrow.xyann[0] == 1_040_000
    assert arrow.xy[0] < 1_040_000


def test_a_gene_without_strand_has_no_arrow_and_two_starts(toy):
    toy.uns["gpnsf_links"] = PAIRS.replace("Forward", "Unknown")
    ax = links(toy, "Unknown", min_score=-1.0, show=False)
    assert all(text.arrow_patch is None for text in ax.texts)
    assert [ends[0] for ends in arcs(ax).values()] == pytest.approx(
        [1_040_000, 1_000_000, 1_000_000]
    )


def test_an_annotation_places_the_gene_and_ax_is_used(toy, tmp_path):
    figure, ax = plt.subplots()
    moved = GENES.assign(start=900_000)
    assert links(toy, "Forward", annotation=moved, ax=ax, show=False) is ax
    assert arcs(ax)[0.5][0] == pytest.approx(900_000)
    assert links(toy, "Forward", show=False, return_fig=True) is not figure


def test_missing_links_and_places_are_refused(toy):
    with pytest.raises(KeyError, match="'Unknown'"):
        links(toy, "Unknown")
    with pytest.raises(KeyError, match="place of the gene"):
        links(toy, "Forward", annotation=GENES.iloc[1:])
    with pytest.raises(ValueError, match="on chr9; got none of 4"):
        links(toy, "Forward", annotation=GENES.assign(chrom="chr9"))
    with pytest.raises(ValueError, match="`max_q`"):
        links(toy, "Forward", max_q=2.0)
    toy.uns["gpnsf_links"] = PAIRS.replace("near", "gone")
    with pytest.raises(KeyError, match="linked peaks to exist.*'gone'"):
        links(toy, "Forward")
    del toy.uns["gpnsf_links"]
    with pytest.raises(KeyError, match="link_peaks"):
        links(toy, "Forward")
