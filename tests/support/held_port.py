"""A free port on the loopback that no other process is given, also while nobody listens on it."""

from __future__ import annotations

import socket


class HeldPort:
    """Holds a port until `close`; a server that sets SO_REUSEADDR can listen there meanwhile."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        # The kernel lets two sockets that both say so have one port as long as this one does not listen.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number = int(self._socket.getsockname()[1])

    def close(self) -> None:
        self._socket.close()
