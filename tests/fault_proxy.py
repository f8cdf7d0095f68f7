"""A proxy before an S3 server that breaks what it is told to: throttling, errors, resets, cut answers, latency.

    python tests/fault_proxy.py http://127.0.0.1:8333 --seed 1

Prints its own address, and listens on loopback alone. `POST /-/faults` with a JSON object sets what goes wrong, `GET
/-/faults` tells how often each did. Rates are shares of the requests:

    throttle      503 SlowDown instead of an answer
    fail          500 InternalError
    reset         the connection breaks after the request was carried out
    truncate      half of the answer, then the connection breaks
    redirect      301 PermanentRedirect: the bucket is in the region elsewhere-1
    malformed     400 AuthorizationHeaderMalformed, as for a request that is signed for another region
    latency       seconds before the answer, for every request
    expire_at     403 ExpiredToken from the first request on whose key holds this text
    deny          403 AccessDenied for keys that hold this text
"""

import argparse
import http.client
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ERROR = '<?xml version="1.0"?><Error><Code>{0}</Code><Message>{0} by the proxy</Message></Error>'
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


class FaultProxy(ThreadingHTTPServer):
    """The server; handlers run in threads and share these."""

    daemon_threads = True

    def __init__(self, upstream: str, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream, self.random, self.lock = urlsplit(upstream), random.Random(seed), threading.Lock()
        self.faults: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self.has_expired = False

    def fault(self, path: str) -> str:
        """What goes wrong with this request; "" for nothing."""
        with self.lock:
            self.counts["requests"] += 1
            chosen = self._chosen(path)
            if chosen:
                self.counts[chosen] += 1
            return chosen

    def _chosen(self, path: str) -> str:
        if self.faults.get("deny") and self.faults["deny"] in path:
            return "deny"
        self.has_expired |= "expire_at" in self.faults and self.faults["expire_at"] in path
        if self.has_expired:
            return "expire"
        drawn = self.random.random()
        for name in ("throttle", "fail", "reset", "truncate", "redirect", "malformed"):
            drawn -= self.faults.get(name, 0.0)
            if drawn < 0:
                return name
        return ""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/-/faults":
            self._control(body)
            return
        fault = self.server.fault(self.path)
        time.sleep(self.server.faults.get("latency", 0.0))
        refusals = {"throttle": (503, "SlowDown"), "fail": (500, "InternalError")}
        refusals |= {"expire": (403, "ExpiredToken"), "deny": (403, "AccessDenied")}
        refusals |= {"redirect": (301, "PermanentRedirect"), "malformed": (400, "AuthorizationHeaderMalformed")}
        if fault in refusals:
            status, code = refusals[fault]
            region = {"x-amz-bucket-region": "elsewhere-1"} if fault == "redirect" else {}
            self._answer(status, {"Content-Type": "application/xml", **region}, ERROR.format(code).encode())
            return
        status, headers, answer = self._forward(body)
        if fault == "reset":
            self._break()
        elif fault == "truncate" and len(answer) > 1:
            self._answer(status, headers, answer[: len(answer) // 2], promised=len(answer))
            self._break()
        else:
            self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _control(self, body: bytes) -> None:
        if self.command == "POST":
            self.server.faults, self.server.counts, self.server.has_expired = json.loads(body), Counter(), False
        self._answer(200, {}, json.dumps(self.server.counts).encode())

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The server's answer; the Host header stays, since it is signed."""
        upstream = http.client.HTTPConnection(self.server.upstream.netloc, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        try:
            upstream.request(self.command, self.path, body or None, headers | {"Content-Length": str(len(body))})
            answer = upstream.getresponse()
            length = answer.headers.get("Content-Length", "0")  # of HEAD, whose answer has no body
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            return answer.status, kept | ({"X-Length": length} if self.command == "HEAD" else {}), answer.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, promised: int | None = None) -> None:
        length = headers.pop("X-Length", str(len(body) if promised is None else promised))
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _break(self) -> None:
        """Resets the connection, rather than closing it in order."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("upstream")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with FaultProxy(given.upstream, given.seed) as proxy:
        print(f"http://127.0.0.1:{proxy.server_address[1]}", flush=True)  # noqa: T201  # the test reads it
        proxy.serve_forever()


if __name__ == "__main__":
    main()
