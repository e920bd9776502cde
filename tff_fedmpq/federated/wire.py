"""How a coordinator and its workers find, trust and check each other.

    coordinator --(Unix socket)--> stunnel ==TLS==> stunnel --(Unix socket)--> worker

TFF's worker speaks plaintext to anybody. Debian's stunnel carries its bytes; both ends
show a certificate of the same private CA (`deploy/make_certificates`). An address is
"host:port", or "unix:/path" on the same machine.

Uses the standard library only, so that a health check starts at once.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import pathlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from tff_fedmpq.files import PathLike

QUESTION = b"INFO\n"  # Instead of HTTP/2, on a connection of its own.
# HTTP/2: the client's preface, an empty SETTINGS frame, a PING frame; and its answer.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_PING = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"tff-ping"
_PONG = bytes([0, 0, 8, 6, 1, 0, 0, 0, 0]) + b"tff-ping"
# The shell ends stunnel when its standard input ends: with its owner, in any way.
_KEPT = '"$@" < /dev/null & read -r line; kill $!; wait'
_STUNNEL = """\
foreground = yes
pid =
syslog = no
debug = warning
socket = a:SO_REUSEADDR=1
socket = r:SO_KEEPALIVE=1
socket = r:TCP_KEEPIDLE=20
socket = r:TCP_KEEPINTVL=10
socket = r:TCP_KEEPCNT=3
socket = l:SO_KEEPALIVE=1
socket = l:TCP_KEEPIDLE=20
socket = l:TCP_KEEPINTVL=10
socket = l:TCP_KEEPCNT=3
[tff]
accept = {accept}
connect = {connect}
CAfile = {folder}/ca.pem
cert = {folder}/cert.pem
key = {folder}/key.pem
sslVersionMin = TLSv1.3
verifyChain = yes
TIMEOUTbusy = 30
TIMEOUTconnect = 10
TIMEOUTclose = 10
TIMEOUTidle = 604800
"""


def split_address(address: str) -> tuple[str, int]:
    """Returns host and port; ValueError for another form than "host:port"."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"Expected host:port or unix:/path, found {address!r}.")
    return host.strip("[]"), int(port)


def is_local(address: str) -> bool:
    """Returns whether only this machine reaches an address."""
    if address.startswith("unix:"):
        return True
    host = split_address(address)[0]
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check_plaintext(address: str, insecure: bool) -> None:
    """Raises ValueError for an address that needs TLS."""
    if not (insecure or is_local(address)):
        raise ValueError(
            f"{address} is reached over a network: whoever reaches it could run code "
            "there. Give --tls_dir, or --insecure on a network that you alone use."
        )


def read_addresses(given: Iterable[str]) -> list[str]:
    """Returns addresses; "@file" stands for its lines, "dns:host:port" for all hosts.

    Files and names are read anew at each call: workers can be added and removed.
    """
    found: list[str] = []
    for entry in given:
        if entry.startswith("@"):
            lines = [x.strip() for x in pathlib.Path(entry[1:]).read_text().split("\n")]
            found += [line for line in lines if line and not line.startswith("#")]
        elif entry.startswith("dns:"):
            host, port = split_address(entry[4:])
            with contextlib.suppress(socket.gaierror):  # Nobody is there yet.
                all_of = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found += sorted({f"[{x[4][0]}]:{port}" for x in all_of})
        else:
            found.append(entry)
    for address in found:
        if not address.startswith("unix:"):
            split_address(address)
    return list(dict.fromkeys(found))


def connect(address: str, timeout: float) -> socket.socket:
    """Returns a connection; every operation on it ends within `timeout` seconds."""
    if not address.startswith("unix:"):
        return socket.create_connection(split_address(address), timeout)
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    end.settimeout(timeout)
    try:
        end.connect(address[len("unix:") :])
    except OSError:
        end.close()
        raise
    return end


def ask(address: str, timeout: float) -> dict[str, Any]:
    """Returns what a worker says of itself; OSError unless it is there and well."""
    with connect(address, timeout) as end:
        end.sendall(QUESTION)
        answer = b""
        while not answer.endswith(b"\n"):
            if not (part := end.recv(4096)) or len(answer) > 65536:
                raise ConnectionError(f"{address} does not answer as a worker")
            answer += part
    try:
        return dict(json.loads(answer))
    except (TypeError, ValueError):
        raise ConnectionError(f"{address} does not answer as a worker") from None


def ping(address: str, timeout: float) -> bool:
    """Returns whether a gRPC server answers there, however busy it is."""
    with contextlib.suppress(OSError), connect(address, timeout) as end:
        end.sendall(_PREFACE + _PING)
        received = b""
        while _PONG not in received:
            if not (part := end.recv(4096)) or len(received) > 65536:
                return False
            received += part
        return True
    return False


@contextlib.contextmanager
def tls_proxy(
    accept: str, target: str, tls_dir: PathLike, *, is_client: bool, log: Any = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs stunnel inside the block.

    Args:
      accept: Path of a Unix socket, or "host:port".
      target: The same, of the end that the bytes go to.
      tls_dir: Folder with ca.pem, cert.pem and key.pem.
      is_client: Whether the target speaks TLS; else whoever connects does.
      log: File for what stunnel has to say; None is the standard error.

    Raises:
      ValueError: without stunnel, or without these files.
    """
    program = shutil.which("stunnel4") or shutil.which("stunnel")
    if program is None:
        raise ValueError("TLS needs stunnel: apt-get install stunnel4.")
    folder = pathlib.Path(tls_dir).expanduser().resolve()
    for name in ("ca.pem", "cert.pem", "key.pem"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; see deploy/make_certificates.")
    text = _STUNNEL.format(accept=accept, connect=target, folder=folder)
    if is_client:
        host = split_address(target)[0]
        is_number = host.replace(".", "").isdecimal() or ":" in host
        check = "checkIP" if is_number else "checkHost"
        text += f"client = yes\ndelay = yes\n{check} = {host}\n"
    else:
        text += "requireCert = yes\n"
    with tempfile.NamedTemporaryFile("w", prefix="stunnel-") as configuration:
        configuration.write(text)
        configuration.flush()
        command = ["sh", "-c", _KEPT, "sh", program, configuration.name]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.stdin is not None:
                process.stdin.close()
            process.wait()
