"""Frechet distance between Gaussians (FID where the features are Inception's, sFID on its spatial map).

Heusel et al. 2017 (arXiv 1706.08500), eq. 6; sFID: Nash et al. 2021 (arXiv 2103.03841). Covariances with ddof 1, as in
ADM, torch-fidelity, clean-fid, dgm-eval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.shared.checks import Array, as_array, matrix, same_width
from repa_eval.metrics.shared.moments import Moments as Moments
from repa_eval.metrics.shared.moments import moments as moments

Statistics = ArrayLike | Moments
ROWS = 1024  # rows in float64 at a time
SINGLE = 1e-3  # share of the largest entry by which float32 or half precision may bend a covariance
EIGHT_BITS = 0.25  # share of the largest eigenvalue by which 8-bit floats may


class Gaussian:
    """A Gaussian that others are compared with; its covariance is factored once, at the first distance.

    mu (D,), sigma (D, D) symmetric, positive semi-definite. UserError: shapes that do not fit, NaN or infinity, a
    sigma that is not symmetric or has negative eigenvalues beyond rounding.
    """

    def __init__(self, mu: ArrayLike, sigma: ArrayLike) -> None:
        self.mean, self.covariance = _gaussian("1", mu, sigma)

    @cached_property
    def _factor(self) -> tuple[Array, bool]:
        """R with R R^T = sigma, and whether R is a Cholesky factor; else it is the symmetric root, for rank < D."""
        factor, info = linalg.lapack.dpotrf(self.covariance, lower=1)
        if info == 0:
            return factor, True
        values, vectors = linalg.eigh(self.covariance, check_finite=False)
        _refuse_negative("1", values, float(values.max()))
        return vectors * np.sqrt(np.clip(values, 0.0, None)), False

    def distance(self, mu: ArrayLike, sigma: ArrayLike) -> float:
        """Return the Frechet distance to the Gaussian of mu (D,) and sigma (D, D); see `frechet_distance`."""
        mean, cov = _gaussian("2", mu, sigma)
        if len(mean) != len(self.mean):
            sizes = f"mu1 has {len(self.mean)} entries and mu2 {len(mean)}"
            raise UserError(f"{sizes}; both must come from the same network")
        squared = self._product_eigenvalues(cov)
        _refuse_negative("2", squared, float(np.trace(self.covariance) * np.trace(cov)))
        squared = np.clip(squared, 0.0, None)
        apart = float(np.square(self.mean - mean).sum())
        value = apart + float(np.trace(self.covariance) + np.trace(cov)) - 2.0 * float(np.sqrt(squared).sum())
        return max(value, 0.0)

    def stderr(self, features: Array) -> float:
        """Return the standard error of the distance to the moments of features (N, D), N >= 2 D, by its influence.

        The infinitesimal jackknife: d FD = 2 (mu2 - mu1) d mu2 + tr((I - T) d sigma2) with T the optimal transport map
        R (R^T sigma2 R)^(-1/2) R^T. Sampling of `features` only: this Gaussian counts as known.
        """
        seen = moments(features)
        root, _ = self._factor
        product = root.T @ seen.covariance @ root
        values, vectors = linalg.eigh(product, overwrite_a=True, check_finite=False)
        del product
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        vectors *= np.where(kept, values, np.inf) ** -0.25
        map_root = root @ vectors  # T = map_root map_root^T
        del vectors
        influence = np.empty(len(features))
        for start in range(0, len(features), ROWS):
            apart = features[start : start + ROWS] - seen.mean
            moved = np.square(apart).sum(axis=1) - np.square(apart @ map_root).sum(axis=1)
            influence[start : start + ROWS] = 2.0 * apart @ (seen.mean - self.mean) + moved
        return float(influence.std(ddof=1) / math.sqrt(len(features)))

    def _product_eigenvalues(self, sigma: Array) -> Array:
        """Return the eigenvalues (D,) of self.covariance sigma: those of R^T sigma R, hence real.

        Nothing is inverted, so that a nearly singular covariance does no harm. With a Cholesky factor LAPACK's sygst
        makes the product in place of two multiplications: the steps of eigh(sigma, covariance, type=2, driver="gv").
        """
        factor, lower = self._factor
        if lower:
            product, _ = linalg.lapack.dsygst(sigma, factor, itype=2, lower=1)
        else:
            product = factor.T @ sigma @ factor
        values: Array = linalg.eigvalsh(product, driver="ev" if lower else None, check_finite=False)
        return values


def frechet_distance(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """Return |mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), in squared units of the features.

    mu (D,), sigma (D, D) symmetric, positive semi-definite; singular ones are fine (N <= D). Never NaN and never
    negative: rounding can leave a sum like -1e-13 for equal arguments, which the published codes return and which is
    clamped to 0 here. Of N samples it is too large by about c / N: compare equal N only; below 2 D samples it is noise.
    UserError: as `Gaussian`.
    """
    return Gaussian(mu1, sigma1).distance(mu2, sigma2)


def few(n: int, width: int) -> str | None:
    """Return what is to be said of a Frechet distance of n samples with `width` features, None if they are enough."""
    return f"n={n} is below twice the {width} features: the covariance is noisy" if n < 2 * width else None


def _stderr(real: Statistics | Gaussian, fake: Statistics, values: Mapping[str, float]) -> dict[str, float]:
    """Standard error of a distance, where all features of fake are at hand and are 2 D or more (see Gaussian)."""
    first = real if isinstance(real, Gaussian) else gaussian_of(real)
    if isinstance(fake, Moments) or len(rows := matrix("fake", fake)) < 2 * len(first.mean):
        return {}
    return dict.fromkeys(values, first.stderr(rows))


@sample_metric(
    "fd",
    needs="features",
    gives=("fd",),
    streams=True,
    stderr=_stderr,
    definition="Frechet distance of the Gaussians with the means and covariances (ddof 1) of both sets; Inception: FID",
    range="0 and more, lower is closer",
    better="lower",
    meaning={
        "fd": "Fréchet distance on the features of the protocol's extractor; not comparable with a published FID",
        "fid": "Fréchet distance on Inception features (ADM evaluator's definition)",
        "fd_pixel_pca": "Fréchet distance on the principal components of the pixels",
    },
)
def fd(real: Statistics | Gaussian, fake: Statistics) -> dict[str, float]:
    """Return {"fd": Frechet distance} of features real (N, D) and fake (M, D); UserError for fewer than 2 rows.

    Moments serve as well as features, and for real a Gaussian.
    """
    return {"fd": _distance(real, fake)}


@sample_metric(
    "sfd",
    needs="spatial",
    gives=("sfd",),
    streams=True,
    stderr=_stderr,
    definition="Frechet distance of 7 early channels on 17x17 positions (2023 values, order h, w, c); Inception: sFID",
    range="0 and more, lower is closer",
    better="lower",
    meaning={
        "sfd": "Fréchet distance on the spatial features of the protocol's extractor",
        "sfid": "Fréchet distance on spatial Inception features",
    },
)
def sfd(real: Statistics | Gaussian, fake: Statistics) -> dict[str, float]:
    """Return {"sfd": Frechet distance} of spatial features real (N, D) and fake (M, D)."""
    return {"sfd": _distance(real, fake)}


def _distance(real: Statistics | Gaussian, fake: Statistics) -> float:
    if not isinstance(real, (Gaussian, Moments)) and not isinstance(fake, Moments):
        real, fake = same_width(real, fake, at_least=2)
    first = real if isinstance(real, Gaussian) else gaussian_of(real)
    second = fake if isinstance(fake, Moments) else moments(fake)
    return first.distance(second.mean, second.covariance)


def gaussian_of(features: Statistics) -> Gaussian:
    """Return the Gaussian with the moments of features (N, D), or with these Moments."""
    seen = features if isinstance(features, Moments) else moments(features)
    return Gaussian(seen.mean, seen.covariance)


def _gaussian(which: str, mu: ArrayLike, sigma: ArrayLike) -> tuple[Array, Array]:
    mean, cov = (as_array(part).astype(np.float64) for part in (mu, sigma))
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise UserError(f"mu{which} {mean.shape} and sigma{which} {cov.shape}; needed are (D,) and (D, D)")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise UserError(f"mu{which} or sigma{which} holds NaN or infinity; compute the statistics again")
    largest = float(np.abs(cov).max())
    if float(np.abs(cov - cov.T).max()) > SINGLE * largest or cov.diagonal().min() < -SINGLE * largest:
        raise UserError(f"sigma{which} is no covariance: it is not symmetric, or has negative variances")
    return mean, (cov + cov.T) / 2.0


def _refuse_negative(which: str, eigenvalues: Array, scale: float) -> None:
    """UserError for eigenvalues that no rounding explains; readers of files know their precision and check closely."""
    if eigenvalues.min() < -max(EIGHT_BITS * eigenvalues.max(), SINGLE * scale):
        raise UserError(f"sigma{which} is no covariance: it has negative eigenvalues")
