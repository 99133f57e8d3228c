"""Every slot that gpnsf reads or writes, named once. The table in the documentation is generated from here."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DENOISED", "DOMAIN", "NEAREST", "NEAREST_DISTANCE", "SPATIAL", "Keys", "ProportionKeys"]

SPATIAL = "spatial"
# default names of what is made from a fit, whatever its key
DENOISED, DOMAIN = "gpnsf_denoised", "gpnsf_domain"
NEAREST, NEAREST_DISTANCE = "nearest_gene", "nearest_gene_distance"  # var of peaks


@dataclass(frozen=True)
class Keys:
    """Slot names of one fit, all derived from ``key_added``."""

    key: str = "gpnsf"

    @property
    def factors(self) -> str:
        """``obsm``: posterior mean of the factors [N, K]."""
        return f"X_{self.key}"

    @property
    def smooth(self) -> str:
        """``obsm``: mean of the spatial field alone [N, K]."""
        return f"X_{self.key}_smooth"

    @property
    def std(self) -> str:
        """``obsm``: posterior standard deviation of the factors [N, K]."""
        return f"X_{self.key}_std"

    @property
    def embedding(self) -> str:
        """``obsm``: principal coordinates of the expected expression [N, at most 15]: for domains, neighbours and UMAP."""
        return f"X_{self.key}_embedding"

    @property
    def loadings(self) -> str:
        """``varm`` of each modality: nonnegative loadings [P, K]."""
        return f"{self.key}_loadings"

    @property
    def loadings_std(self) -> str:
        """``varm`` of each modality: posterior standard deviation of the loadings [P, K]."""
        return f"{self.key}_loadings_std"

    @property
    def batch(self) -> str:
        """``varm`` of each modality, after a fit with ``batch_key``: multipliers of the batches [P, S], mean 1."""
        return f"{self.key}_batch"

    @property
    def background(self) -> str:
        """``var`` of each modality: part of the rate that is the same in all observations [P]."""
        return f"{self.key}_background"

    @property
    def centre(self) -> str:
        """``var`` of each modality, after :func:`gpnsf.tl.mefisto`: mean of the logarithms [P], which was subtracted."""
        return f"{self.key}_centre"

    @property
    def importance(self) -> str:
        """``obs`` (object and modalities) and ``var`` (modalities): share of the expected signal that is spatial."""
        return f"{self.key}_spatial_importance"

    @property
    def total(self) -> str:
        """``obs`` of each modality: total count of a cell that the fit has read; tools recognise the counts by it."""
        return f"{self.key}_total"

    @property
    def importance_std(self) -> str:
        """``var`` of each modality: standard deviation of the spatial importance."""
        return f"{self.key}_spatial_importance_std"

    @property
    def importance_p(self) -> str:
        """``var`` of each modality: p value of the spatial importance, if :func:`gpnsf.tl.spatial_importance` has computed it."""
        return f"{self.key}_spatial_importance_p"

    @property
    def importance_q(self) -> str:
        """``var`` of each modality: q value of the spatial importance, after Benjamini-Hochberg over the modality."""
        return f"{self.key}_spatial_importance_q"

    @property
    def top_factor(self) -> str:
        """``var`` of each modality: name of the factor with the largest share of the feature."""
        return f"{self.key}_top_factor"

    @property
    def dispersion(self) -> str:
        """``var`` of each modality: dispersion of the negative binomial, or standard deviation of the Gaussian noise."""
        return f"{self.key}_dispersion"

    @property
    def uns(self) -> str:
        """``uns``: everything about the fit that is not an array over spots or features."""
        return self.key

    @property
    def links(self) -> str:
        """``uns`` of the MuData: table of gene-peak links, where :func:`gpnsf.tl.link_peaks` was called."""
        return f"{self.key}_links"

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """Every slot by the attribute that holds it."""
        return {
            "obsm": (self.factors, self.smooth, self.std, self.embedding),
            "varm": (self.loadings, self.loadings_std, self.batch),
            "obs": (self.importance, self.total),
            "var": (
                self.background,
                self.centre,
                self.importance,
                self.importance_std,
                self.importance_p,
                self.importance_q,
                self.top_factor,
                self.dispersion,
            ),
            "uns": (self.uns, self.links),
        }


@dataclass(frozen=True)
class ProportionKeys:
    """Slot names of one deconvolution, all derived from ``key_added``."""

    key: str = "proportions"

    @property
    def proportions(self) -> str:
        """``obsm``: proportions of the cell types [N, types], rows sum to 1."""
        return f"X_{self.key}"

    @property
    def std(self) -> str:
        """``obsm``: standard deviations of the proportions [N, types]."""
        return f"X_{self.key}_std"

    @property
    def sums(self) -> str:
        """``obs``: sum of the estimated abundances of a spot, relative to its depth."""
        return f"{self.key}_sum"

    @property
    def loadings(self) -> str:
        """``varm``: the types' profiles [P, types], as read from the reference; zeros for genes that it lacks."""
        return f"{self.key}_loadings"

    @property
    def uns(self) -> str:
        """``uns``: names of the types, arguments, course of the objective, and what a network has learned."""
        return self.key

    def of_type(self, name: str) -> str:
        """``obs`` column of one type; a slash could not be written to files."""
        return f"{self.key}_{name.replace('/', '_')}"
