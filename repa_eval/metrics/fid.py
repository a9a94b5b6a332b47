"""Frechet distance between Gaussians (FID where the features are Inception's), and the moments that it needs.

Heusel et al. 2017 (arXiv 1706.08500), eq. 6. Covariances with ddof 1, as in ADM, torch-fidelity, clean-fid, dgm-eval.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from repa_eval.errors import UserError
from repa_eval.metrics._checks import Array, matrix, same_width
from repa_eval.metrics._registry import sample_metric


class Moments:
    """Count, mean and scatter of features that arrive in batches; in float64, whatever the batches' dtype.

    n: rows seen. mean (D,). m2 (D, D): sum of (x - mean)(x - mean)^T. Rows are folded in chunks of 512, so that the
    result does not depend on how a sequence of rows was cut into batches, and small batches cost no more than large.
    """

    CHUNK = 512

    def __init__(self, n: int = 0, mean: ArrayLike = (), m2: ArrayLike = ()) -> None:
        self._folded = (n, np.asarray(mean, dtype=np.float64), np.asarray(m2, dtype=np.float64))
        self._waiting: list[Array] = []  # batches not yet folded, fewer than CHUNK rows together

    @property
    def n(self) -> int:
        """Number of rows seen."""
        return self._folded[0] + sum(map(len, self._waiting))

    @property
    def mean(self) -> Array:
        """Mean of the rows, (D,); UserError before the first row."""
        return self._all()[1]

    @property
    def m2(self) -> Array:
        """Sum of the outer products of the rows about their mean, (D, D); UserError before the first row."""
        return self._all()[2]

    @property
    def covariance(self) -> Array:
        """Covariance of the rows with ddof 1, (D, D); UserError for fewer than two rows."""
        n, _, m2 = self._all()
        if n < 2:
            raise UserError(f"a covariance needs at least 2 samples; given is {n}")
        return m2 / (n - 1)

    def update(self, features: ArrayLike) -> None:
        """Add a batch of rows (B, D); UserError for another width than before, NaN or infinity."""
        batch = np.asarray(features)
        if batch.ndim == 2 and len(batch) == 0:
            return
        batch = matrix("features", batch).astype(np.float64)  # a copy: the caller may reuse its buffer
        self._check_width(batch.shape[1])
        self._waiting.append(batch)
        if sum(map(len, self._waiting)) >= self.CHUNK:
            rows = np.concatenate(self._waiting)
            whole = len(rows) - len(rows) % self.CHUNK
            for start in range(0, whole, self.CHUNK):
                self._folded = _combined(self._folded, _of(rows[start : start + self.CHUNK]))
            self._waiting = [rows[whole:]]

    def merge(self, other: Moments) -> None:
        """Add all that `other` has seen: the moments of both sets of rows, exact up to rounding."""
        if other.n:
            self._check_width(len(other.mean))
            self._folded = _combined(self._folded, other._all())

    def _all(self) -> tuple[int, Array, Array]:
        if self.n == 0:
            raise UserError("there are no features yet: moments of zero samples do not exist")
        rows = np.concatenate(self._waiting) if self._waiting else np.empty((0, 0))
        return _combined(self._folded, _of(rows)) if len(rows) else self._folded

    def _check_width(self, width: int) -> None:
        seen = self._waiting[0].shape[1] if self._waiting else len(self._folded[1])
        if self.n and width != seen:
            raise UserError(f"features have {width} columns; those before had {seen}")


def moments(features: ArrayLike) -> Moments:
    """Return the Moments of all rows of features (N, D) at once."""
    result = Moments()
    result.update(features)
    return result


def frechet_distance(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """Return |mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), in squared units of the features.

    mu (D,), sigma (D, D) symmetric, positive semi-definite; singular ones are fine (N <= D). Never NaN and never
    negative: rounding can leave a sum like -1e-13 for equal arguments, which the published codes return and which is
    clamped to 0 here. Of N samples it is too large by about c / N: compare equal N only; below 2 D samples it is noise.
    UserError: shapes that do not fit, NaN or infinity.
    """
    mean1, cov1 = _gaussian("1", mu1, sigma1)
    mean2, cov2 = _gaussian("2", mu2, sigma2)
    if len(mean1) != len(mean2):
        raise UserError(f"mu1 has {len(mean1)} entries and mu2 {len(mean2)}; both must come from the same network")
    squared = np.clip(_product_eigenvalues(cov1, cov2), 0.0, None)
    apart = float(np.square(mean1 - mean2).sum())
    value = apart + float(np.trace(cov1) + np.trace(cov2)) - 2.0 * float(np.sqrt(squared).sum())
    return max(value, 0.0)


@sample_metric("fd", needs="features", gives=("fd",))
def fd(real: ArrayLike, fake: ArrayLike) -> dict[str, float]:
    """Return {"fd": Frechet distance} of features real (N, D) and fake (M, D); UserError for fewer than 2 rows."""
    real, fake = same_width(real, fake, at_least=2)
    a, b = moments(real), moments(fake)
    return {"fd": frechet_distance(a.mean, a.covariance, b.mean, b.covariance)}


def _product_eigenvalues(sigma1: Array, sigma2: Array) -> Array:
    """Return the eigenvalues of sigma1 sigma2 (D,), which are those of a symmetric matrix and hence real.

    The generalised problem multiplies by a Cholesky factor of sigma1 and inverts nothing, so that a nearly singular
    sigma1 does no harm; where the factor does not exist, the symmetric root of sigma1 takes its place.
    """
    try:
        product: Array = linalg.eigh(sigma2, sigma1, type=2, eigvals_only=True, driver="gv", check_finite=False)
    except linalg.LinAlgError:
        values, vectors = linalg.eigh(sigma1, check_finite=False)
        root = vectors * np.sqrt(np.clip(values, 0.0, None))
        product = linalg.eigvalsh(root.T @ sigma2 @ root, check_finite=False)
    return product


def _gaussian(which: str, mu: ArrayLike, sigma: ArrayLike) -> tuple[Array, Array]:
    mean, cov = np.asarray(mu, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise UserError(f"mu{which} {mean.shape} and sigma{which} {cov.shape}; needed are (D,) and (D, D)")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise UserError(f"mu{which} or sigma{which} holds NaN or infinity; compute the statistics again")
    return mean, (cov + cov.T) / 2.0


def _of(rows: Array) -> tuple[int, Array, Array]:
    mean = rows.mean(axis=0)
    apart = rows - mean
    return len(rows), mean, apart.T @ apart


def _combined(a: tuple[int, Array, Array], b: tuple[int, Array, Array]) -> tuple[int, Array, Array]:
    """Chan's pairwise update of (n, mean, m2); either side may be empty."""
    if a[0] == 0 or b[0] == 0:
        return b if a[0] == 0 else a
    n, shift = a[0] + b[0], b[1] - a[1]
    mean = a[1] + shift * (b[0] / n)
    return n, mean, a[2] + b[2] + np.outer(shift, shift) * (a[0] * b[0] / n)
