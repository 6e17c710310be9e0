"""Colour profiles: named, never applied, since the networks were trained on pixels as the files hold them."""

from __future__ import annotations

import io

from PIL import ImageCms

LONGEST_NAME = 80
UNREADABLE = "unreadable"


def profile_name(profile: bytes | None) -> str:
    """Name an ICC profile by its own description: "" where there is none, "unreadable" where it is damaged."""
    if not profile:
        return ""
    try:
        said = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return UNREADABLE
    name = "".join(letter for letter in " ".join(said.split()) if letter.isprintable())
    return name[:LONGEST_NAME] or "unnamed"
