"""Tests of `remote_runtime` and of what it stands on, with real TFF workers.

`tff_fedmpq.worker` runs in processes of its own in one test; in the others its `Front`
stands before workers of this process, as that starts much faster.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import tensorflow as tf

from tff_fedmpq import build_fedmpq
from tff_fedmpq import worker as worker_program
from tff_fedmpq.federated import remote_round, remote_runtime, wire
from tff_fedmpq.federated.runtime import local_runtime, owned_worker
from tff_fedmpq.federated.worker_guard import listen

_ROOT = pathlib.Path(wire.__file__).parents[2]
_IDS = ["anna", "bert", "cléo", "dora"]


# --- addresses --------------------------------------------------------------


def test_addresses_are_read_from_files_anew(tmp_path):
    path = tmp_path / "workers"
    given = [f"@{path}", "b:2"]
    path.write_text("# the lab\na:1\n\nb:2\n")
    assert wire.read_addresses(given) == ["a:1", "b:2"]
    path.write_text("unix:/c\n")
    assert wire.read_addresses(given) == ["unix:/c", "b:2"]


def test_addresses_of_a_name():
    assert "[127.0.0.1]:7" in wire.read_addresses(["dns:localhost:7"])
    assert wire.split_address("[127.0.0.1]:7") == ("127.0.0.1", 7)


@pytest.mark.parametrize("address", ["a", "a:", ":1", "a:b", "a:0", "a:65536"])
def test_refuses_what_is_no_address(address):
    with pytest.raises(ValueError, match="Expected host:port or unix:/path"):
        wire.read_addresses([address])


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/a"]
)
def test_loopback_needs_no_tls(address):
    wire.check_plaintext(address, insecure=False)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "host:1", "[2001:db8::1]:1"])
def test_a_network_needs_tls(address):
    wire.check_plaintext(address, insecure=True)
    with pytest.raises(ValueError, match="--tls_dir"):
        wire.check_plaintext(address, insecure=False)
    with pytest.raises(ValueError, match="--tls_dir"):
        with remote_runtime.remote_runtime([address]):
            pytest.fail("entered without TLS")


def test_the_program_refuses_a_network_without_tls(capsys):
    assert worker_program.main(["--host=0.0.0.0"]) == 2
    assert "--insecure" in capsys.readouterr().err
    assert worker_program.main(["--slots=0"]) == 2
    assert worker_program.main(["--check=unix:/nobody/there"]) == 2


# --- the order of clients ---------------------------------------------------


class _Anyone:
    """Stands for a worker in a round."""

    address = "anyone"


def _make_round(*sizes, slots=1):
    current = remote_round.Round(None, [str(n) for n in sizes], sizes, slots)
    for job in current.order:
        current.offer(job, argument=job.size, ticket=None)
    return current


def _end(sizes, slots):
    """Returns when the last client is done, if each takes as long as its size."""
    free = [0] * slots
    for index in remote_round.in_order(sizes, slots):
        free[free.index(min(free))] += sizes[index]
    return max(free)


def test_clients_of_one_size_keep_their_order():
    assert remote_round.in_order([5] * 40, 3) == list(range(40))


@pytest.mark.parametrize(
    "sizes", [[1, 1, 1, 9], [3, 9, 5, 1], [1] * 80 + [40], [2] * 30 + [1, 20, 20]]
)
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_big_client_does_not_end_late(sizes, slots):
    assert sorted(remote_round.in_order(sizes, slots)) == list(range(len(sizes)))
    # No schedule ends earlier than this; one that begins with small clients does not.
    assert _end(sizes, slots) == max(max(sizes), -(-sum(sizes) // slots))


def test_no_more_messages_than_workers_need():
    current = remote_round.Round(None, list("abcdefgh"), [1] * 8, slots=2)
    while current.wants_messages:
        current.offer(current.order[len(current.waiting)], "message", None)
    assert len(current.waiting) == 4
    current.take(_Anyone())
    assert current.wants_messages


def test_clients_of_a_lost_worker_are_next():
    current, lost = _make_round(5, 5, 5), _Anyone()
    first = current.take(lost)
    current.put_back(lost)
    assert current.take(_Anyone()) is first


def test_a_slow_client_is_done_twice_but_not_by_the_same_worker():
    current = _make_round(9, 9)
    slow, quick, third = _Anyone(), _Anyone(), _Anyone()
    job = current.take(slow)
    current.take(quick).started.clear()
    job.started[slow] = time.monotonic() - 60
    assert current.take(quick) is None  # Nothing is known of the usual time.
    current.give(quick, current.jobs[1], "result", seconds=1)
    assert current.take(slow) is None
    assert current.take(quick) is job
    assert current.take(third) is None
    current.give(quick, job, "first", seconds=1)
    current.give(slow, job, "second", seconds=60)
    assert current.results[job.index] == "first"
    assert current.report["workers"] == {"anyone": 2}


# --- with workers -----------------------------------------------------------


class _Machine:
    """A worker behind the program's front, on a Unix socket."""

    def __init__(self, folder, stack):
        path = str(folder / "front")
        self.address, self._stack = f"unix:{path}", contextlib.ExitStack()
        server = stack.enter_context(contextlib.closing(listen(path)))
        self._front = worker_program.Front(server, slots=1)
        stack.callback(self.stop)
        self.start()

    def start(self):
        self.worker = self._stack.enter_context(owned_worker(None, 60.0, 1))
        self._front.target = self.worker.address

    def stop(self):
        self._stack.close()

    def signal(self, number):
        _signal(self.worker, number)


def _signal(worker, number):
    """Signals TFF's worker, below its guard."""
    for task in pathlib.Path(f"/proc/{worker._process.pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):  # A thread that has ended.
            for child in task.read_text().split():
                os.kill(int(child), number)


@pytest.fixture
def machines(tmp_path):
    with contextlib.ExitStack() as stack:
        found = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            found.append(_Machine(tmp_path / name, stack))
        yield found


@pytest.fixture(scope="module")
def local(process):
    """Outputs of two rounds of `local_runtime`, with as many threads as workers."""
    with local_runtime(intra_op_threads=1):
        first = process.next(process.initialize(), _IDS[:2])
        return first, process.next(first.state, _IDS)


def _addresses(machines):
    return [machine.address for machine in machines]


def _assert_equal(found, expected):
    for a, b in zip(tf.nest.flatten(_plain(found)), tf.nest.flatten(_plain(expected))):
        np.testing.assert_array_equal(a, b)


def _plain(output):
    model = output.state.global_model_weights
    return [model.trainable, model.non_trainable, output.state.distributor,
            output.metrics]  # fmt: skip


@pytest.mark.parametrize("number", [1, 2])
def test_same_numbers_whatever_the_number_of_workers(machines, number, process, local):
    addresses = _addresses(machines[:number])
    with remote_runtime.remote_runtime(addresses) as context:
        first = process.next(process.initialize(), _IDS[:2])
        second = process.next(first.state, _IDS)
        assert sum(context.report["workers"].values()) == len(_IDS)
        assert set(context.report["workers"]) <= set(addresses)
        assert not context.report["events"]
    _assert_equal(first, local[0])
    _assert_equal(second, local[1])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_clients_of_a_lost_worker_are_done_by_the_others(
    machines, number, process, local
):
    lost, kept = machines
    with remote_runtime.remote_runtime(
        _addresses(machines), answer_seconds=2
    ) as context:
        process.next(local[0].state, _IDS)  # Both are in use.
        lost.signal(number)
        found = process.next(local[0].state, _IDS)
        _assert_equal(found, local[1])
        deadline = time.monotonic() + 30
        while context.hosts[lost.address].connections and time.monotonic() < deadline:
            time.sleep(0.1)
        found = process.next(local[0].state, _IDS)
        _assert_equal(found, local[1])
        assert context.report["workers"] == {kept.address: len(_IDS)}
        if number == signal.SIGSTOP:
            lost.signal(signal.SIGCONT)
        else:
            lost.start()
        while not context.hosts[lost.address].connections:
            assert time.monotonic() < deadline + 30
            time.sleep(0.1)
        _assert_equal(process.next(local[0].state, _IDS), local[1])
        assert f"{lost.address} is back" in context.report["events"]


@pytest.mark.slow
def test_an_aggregator_gets_all_answers(machines, problem):
    process = build_fedmpq(*problem.setting, problem.config(), aggregator="clipping")
    with local_runtime(intra_op_threads=1):
        state = process.initialize()
        expected = process.next(state, _IDS)
    with remote_runtime.remote_runtime(_addresses(machines)):
        _assert_equal(process.next(state, _IDS), expected)


def test_no_worker_left_is_one_line(machines, process, local):
    with remote_runtime.remote_runtime(
        _addresses(machines), wait_seconds=3, answer_seconds=2
    ):
        for machine in machines:
            machine.signal(signal.SIGKILL)
        with pytest.raises(remote_runtime.NoWorkersError) as error:
            process.next(local[0].state, _IDS)
        assert "\n" not in str(error.value)
        machines[0].start()
        _assert_equal(process.next(local[0].state, _IDS), local[1])


def test_the_end_of_the_coordinators_own_worker_is_said(machines, process, local):
    with remote_runtime.remote_runtime(_addresses(machines)) as context:
        process.next(local[0].state, _IDS)
        _signal(context._worker, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="(ended while|does not answer)"):
            process.next(local[0].state, _IDS)


def test_a_worker_with_other_examples_is_named(machines, process, local):
    inspect = process.next.split().inspect
    with remote_runtime.remote_runtime([machines[0].address]) as context:
        ids = [client_id.encode() for client_id in _IDS]
        context.expected[inspect] = dict.fromkeys(ids, (1, 2))
        with pytest.raises(remote_runtime.NoWorkersError, match="other examples") as e:
            process.next(local[0].state, _IDS)
        assert machines[0].address in str(e.value)


def test_a_client_that_fails_ends_the_round(machines, problem):
    def fail(loss):
        tf.debugging.Assert(loss < 0, ["on purpose"])

    process = build_fedmpq(*problem.setting, problem.config(), on_step=fail)
    with remote_runtime.remote_runtime(_addresses(machines)):
        with pytest.raises(ValueError, match="on purpose") as error:
            process.next(process.initialize(), _IDS)
        assert "\n" not in str(error.value)
        # Nothing keeps a process that is gone; what TFF compiled it keeps for a while.
        kept = [weakref.ref(part) for part in process.next.split()[:4]]
        del process, error
        deadline = time.monotonic() + 10  # A connection looks up once a second.
        while any(reference() for reference in kept):
            assert time.monotonic() < deadline
            time.sleep(0.1)
            gc.collect()


def test_workers_come_and_go_with_a_file(machines, process, local, tmp_path):
    path = tmp_path / "workers"
    path.write_text(machines[0].address)
    with remote_runtime.remote_runtime([f"@{path}"]) as context:
        process.next(local[0].state, _IDS)
        path.write_text(machines[1].address)
        deadline = time.monotonic() + 30
        while set(context.hosts) != {machines[1].address}:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        _assert_equal(process.next(local[0].state, _IDS), local[1])
        assert set(context.report["workers"]) == {machines[1].address}


@pytest.mark.slow
def test_the_program_serves_and_ends_cleanly(tmp_path, process, local):
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "tff_fedmpq.worker", f"--socket={path}"]
    program = subprocess.Popen(
        [*command, "--slots=2"], stdout=subprocess.PIPE, text=True, cwd=_ROOT
    )
    try:
        assert "2 clients at a time" in program.stdout.readline()
        check = [*command[:3], f"--check=unix:{path}"]
        answer = subprocess.run(check, capture_output=True, cwd=_ROOT, check=True)
        assert json.loads(answer.stdout)["ready"]
        with remote_runtime.remote_runtime([f"unix:{path}"]):
            _assert_equal(process.next(local[0].state, _IDS), local[1])
        # The coordinator is gone, and with it what it left: another TFF worker serves.
        assert "Serving" in program.stdout.readline()
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=30) == 0
        assert not path.exists()
    finally:
        program.kill()
        program.communicate()


# --- TLS --------------------------------------------------------------------

_needs_tls = pytest.mark.skipif(
    not (shutil.which("stunnel4") and shutil.which("openssl")),
    reason="needs Debian's stunnel4 and openssl",
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    make = str(_ROOT / "deploy/make_certificates")
    for name in ("mine", "other"):
        subprocess.run([make, folder / name, "127.0.0.1", "localhost"], check=True)
    return folder


@pytest.fixture
def tls_address(tmp_path, certificates):
    """Address of a front without a worker, behind TLS."""
    with contextlib.ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        path = str(tmp_path / "front")
        server = stack.enter_context(contextlib.closing(listen(path)))
        worker_program.Front(server, slots=5)
        folder = certificates / "mine/127.0.0.1"
        stack.enter_context(wire.tls_proxy(address, path, folder, is_client=False))
        _wait_until(lambda: socket.create_connection(wire.split_address(address)))
        yield address


def _wait_until(connect):
    deadline = time.monotonic() + 10
    while True:
        try:
            return connect().close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _ask_with(folder, address, tmp_path):
    path = str(tmp_path / "tunnel")
    with wire.tls_proxy(path, address, folder, is_client=True):
        _wait_until(lambda: wire.connect(f"unix:{path}", 5))
        return wire.ask(f"unix:{path}", 5)


@_needs_tls
def test_tls_lets_the_coordinator_in(tls_address, certificates, tmp_path):
    about = _ask_with(certificates / "mine/coordinator", tls_address, tmp_path)
    assert about["slots"] == 5 and not about["ready"]


@_needs_tls
@pytest.mark.parametrize("folder", ["other/coordinator", "mine/localhost"])
def test_tls_keeps_others_out(tls_address, certificates, folder, tmp_path):
    """Another authority's certificate; that of a worker in place of a client's."""
    with pytest.raises(OSError):
        _ask_with(certificates / folder, tls_address, tmp_path)


@_needs_tls
def test_tls_keeps_plaintext_out(tls_address):
    with pytest.raises(OSError):
        wire.ask(tls_address, 5)


@_needs_tls
def test_a_worker_has_to_be_who_it_is(tls_address, certificates, tmp_path):
    address = tls_address.replace("127.0.0.1", "localhost")
    with pytest.raises(OSError):
        _ask_with(certificates / "mine/coordinator", address, tmp_path)


def test_tls_needs_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.raises(ValueError, match="no ca.pem; see deploy/make_certificates"):
        with wire.tls_proxy("a:1", "b:2", tmp_path, is_client=True):
            pytest.fail("entered without a certificate")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="apt-get install stunnel4"):
        with wire.tls_proxy("a:1", "b:2", tmp_path, is_client=True):
            pytest.fail("entered without stunnel")


# --- who answers ------------------------------------------------------------


@pytest.mark.parametrize("answer", [b"", b"[1]\n", b"hello\n", 70_000 * b"a"])
def test_another_server_is_no_worker(answer, tmp_path):
    path = str(tmp_path / "server")
    with contextlib.closing(listen(path)) as server:

        def serve():
            for _ in range(2):
                with server.accept()[0] as end, contextlib.suppress(OSError):
                    end.recv(4096)
                    end.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(ConnectionError, match="does not answer as a worker"):
            wire.ask(f"unix:{path}", 5)
        assert not wire.ping(f"unix:{path}", 5)
