"""A TCP proxy that makes trouble on demand: slow, cut or silent connections, for tests of what stands behind it."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Literal

Mode = Literal["pass", "delay", "cut", "hang"]
_CHUNK = 2**16


class ChaosProxy:
    """Listens on a free port of the loopback interface; thread-based, so that synchronous tests can use it.

    pass: bytes go through. delay: each chunk of bytes waits `delay_s`, in both directions. cut: open connections are
    closed, new ones at once. hang: connections stay open and nothing goes through; what was sent meanwhile does when
    the mode changes to pass or delay.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._changed = threading.Condition()
        self._mode: Mode = "pass"
        self._delay_s = 0.0
        self._next: tuple[Mode, float, int] | None = None  # mode, delay, bytes until it begins
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def num_connections(self) -> int:
        """Open now, both directions counted as one."""
        with self._changed:
            return len(self._sockets) // 2

    def start(self) -> None:
        """Take connections."""
        self._spawn(self._accept)

    def stop(self) -> None:
        """Close everything and wait for the threads."""
        self.set("cut")
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()
        self._listener.close()

    def set(self, mode: Mode, delay_s: float = 0.0, *, after_bytes: int = 0) -> None:
        """Change the mode, at once or when so many more bytes have gone to the target."""
        with self._changed:
            self._next = (mode, delay_s, after_bytes) if after_bytes else None
            if not after_bytes:
                self._switch(mode, delay_s)

    def _switch(self, mode: Mode, delay_s: float) -> None:
        self._mode, self._delay_s, self._next = mode, delay_s, None
        if mode == "cut":
            for each in self._sockets:
                _shut(each, socket.SHUT_RDWR)
        self._changed.notify_all()

    def _spawn(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # stopped
                return
            self._spawn(lambda client=client: self._serve(client))

    def _serve(self, client: socket.socket) -> None:
        with client:
            with self._changed:
                if self._mode == "cut":
                    return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                return
            with server:
                self._join(client, server)

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        with self._changed:
            self._sockets |= {client, server}
            if self._mode == "cut":
                _shut(client, socket.SHUT_RDWR)
        back = threading.Thread(target=self._pump, args=(server, client, False), daemon=True)
        back.start()
        self._pump(client, server, True)
        back.join()
        with self._changed:
            self._sockets -= {client, server}

    def _pump(self, source: socket.socket, sink: socket.socket, is_upstream: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                while data:
                    size = self._let_through(len(data), is_upstream)
                    sink.sendall(data[:size])
                    data = data[size:]
                    if is_upstream:
                        self._count(size)
        _shut(sink, socket.SHUT_WR)

    def _let_through(self, num_bytes: int, is_upstream: bool) -> int:
        """Wait as the mode says; how many bytes may pass. Raises OSError where the connection is cut."""
        with self._changed:
            self._changed.wait_for(lambda: self._mode != "hang")
            if self._mode == "delay":
                self._changed.wait_for(lambda: self._mode != "delay", self._delay_s)
            if self._mode == "cut":
                raise ConnectionAbortedError
            return min(num_bytes, self._next[2]) if self._next is not None and is_upstream else num_bytes

    def _count(self, num_bytes: int) -> None:
        with self._changed:
            if self._next is None:
                return
            mode, delay_s, remaining = self._next
            self._next = (mode, delay_s, max(1, remaining - num_bytes))
            if num_bytes >= remaining:
                self._switch(mode, delay_s)


def _shut(each: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # closed already
        each.shutdown(how)
