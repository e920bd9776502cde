"""Serves TFF's worker to a coordinator on another machine.

    python -m tff_fedmpq.worker --tls_dir=certificates/worker-1 --data_dir=clients
    python -m tff_fedmpq.worker --check=unix:/run/tff/worker

    network --(TLS, stunnel)--> this program --(Unix socket)--> guard --> TFF's worker

TFF's worker executes any graph for anyone. `worker_guard` keeps it in a network of its
own; without TLS this program serves it to its own machine only. A worker whose last
coordinator is gone is replaced, and with it what that left in it. When the worker ends,
so does this program, with status 1: have it restarted (`deploy/compose.yaml`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import sys
import tempfile
import threading
import time
from typing import Any

from tff_fedmpq.federated import wire
from tff_fedmpq.federated.worker_guard import listen, pump
from tff_fedmpq.version import __version__

_ANSWER_SECONDS = 8.0
_POLL_SECONDS = 0.2


class Front:
    """What coordinators connect to: answers questions, passes the rest on.

    Attributes:
      target: Address of the worker at present.
      connections: How many coordinators' connections are open.
      was_used: Whether one was, since the worker started.
    """

    def __init__(self, server: socket.socket, slots: int):
        self._server, self._slots, self._lock = server, slots, threading.Lock()
        # Nobody is at an empty path.
        self.target, self.connections, self.was_used = "unix:", 0, False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            outside = self._server.accept()[0]
            threading.Thread(target=self._serve, args=(outside,), daemon=True).start()

    def _serve(self, outside: socket.socket) -> None:
        with contextlib.suppress(OSError), outside:
            if outside.recv(4, socket.MSG_PEEK) == wire.QUESTION[:4]:
                # What is left unread when it is closed would take the answer along.
                outside.recv(len(wire.QUESTION))
                is_ready = wire.ping(self.target, _ANSWER_SECONDS)
                about = {"version": __version__, "slots": self._slots}
                about["ready"] = is_ready
                outside.sendall(json.dumps(about).encode() + b"\n")
                return
            with wire.connect(self.target, _ANSWER_SECONDS) as inside:
                inside.settimeout(None)
                self._count(1)
                try:
                    pair = outside, inside
                    back = threading.Thread(target=pump, args=pair[::-1], daemon=True)
                    back.start()
                    pump(*pair)
                    back.join()
                finally:
                    self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self.connections += change
            self.was_used = True


def serve(options: argparse.Namespace) -> int:
    """Serves until a signal ends it (status 0) or the worker ends (status 1)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow Federated takes seconds to import; health checks do without.
    from tff_fedmpq.federated.runtime import owned_worker

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        front = Front(_open(options, stack), options.slots)
        while not stop.is_set():
            arguments = None, 60.0, options.threads, options.data_dir
            with owned_worker(*arguments) as worker:
                if worker.is_shared and not options.insecure:
                    raise ValueError(
                        "Without a network namespace, everyone on this network reaches "
                        "TFF's worker past TLS. Allow user namespaces, or --insecure."
                    )
                front.target, front.was_used = worker.address, False
                print(f"Serving {options.address}: {options.slots} clients at a time, "
                      f"data in {options.data_dir}", flush=True)  # fmt: skip
                while not (stop.wait(_POLL_SECONDS) or _is_orphan(front)):
                    if worker.exit_status() is not None:
                        print(worker.error("TFF's worker ended"), file=sys.stderr)
                        return 1
    return 0


def _is_orphan(front: Front) -> bool:
    return front.was_used and not front.connections


def _open(options: argparse.Namespace, stack: contextlib.ExitStack) -> socket.socket:
    """Returns the socket to accept on; with TLS, stunnel stands before it."""
    if options.tls_dir is None and not options.address.startswith("unix:"):
        host, port = wire.split_address(options.address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return stack.enter_context(socket.create_server((host, port), family=family))
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tff-"))
    path = options.socket or f"{folder}/front"
    with contextlib.suppress(FileNotFoundError):  # Left by one that was killed.
        os.unlink(path)
    server = stack.enter_context(contextlib.closing(listen(path)))
    stack.callback(pathlib.Path(path).unlink, missing_ok=True)
    if options.tls_dir is not None:
        proxy = wire.tls_proxy(options.address, path, options.tls_dir, is_client=False)
        process = stack.enter_context(proxy)
        time.sleep(0.5)
        if process.poll() is not None:
            raise ValueError(f"stunnel does not serve {options.address}.")
    return server


def _parse(argv: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    add = parser.add_argument
    add("--host", help="address to listen on; default: all with TLS, else 127.0.0.1")
    add("--port", type=int, default=8470)
    add("--socket", help="Unix socket to serve, beside the port of --tls_dir")
    add("--data_dir", default=".", help="what paths of client data are relative to")
    add("--tls_dir", help="folder with ca.pem, cert.pem, key.pem of this machine")
    add("--insecure", action="store_true", help="serve a network without TLS")
    add("--slots", type=int, default=len(os.sched_getaffinity(0)),
        help="clients at a time; default: one per core")  # fmt: skip
    add("--threads", type=int, default=1,
        help="threads per operation; others round differently")  # fmt: skip
    add("--check", metavar="ADDRESS", help="ask the worker there whether it is well")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    options = _parse(argv)
    try:
        if options.check:
            about = wire.ask(options.check, _ANSWER_SECONDS + 2)
            print(json.dumps(about))
            return 0 if about["ready"] else 1
        if options.slots < 1 or not pathlib.Path(options.data_dir).is_dir():
            raise ValueError("Expected slots >= 1 and a folder as data_dir.")
        is_open = options.tls_dir or options.insecure
        options.host = options.host or ("0.0.0.0" if is_open else "127.0.0.1")
        options.address = f"{options.host}:{options.port}"
        if options.socket and not options.tls_dir:
            options.address = f"unix:{options.socket}"
        if not options.tls_dir:
            wire.check_plaintext(options.address, options.insecure)
        return serve(options)
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
