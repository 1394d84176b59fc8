"""A model hub on a real port of this machine: answers what a test tells it to, and remembers who asked for what."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Behaviour = Callable[[BaseHTTPRequestHandler], None]

MODEL = "acme/tiny"
OPEN_SESAME = "hf_secret"
FIRST, SECOND = "1" * 40, "2" * 40
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "vocab_size": 1000,
}
DEEPER = {**CONFIG, "num_hidden_layers": 4}


def revision_path(model: str = MODEL, revision: str = "main") -> str:
    return f"/api/models/{model}/revision/{revision}"


def config_path(model: str = MODEL, sha: str = FIRST) -> str:
    return f"/{model}/resolve/{sha}/config.json"


class FakeHub:
    """Answers each path of `answers` as it says, and every other with 404."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.host = f"127.0.0.1:{port}"
        self.answers: dict[str, Behaviour] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()

    @property
    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [path for path, _ in self.asked]

    def publish(self, config: Any = CONFIG, *, sha: str = FIRST, revision: str = "main", model: str = MODEL) -> None:
        self.answers[revision_path(model, revision)] = sends(json.dumps({"id": model, "sha": sha, "siblings": []}))
        self.answers[config_path(model, sha)] = sends(json.dumps(config))

    def hang(self, handler: BaseHTTPRequestHandler) -> None:
        self.closing.wait(10)
        handler.close_connection = True

    def drips(self, first: bytes, drop: bytes) -> Behaviour:
        """Sends `first` at once, then `drop` again and again: each byte comes in time, the whole never."""

        def drip(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(first)
            end = time.monotonic() + 5
            while not self.closing.wait(0.02) and time.monotonic() < end:
                handler.wfile.write(drop)
            handler.close_connection = True

        return drip

    def slowly(self, seconds: float, then: Behaviour) -> Behaviour:
        def wait(handler: BaseHTTPRequestHandler) -> None:
            self.closing.wait(seconds)
            then(handler)

        return wait


def sends(body: str | bytes, status: int = 200, **headers: str) -> Behaviour:
    content = body.encode() if isinstance(body, str) else body

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)  # "Connection: close" closes it, too
        handler.end_headers()
        handler.wfile.write(content)

    return send


def redirects(location: str, status: int = 302) -> Behaviour:
    return sends(b"", status, Location=location)


def endless(chunk: bytes) -> Behaviour:
    """A body without declared length that goes on until nobody reads it any more."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        end = time.monotonic() + 5
        while time.monotonic() < end:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    return send


@contextmanager
def running_hub(certificate: Path | None = None) -> Iterator[FakeHub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append((self.path, dict(self.headers)))
            with suppress(ConnectionError, ssl.SSLError):  # who had enough goes away
                hub.answers.get(self.path, sends('{"error": "not found"}', 404))(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            pass  # a client that refuses the certificate

    server = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    hub = FakeHub(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
