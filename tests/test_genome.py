from __future__ import annotations

import gzip
from itertools import product

import numpy as np
import pandas as pd
import pytest

from gpnsf import genome

GENES = pd.DataFrame(
    {
        "gene": ["A", "B", "C"],
        "chrom": ["chr1", "chr1", "2"],
        "start": [1000, 5000, 800],
        "end": [2000, 9000, 900],
    }
)


def peaks(*names):
    return genome.peak_positions(pd.DataFrame(index=list(names)), where="the test")


def naive_pairs(genes, places, window):
    """All pairs by two loops, the starts of a gene tried one after the other."""
    found = set()
    for i, gene in enumerate(genes.itertuples()):
        sites = {"+": [gene.start], "-": [gene.end]}.get(gene.strand, [gene.start, gene.end])
        for j, peak in enumerate(places.itertuples()):
            middle = (peak.start + peak.end) / 2
            if gene.chrom == peak.chrom and min(abs(middle - site) for site in sites) <= window:
                found.add((i, j))
    return found


def naive_overlaps(genes, places, upstream):
    """All pairs by two loops, base by base at their ends."""
    found = set()
    for i, gene in enumerate(genes.itertuples()):
        low = gene.start - (0 if gene.strand == "-" else upstream)
        high = gene.end + (0 if gene.strand == "+" else upstream)
        for j, peak in enumerate(places.itertuples()):
            if gene.chrom == peak.chrom and max(low, peak.start) < min(high, peak.end):
                found.add((i, j))
    return found


def random_places(rng, n_genes=40, n_peaks=90):
    start = rng.integers(0, 5000, n_genes)
    genes = pd.DataFrame(
        {
            "gene": [f"g{i}" for i in range(n_genes)],
            "chrom": rng.choice(["chr1", "chr2", "chrX"], n_genes),
            "start": start,
            "end": start + rng.integers(1, 900, n_genes),
            "strand": rng.choice(["+", "-", "."], n_genes),
        }
    )
    low = rng.integers(0, 6000, n_peaks)
    names = [
        f"chr{c}:{a}-{a + 101}"
        for c, a in zip(rng.choice(["1", "2", "Y"], n_peaks), low, strict=True)
    ]
    return genome.gene_positions(genes, where="the test"), peaks(*names)


def test_names_are_read(subtests):
    for name in ("chr1:10-20", "chr1_10_20", "chr1-10-20", "1:10-20"):
        with subtests.test(name=name):
            assert peaks(name).iloc[0].tolist() == ["chr1", 10, 20]


def test_chromosomes_with_underscores_are_read():
    assert peaks("chr1_KI270706v1_random:1-2", "chrUn_GL000195v1_3_4")["chrom"].tolist() == [
        "chr1_KI270706v1_random",
        "chrUn_GL000195v1",
    ]


def test_columns_come_before_names(subtests):
    for table in (
        {"chrom": ["chr1"], "chromStart": [10], "chromEnd": [20]},
        {"chrom": pd.Categorical(["1"]), "start": ["10"], "end": ["20"]},
        {"interval": ["chr1:10-20"]},
    ):
        with subtests.test(table=table):
            places = genome.peak_positions(pd.DataFrame(table, index=["peak"]), where="the test")
            assert places.iloc[0].tolist() == ["chr1", 10, 20]


def test_places_have_the_names_of_other_tools(subtests):
    for columns in (
        ("Chromosome", "Start", "End"),  # pyranges, muon
        ("seqnames", "start", "end"),  # GRanges, ArchR
        ("chr", "start", "end"),
        ("chromosome_name", "start_position", "end_position"),  # Ensembl
        ("Chrom", "chromStart", "chromEnd"),
    ):
        with subtests.test(columns=columns):
            table = pd.DataFrame([["chr1", 10, 20], ["X", 5, 7]], columns=columns, index=["a", "b"])
            places = genome.peak_positions(table, where="the test")
            assert places.to_numpy().tolist() == [["chr1", 10, 20], ["chrX", 5, 7]]
            genes = genome.gene_positions(table.assign(Strand=["+", "-"]), where="the test")
            assert genes.index.tolist() == ["a", "b"]
            assert genes["strand"].tolist() == ["+", "-"]


def test_an_exact_name_comes_before_one_in_another_case():
    table = pd.DataFrame({"chrom": ["1"], "Chrom": ["2"], "start": [1], "Start": [7], "end": [9]})
    assert genome.peak_positions(table, where="the test").iloc[0].tolist() == ["chr1", 1, 9]


def test_intervals_place_genes_too_and_those_without_go():
    var = pd.DataFrame(
        {"interval": ["chr1:10-20", "NA", "GL000194.1:3-4", ""]}, index=["A", "B", "C", "D"]
    )
    genes = genome.genes_of(None, var, where="the test")
    assert genes.index.tolist() == ["A", "C"]
    assert genes["start"].tolist() == [10, 3]
    assert (
        genome.gene_positions(var.assign(chrom="2", start=1, end=5), where="the test")[
            "chrom"
        ].tolist()
        == ["chr2"] * 4
    )  # columns come before intervals
    with pytest.raises(ValueError, match="every peak of the test.*2 of 4 without, the first 'NA'"):
        genome.peak_positions(var, where="the test")


def test_unreadable_peaks_are_counted_with_an_example():
    with pytest.raises(
        ValueError, match=r"place on the genome.*2 of 3 without, the first 'peak_1'.*chr1:1000-1500"
    ):
        peaks("chr1:1-2", "peak_1", "chr1:5")
    with pytest.raises(
        ValueError, match=r"start <= end.*1 of 2 without, the first 'chr1:9-2 at chr1 9 2'"
    ):
        peaks("chr1:1-2", "chr1:9-2")


def test_genes_come_from_tables_and_files(tmp_path):
    GENES.to_csv(tmp_path / "genes.csv", index=False)
    for source in (GENES, tmp_path / "genes.csv", GENES.set_index("gene")):
        table = genome.gene_positions(source, where="the test")
        assert table.index.tolist() == ["A", "B", "C"]
        assert table["chrom"].tolist() == ["chr1", "chr1", "chr2"]
        assert table["strand"].tolist() == ["", "", ""]


def test_of_genes_that_occur_again_the_first_is_kept_and_those_without_a_place_go():
    twice = pd.concat(
        [GENES, GENES.iloc[:1].assign(start=7), GENES.iloc[:1].assign(gene="D", start=np.nan)]
    )
    table = genome.gene_positions(twice, where="the test")
    assert table.index.tolist() == ["A", "B", "C"]
    assert table.loc["A", "start"] == 1000


def test_an_annotation_without_places_is_refused():
    with pytest.raises(KeyError, match="columns gene, chrom, start, end"):
        genome.gene_positions(GENES.drop(columns="end"), where="the test")


def test_pairs_are_those_of_two_loops(subtests):
    for window in (0, 50, 700):
        with subtests.test(window=window):
            genes, places = random_places(np.random.default_rng(window))
            i, j = genome.pairs_within(genes, places, window)
            assert len(set(zip(i, j, strict=True))) == len(i)
            assert set(zip(i.tolist(), j.tolist(), strict=True)) == naive_pairs(
                genes, places, window
            )
            distance = genome.signed_distance(genes.iloc[i], places.iloc[j])
            assert (np.abs(distance) <= window).all()


def test_distances_point_along_the_strand():
    genes = genome.gene_positions(
        GENES.iloc[[0, 0, 0]].assign(gene=list("abc"), strand=["+", "-", "?"]), where="the test"
    )
    upstream = peaks(*["chr1:880-920"] * 3)
    assert genome.signed_distance(genes, upstream).tolist() == [-100, 1100, -100]
    assert np.isnan(genome.signed_distance(genes, peaks(*["chr7:880-920"] * 3))).all()


def test_nearest_is_the_smallest_distance():
    genes, places = random_places(np.random.default_rng(5))
    found = genome.nearest(places, genes)
    for j, i in enumerate(found):
        same = np.flatnonzero(genes["chrom"] == places["chrom"].iloc[j])
        if not same.size:
            assert i == -1
            continue
        near = np.abs(genome.signed_distance(genes.iloc[same], places.iloc[[j] * same.size]))
        own = abs(genome.signed_distance(genes.iloc[[i]], places.iloc[[j]])[0])
        assert own == near.min()


def test_strands_are_signs_or_numbers():
    for strand in (["+", "-", "."], [1, -1, None], ["1", "-1", ""], [1.0, -1.0, np.nan]):
        assert genome.gene_positions(GENES.assign(strand=strand), where="the test")[
            "strand"
        ].tolist() == ["+", "-", ""]
    with pytest.raises(ValueError, match="'plus'"):
        genome.gene_positions(GENES.assign(strand=["+", "plus", "-"]), where="the test")


def test_chromosomes_may_be_numbers_and_peaks_have_one():
    var = pd.DataFrame({"chrom": [1.0, 2.0], "start": 1, "end": 9}, index=["a", "b"])
    assert genome.peak_positions(var, where="the test")["chrom"].tolist() == ["chr1", "chr2"]
    with pytest.raises(ValueError, match="a chromosome and .*1 of 2 without"):
        genome.peak_positions(var.assign(chrom=[1.0, np.nan]), where="the test")


def test_genes_without_a_name_are_left_out():
    assert genome.gene_positions(
        GENES.assign(gene=["A", None, "C"]), where="the test"
    ).index.tolist() == ["A", "C"]


def test_overlapping_pairs_are_those_of_a_naive_loop(subtests):
    for upstream, seed in product((0, 150), range(3)):
        with subtests.test(upstream=upstream, seed=seed):
            genes, places = random_places(np.random.default_rng(seed))
            places["end"] += np.random.default_rng(seed).integers(
                0, 800, len(places)
            )  # peaks of unequal length
            i, j = genome.pairs_overlapping(genes, places, upstream)
            assert set(zip(i.tolist(), j.tolist(), strict=True)) == naive_overlaps(
                genes, places, upstream
            )
            assert len(i) == len(set(zip(i.tolist(), j.tolist(), strict=True)))


def test_upstream_is_before_the_start_and_intervals_are_half_open():
    table = pd.DataFrame(
        {
            "gene": ["F", "B"],
            "chrom": "chr1",
            "start": [5000, 5000],
            "end": [6000, 6000],
            "strand": ["+", "-"],
        }
    )
    genes = genome.gene_positions(table, where="the test")
    before = peaks("chr1:3500-3600")
    after = peaks("chr1:7400-7500")
    touching = peaks("chr1:2900-3000")
    for places, expected in ((before, [0]), (after, [1]), (touching, [])):
        assert genome.pairs_overlapping(genes, places, 2000)[0].tolist() == expected
    assert genome.pairs_overlapping(genes, peaks("chr2:1-9"), 2000)[0].size == 0


def test_chromosomes_are_the_same_in_any_spelling(subtests):
    for name in ("chr1", "Chr1", "CHR1", "1", 1, 1.0):
        with subtests.test(name=name):
            var = pd.DataFrame({"chrom": [name], "start": [10], "end": [20]}, index=["a"])
            assert genome.peak_positions(var, where="var")["chrom"].tolist() == ["chr1"]


def test_sex_chromosomes_and_mitochondria_have_one_name(subtests):
    for names, wanted in (
        (["x", "X", "chrX", "chrx", 23], "chrX"),
        (["MT", "chrM", "m", 26], "chrM"),
        (["GL000194.1"], "chrGL000194.1"),
    ):
        with subtests.test(names=names, wanted=wanted):
            var = pd.DataFrame({"chrom": pd.Series(names, dtype=object), "start": 1, "end": 2})
            assert set(genome.peak_positions(var, where="var")["chrom"]) == {wanted}


def test_numbers_of_a_species_with_many_chromosomes_stay():
    names = [f"chr{number}" for number in range(20, 40)] + [
        "chrX"
    ]  # a dog has 38 and X, a zebrafish 25
    for own in (names, names[:6]):
        var = pd.DataFrame({"chrom": own, "start": 1, "end": 2})
        assert genome.peak_positions(var, where="var")["chrom"].tolist() == own


def test_places_without_a_chromosome_in_common_are_refused_and_lacking_ones_told(caplog):
    places = pd.DataFrame({"chrom": ["chr1", "chr2"], "start": 1.0, "end": 2.0, "strand": "+"})
    with pytest.raises(ValueError, match="got peaks on chr1, chr2 and genes on chr7"):
        genome.same_chromosomes(places.assign(chrom="chr7"), places)
    with caplog.at_level("INFO", logger="gpnsf"):
        genome.same_chromosomes(places.iloc[:1], places)
    assert "1 peaks on chr2, where there is no gene" in caplog.text


GTF_LINES = {
    "genes.gtf": """#!genome-build GRCm38
1\tensembl\tgene\t101\t900\t.\t+\t.\tgene_id "E1"; gene_name "A#1"; gene_biotype "protein_coding";
1\tensembl\texon\t101\t300\t.\t+\t.\tgene_id "E1"; transcript_id "T1"; gene_name "A#1";
X\tensembl\tgene\t51\t80\t.\t-\t.\tgene_id "E2"; gene_version "3";
""",
    "genes.GFF3": """##gff-version 3
chr1\tH\tgene\t101\t900\t.\t+\t.\tID=gene:E1;Name=A#1;biotype=protein_coding
chr1\tH\tmRNA\t101\t900\t.\t+\t.\tID=t1;Parent=gene:E1;Name=A-201
chrX\tH\tgene\t51\t80\t.\t-\t.\tID=gene:E2;gene_id=E2
""",
}


def test_genes_of_a_gtf_file(subtests, tmp_path):
    for packed, name in product((False, True), GTF_LINES):
        with subtests.test(packed=packed, name=name):
            path = tmp_path / (f"{name}.gz" if packed else name)
            text = GTF_LINES[name].encode()
            path.write_bytes(gzip.compress(text) if packed else text)
            found = genome.gene_positions(path, where="the test")
            expected = pd.DataFrame(
                {
                    "chrom": ["chr1", "chrX"],
                    "start": [100.0, 50.0],
                    "end": [900.0, 80.0],
                    "strand": ["+", "-"],
                },
                index=["A#1", "E2"],
            )
            pd.testing.assert_frame_equal(
                found, expected, check_dtype=False, check_index_type=False
            )


def test_a_gtf_file_without_genes_is_refused(tmp_path):
    path = tmp_path / "exons.gtf"
    path.write_text('chr1\tucsc\texon\t1\t9\t.\t+\t.\tgene_id "E1";\n')
    with pytest.raises(ValueError, match=r"rows of kind 'gene' in the test.*none in.*Pass"):
        genome.gene_positions(path, where="the test")
