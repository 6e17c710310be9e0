"""Retrieval in the features of a frozen encoder, fitted by `mclst-fit`; see `mclst.models.fitted`."""

from __future__ import annotations

from mclst.models.fitted import PROJECTION, fitted_system

SYSTEM = fitted_system("fitted-retrieval", "a fitted bank", "retrieval", PROJECTION)
