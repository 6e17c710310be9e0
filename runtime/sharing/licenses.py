"""What a license allows: whether its works may be published changed, and how the hub spells it."""

from __future__ import annotations

import re

from mclst.runtime.bundle.about import About, License
from mclst.runtime.errors import BundleError

HUB_LICENSES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigscience-openrail-m", "bsd", "bsd-2-clause",
    "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0",
    "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "ecl-2.0", "epl-1.0",
    "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "fair-noncommercial-research-license", "gfdl", "gpl",
    "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "lppl-1.3c", "mit", "mpl-2.0",
    "ms-pl", "ncsa", "odbl", "ofl-1.1", "openrail", "openrail++", "osl-3.0", "pddl", "postgresql",
    "unlicense", "wtfpl", "zlib",
}  # fmt: skip
"""License identifiers of the hub: https://huggingface.co/docs/hub/repositories-licenses."""

NO_DERIVATIVES = re.compile(r"(?<![a-z0-9])nd(?![a-z0-9])|no[ -]?deriv", re.IGNORECASE)
"""Creative Commons' ND in an SPDX identifier, or the words."""


def hub_identifier(terms: License) -> str | None:
    """Return the hub's spelling of a license, such as apache-2.0; None if the hub does not know it."""
    name = re.sub(r"-(only|or-later)$", "", terms.name.strip().lower())
    return name if name in HUB_LICENSES else None


def forbids_derivatives(terms: License | None) -> bool:
    """Whether changed works, such as a network converted to ONNX, may not be shared."""
    return terms is not None and NO_DERIVATIVES.search(terms.name) is not None


def check_may_publish(about: About, name: str) -> None:
    """Raise BundleError unless the bundle may be published.

    A bundle is made from the weights of its network: a derivative of its base model, if that has one.
    """
    if about.license is None:
        raise BundleError(
            f"{name} states no license, so nobody may use what is published; export it with --license, such "
            "as --license Apache-2.0"
        )
    base = about.base_model
    if base is not None and base.redistributable is False:
        terms = "its license" if base.license is None else f"its license, {base.license.name},"
        raise BundleError(
            f"{name} holds the weights of {base.name}, and {terms} does not let them be published; "
            "publish it "
            "--by-reference, without the encoder's weights"
        )
    for license, whose in (
        (about.license, "the bundle"),
        (None if base is None else base.license, "its base model"),
    ):
        if license is not None and forbids_derivatives(license):
            raise BundleError(
                f"{name}: the license of {whose}, {license.name}, forbids derivatives, and a bundle's graphs "
                "are one; publish it --by-reference, without the encoder's weights"
            )
