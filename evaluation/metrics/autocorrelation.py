"""Effective number of spots under spatial autocorrelation, for the test of a correlation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import fft

from mclst.evaluation.metrics.structure import spot_distance

CELLS_PER_SPOT = 2
"""Cells of the grid per spot distance."""
NEAR = 8
"""Up to this many spot distances, a distance class is one wide; beyond, each is a quarter wider."""
WIDER = 1.25
MAX_CELLS = 1 << 19
GENES_BYTES = 128 << 20


@dataclass(frozen=True)
class LagClasses:
    """Pairs of spots by distance, on a grid.

    shape: size of the padded grid, rows and columns.
    of_cell: sparse [cells, n], the spots of each cell.
    of_class: float64 [frequencies, K]; power spectrum · of_class is the sum of products over each class.
    pairs: float64 [K], ordered pairs of spots in each class, those of a spot with itself included.
    """

    shape: tuple[int, int]
    of_cell: sp.csr_matrix
    of_class: NDArray[np.float64]
    pairs: NDArray[np.float64]

    @classmethod
    def of(cls, xy: NDArray[np.float64]) -> LagClasses:
        """Put spots at `xy` (float64 [n, 2], any unit) on a grid of half the spot distance.

        A section of very many spots gets a coarser grid.
        """
        pitch = spot_distance(xy)
        low, extent = xy.min(axis=0), np.ptp(xy, axis=0)
        size = max(
            pitch / CELLS_PER_SPOT,
            float(np.sqrt(4 * max(extent.prod(), 0.0) / MAX_CELLS)),
            extent.max() / 8192,
        )
        cell = np.rint((xy - low) / size).astype(np.int64)
        shape = tuple(int(fft.next_fast_len(2 * int(m) + 1, real=True)) for m in cell.max(axis=0))
        rows, columns = (np.minimum(np.arange(s), s - np.arange(s)) for s in shape)
        distance = np.hypot(rows[:, None], columns[None, :]) * size / pitch
        class_of = np.where(distance > 0, 1 + np.digitize(distance, _edges(float(distance.max()))), 0)
        occupied = np.zeros(shape)
        np.add.at(occupied, (cell[:, 0], cell[:, 1]), 1.0)
        of_class = _spectra(class_of)
        pairs = np.rint(_power(occupied[None]) @ of_class)[0]
        n, cells = len(xy), class_of.size
        of_cell = sp.csr_matrix(
            (np.ones(n), (cell[:, 0] * shape[1] + cell[:, 1], np.arange(n))), shape=(cells, n)
        )
        return cls((shape[0], shape[1]), of_cell, of_class, np.asarray(pairs, np.float64))

    def sums(self, centered: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of products of each gene over the pairs of each class: float64 [n, G] → [K, G]."""
        block = max(1, GENES_BYTES // (64 * self.shape[0] * self.shape[1]))
        sums = [
            self._sums_of_block(centered[:, start : start + block])
            for start in range(0, centered.shape[1], block)
        ]
        return np.concatenate(sums, axis=1)

    def _sums_of_block(self, centered: NDArray[np.float64]) -> NDArray[np.float64]:
        grid = np.ascontiguousarray((self.of_cell @ centered).T).reshape(-1, *self.shape)
        return np.asarray((_power(grid) @ self.of_class).T)


def effective_spots(
    predicted: NDArray[np.float64], truth: NDArray[np.float64], classes: LagClasses
) -> NDArray[np.float64]:
    """Number of independent spots that a correlation of two autocorrelated maps is worth.

    Parameters
    ----------
    predicted, truth : float64 [n, G]
    classes : LagClasses
        Of the n spots' positions.

    Returns
    -------
    float64 [G]
        At most n; NaN where either map is constant.

    Notes
    -----
    n_eff = 1 + 1 / var(r) with var(r) = Σₖ Nₖ Cₖ(predicted) Cₖ(truth) / (n² s² s²), where Nₖ is the number of
    ordered pairs of spots in distance class k, and Cₖ a map's mean product of deviations over them (Clifford,
    Richardson & Hémon 1989; with n_eff − 2 degrees of freedom the modified t-test of Dutilleul 1993). A
    variance below that of independent spots counts as theirs.
    """
    n = len(truth)
    constant = (predicted == predicted[:1]).all(axis=0) | (truth == truth[:1]).all(axis=0)
    a, b = (_to_unit_variance(values) for values in (predicted, truth))
    products = (classes.sums(a) * classes.sums(b))[classes.pairs > 0]
    variance = (products / classes.pairs[classes.pairs > 0, None]).sum(axis=0) / n**2
    return np.where(constant, np.nan, 1 + 1 / np.maximum(variance, 1 / (n - 1)))


def _edges(largest: float) -> NDArray[np.float64]:
    edges = [i + 0.5 for i in range(1, NEAR)]
    while edges[-1] < largest:
        edges.append(edges[-1] * WIDER)
    return np.array(edges)


def _power(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Power spectrum of zero-padded grids [b, rows, columns]: [b, frequencies]."""
    spectrum = fft.rfft2(grid)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    return np.asarray(power.reshape(len(grid), -1))


def _spectra(class_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights of the power spectrum for each class of lags, float64 [frequencies, K].

    The sum of the autocorrelation over a class is the sum of the power spectrum times the class's transform
    (Parseval); the transform's omitted half repeats the other, so it counts twice.
    """
    twice = np.full(class_of.shape[1] // 2 + 1, 2.0)
    twice[0] = 1.0
    if class_of.shape[1] % 2 == 0:
        twice[-1] = 1.0
    spectra = [
        (fft.rfft2((class_of == k).astype(np.float64)).real * twice).ravel() / class_of.size
        for k in range(int(class_of.max()) + 1)
    ]
    return np.stack(spectra, axis=1)


def _to_unit_variance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    centered = values - values.mean(axis=0)
    largest = np.abs(centered).max(axis=0)
    centered = centered / np.where(largest > 0, largest, 1.0)
    deviation = centered.std(axis=0)
    return np.asarray(centered / np.where(deviation > 0, deviation, 1.0))
