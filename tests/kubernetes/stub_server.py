"""A pod's program for tests of the runner: answers probes, says what it sees, ends when it is told to.

GET /PATH answers 200; /env/NAME, /file/PATH and /name answer what they say. GET /set?startupz=503 changes an answer
from then on. SIGTERM ends it with status 0, unless STUBBORN is set; what happens is written to standard output.
"""

import os
import signal
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from urllib.parse import parse_qsl, urlsplit

STATUSES: dict[str, int] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        match parts.path.split("/", 2)[1:]:
            case ["env", name]:
                self._answer(os.environ.get(name, ""))
            case ["file", path]:
                self._answer(Path("/" + path).read_text())
            case ["name"]:
                self._answer(os.environ.get("POD_NAME", ""))
            case ["lookup", name]:
                addresses = {each[4][0] for each in socket.getaddrinfo(name, None, socket.AF_INET)}
                self._answer(" ".join(sorted(map(str, addresses))))
            case ["set"]:
                STATUSES.update({name: int(value) for name, value in parse_qsl(parts.query)})
                self._answer("")
            case ["exit"]:
                os._exit(3)
            case ["connect", target]:
                self._answer(connect(target))
            case _:
                print(f"asked {parts.path}", flush=True)
                self._answer("", STATUSES.get(parts.path.strip("/"), 200))

    def _answer(self, text: str, status: int = 200) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def connect(target: str) -> str:
    """Whether a connection comes about, and brings an answer."""
    host, _, port = target.partition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0) as connection:
            connection.sendall(b"GET /name HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return "open" if connection.recv(1) else "cut"
    except TimeoutError:
        return "dropped"
    except OSError:
        return "refused"


def end(number: int, frame: FrameType | None) -> None:
    print("asked to end", flush=True)
    if "STUBBORN" not in os.environ:
        print("ended", flush=True)
        os._exit(0)


def main() -> None:
    signal.signal(signal.SIGTERM, end)
    for pair in os.environ.get("STATUSES", "").split():
        name, _, value = pair.partition("=")
        STATUSES[name] = int(value)
    host, _, port = sys.argv[1].rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), Handler)
    print(f"started at {time.time():.3f}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
