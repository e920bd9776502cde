"""Links between network namespaces, with the delay and rate of a real network.

    python .ci/worker_links.py DELAY_MS MBIT COORDINATOR_NAMESPACE NAMESPACE ...

For each further namespace n (1, 2, ...), a TUN device `link<n>` in the coordinator's
namespace (address 10.99.n.1) and one named `wan` in its own (10.99.n.2). This program
carries the packets, each DELAY_MS later, at most MBIT Mbit/s in each direction: what
`tc netem` does where the kernel has it. Needs root; ends with its standard input, and
the devices with it. Prints "ready".
"""

from __future__ import annotations

import collections
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_QUEUE_SECONDS = 0.2  # As much as a router holds; what comes beyond is dropped.


def enter(path: str) -> None:
    """Moves this thread to a network namespace."""
    descriptor = os.open(path, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"Cannot enter {path}")
    os.close(descriptor)


def make_device(namespace: str, name: str, address: str, peer: str) -> int:
    """Returns the descriptor of a TUN device in a namespace."""
    enter(f"/var/run/netns/{namespace}")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
    for command in (
        f"ip address add {address} peer {peer} dev {name}",
        f"ip link set {name} up txqueuelen 1000",
    ):
        subprocess.run(command.split(), check=True)
    return descriptor


def main() -> None:
    """Makes the links and carries packets until the standard input ends."""
    delay, rate = float(sys.argv[1]) / 1000, float(sys.argv[2]) * 1e6 / 8
    home, *others = sys.argv[3:]
    targets: dict[int, int] = {}
    for number, namespace in enumerate(others, 1):
        here, there = f"10.99.{number}.1", f"10.99.{number}.2"
        first = make_device(home, f"link{number}", here, there)
        second = make_device(namespace, "wan", there, here)
        targets[first], targets[second] = second, first
    print("ready", flush=True)
    free = dict.fromkeys(targets, 0.0)  # When a direction's line is free again.
    queues = {source: collections.deque() for source in targets}
    while True:
        now = time.monotonic()
        for source, queue in queues.items():
            while queue and queue[0][0] <= now:
                try:
                    os.write(targets[source], queue.popleft()[1])
                except OSError:
                    pass  # The link is down.
        due = [queue[0][0] for queue in queues.values() if queue]
        wait = max(0.0, min(due) - time.monotonic()) if due else 1.0
        for source in select.select([0, *targets], [], [], wait)[0]:
            if source == 0:
                return
            for _ in range(64):
                try:
                    packet = os.read(source, 65536)
                except OSError:
                    break
                start = max(time.monotonic(), free[source])
                if start - time.monotonic() > _QUEUE_SECONDS:
                    continue
                free[source] = start + len(packet) / rate
                queues[source].append((free[source] + delay, packet))


if __name__ == "__main__":
    main()
