"""Program that starts TFF's worker where only its owner reaches it, and ends it.

    python worker_guard.py SOCKET WORKER [ARGUMENT ...]

The worker listens on all interfaces and executes any graph for anyone. So it gets a
network of its own (a Linux network namespace), in which there is nobody else, and what
arrives at the Unix socket SOCKET, which only its user may open, is passed on to it:

    owner --(SOCKET, mode 0600)--> this program --(loopback of its network)--> worker
      '--(standard input: nothing is ever written to it)--^

When the owner ends, in whatever way, the kernel closes the standard input: end-of-file
kills the worker. This program's exit status is the worker's, 128 + n after signal n.
The first line on standard output is "isolated", or "shared" where the system allows no
network namespaces: then everyone who reaches the machine reaches the worker.

Uses the standard library only, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Any, Callable

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_PR_SET_PDEATHSIG = 1
_PORT = 8000  # In a network of its own every port is free.
_CHUNK_BYTES = 1 << 18
_POLL_SECONDS = 0.02
_STOPPED_SECONDS = 30  # A worker that is stopped (SIGSTOP) for longer is killed.


def isolate() -> None:
    """Moves this process to a network of its own, with a loopback interface.

    Raises OSError where the system forbids it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNET):  # Allowed to root only; else in a user namespace.
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "No network namespace")
        process = pathlib.Path("/proc/self")
        (process / "setgroups").write_text("deny")
        (process / "uid_map").write_text(f"{uid} {uid} 1")
        (process / "gid_map").write_text(f"{gid} {gid} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", _IFF_UP)
        fcntl.ioctl(control, _SIOCSIFFLAGS, request)


def can_isolate() -> bool:
    """Returns whether `isolate` succeeds; tried in a child, as it may fail half-way."""
    child = os.fork()
    if not child:
        try:
            isolate()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def reserve_port() -> socket.socket:
    """Returns a bound socket that keeps its port from everyone but the worker.

    gRPC servers listen with SO_REUSEPORT: two workers given one port would share each
    other's calls. The kernel gives a bound port to no one who asks for a free one.
    """
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("", 0))
    return holder


def listen(path: str) -> socket.socket:
    """Returns a Unix socket that only this user may connect to."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    server.bind(path)
    os.umask(mask)
    server.listen()
    return server


def pump(source: socket.socket, target: socket.socket) -> None:
    """Copies bytes until `source` ends, then ends both directions of both."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def relay(path: str, port: int, worker: subprocess.Popen) -> None:
    """Passes connections to SOCKET on to the worker, from when it listens itself."""
    while worker.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            break
        time.sleep(_POLL_SECONDS)
    server = listen(path)
    while True:
        outside = server.accept()[0]
        try:
            inside = socket.create_connection(("127.0.0.1", port))
        except OSError:
            outside.close()
            continue
        inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for pair in ((outside, inside), (inside, outside)):
            threading.Thread(target=pump, args=pair, daemon=True).start()


def kill_at_end_of_input(worker: subprocess.Popen) -> None:
    """Kills the worker when the owner is gone."""
    while os.read(sys.stdin.fileno(), _CHUNK_BYTES):
        pass
    worker.kill()


def kill_if_stopped(worker: subprocess.Popen) -> None:
    """Kills a worker that does nothing because somebody stopped it."""
    state = pathlib.Path(f"/proc/{worker.pid}/stat")
    since = time.monotonic()
    while True:
        time.sleep(1)
        with contextlib.suppress(OSError):
            if state.read_text().rpartition(")")[2].split()[0] != "T":
                since = time.monotonic()
        if time.monotonic() - since > _STOPPED_SECONDS:
            print("The worker was stopped by a signal; it is killed.", file=sys.stderr)
            worker.kill()


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent thread ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(path: str, *command: str) -> int:
    """Starts the worker and returns its exit status."""
    holder = None
    if can_isolate():
        isolate()
        port = _PORT
    else:
        holder = reserve_port()
        port = holder.getsockname()[1]
    print("shared" if holder else "isolated", flush=True)
    worker = subprocess.Popen(
        [*command, f"--port={port}"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=die_with_parent,
    )
    jobs: tuple[tuple[Callable[..., None], tuple[Any, ...]], ...] = (
        (kill_at_end_of_input, (worker,)),
        (kill_if_stopped, (worker,)),
        (relay, (path, port, worker)),
    )
    for job, arguments in jobs:
        threading.Thread(target=job, args=arguments, daemon=True).start()
    status = worker.wait()
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))  # Threads may still be reading.
