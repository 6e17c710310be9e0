"""What keeps a peer from being measured here."""

from __future__ import annotations


class PeerUnavailable(Exception):
    """A peer that cannot run here; the message says why."""
