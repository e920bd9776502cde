"""The example as a user runs it: killed, resumed, piped, and misused."""

import json
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_EXAMPLE = [sys.executable, str(_ROOT / "examples" / "cifar10_fedmpq.py")]
_SMALL = (
    "--dataset=digits --model=resnet8 --train_examples=600 --num_clients=4 "
    "--budgets=2,4,6,8 --clients_per_round=3 --rounds=4 --epochs=2"
).split()
_TIMES = ("seconds", "seconds_training")


def _load(output_dir: pathlib.Path) -> dict:
    result = json.loads((output_dir / "result.json").read_text())
    for record in result["rounds"]:
        for key in _TIMES:
            record.pop(key)
    result.pop("checksum")  # Of the times too.
    return result


def _wait_for(condition, seconds: float, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_in_round_three_and_resumed_gives_the_same(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(
        [*_EXAMPLE, *_SMALL, f"--output_dir={whole}"], check=True, cwd=tmp_path
    )
    process = subprocess.Popen(
        [*_EXAMPLE, *_SMALL, f"--output_dir={killed}"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = killed / "checkpoints" / "round_2.npz"
    _wait_for(checkpoint.exists, 300, process)
    steps = len((killed / "progress.log").read_text().splitlines())
    _wait_for(
        lambda: len((killed / "progress.log").read_text().splitlines()) > steps + 2,
        60,
        process,
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "rounds" / "00003.json").exists()
    subprocess.run(
        [*_EXAMPLE, *_SMALL, f"--output_dir={killed}", "--resume"],
        check=True,
        cwd=tmp_path,
    )
    assert _load(killed) == _load(whole)


_ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size={size}k none disk
! "$@" --output_dir=disk/run --resume > full.log 2>&1
find disk -name ".*.tmp" > left.log
mount -o remount,size=50m disk
"$@" --output_dir=disk/run --resume > resumed.log 2>&1
cp disk/run/result.json .
"""


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("size", [48, 300, 500])
def test_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path, size):
    """On a file system of so many kB, which is then made larger."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system allows no user namespaces")
    run = [*_EXAMPLE, *_SMALL]
    (tmp_path / "disk").mkdir()
    script = _ON_A_SMALL_DISK.format(size=size)
    subprocess.run([*alone, "sh", "-c", script, "sh", *run], check=True, cwd=tmp_path)
    errors = (tmp_path / "full.log").read_text().splitlines()
    said = [line for line in errors if line.startswith("Error: ")]
    assert len(said) == 1 and "No space left on device. Make room" in said[0]
    assert "Traceback" not in (tmp_path / "full.log").read_text()
    assert (tmp_path / "left.log").read_text() == ""
    subprocess.run([*run, "--output_dir=whole"], check=True, cwd=tmp_path)
    assert _load(tmp_path) == _load(tmp_path / "whole")


@pytest.mark.parametrize("example", ["cifar10_fedmpq", "compare"])
def test_help_lists_the_settings_of_a_run_and_their_defaults(example):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    completed = subprocess.run(
        [sys.executable, str(_ROOT / "examples" / f"{example}.py"), "--help"],
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert completed.returncode == 0
    # It does not wait for TensorFlow.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    text = " ".join(completed.stdout.split())
    for flag in ("--alpha", "--budgets", "--lasso", "--preset", "--dataset"):
        assert flag in text
    assert "50 (paper), 18 (quick)" in text
    assert "Default: pruning_growing, only in fedmpq" in text


# All messages are those of `make_config`, which has tests of its own.
_BAD_FLAGS = [
    (["--budgets=2,4,6,80"], "1 to 8 bits"),
    (["--budgets=2,4"], "one number per client"),
    ([f"--seed={2**70}"], "seed has to be from 0 to"),
    (["--alpha=0"], "alpha has to be above 0"),
    (["--lasso=-1"], "lasso has to be 0 or more"),
    (["--activation_bits=9"], "activation_bits"),
    (["--clients_per_round=20"], "at most the number of clients"),
    (["--dataset=cifar10", "--data_dir=/nowhere"], "/nowhere"),
    (["--scheme=aqfl", "--lasso=0.1"], "aqfl has no settings ['lasso']"),
    (["--scheme=fedavg", "--float_learning_rate=0.01"], "fedavg has no settings"),
]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        *_BAD_FLAGS[-3:],
        *(pytest.param(*bad, marks=pytest.mark.slow) for bad in _BAD_FLAGS[:-3]),
    ],
)
def test_bad_flags_end_in_one_line(flags, message, tmp_path):
    output_dir = tmp_path / "output"
    completed = subprocess.run(
        [*_EXAMPLE, *_SMALL, *flags, f"--output_dir={output_dir}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert completed.returncode == 2
    errors = [x for x in completed.stderr.splitlines() if x.startswith("Error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in completed.stderr
    assert not output_dir.exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--alpha=low", "flag --alpha=low"),
        ("--allocation=keep", "flag --allocation=keep"),
        ("--scheme=fedprox", "flag --scheme=fedprox"),
        ("--local_epochs=3", "Unknown command line flag 'local_epochs'"),
    ],
)
def test_flags_that_cannot_be_parsed_are_refused(flag, message, tmp_path):
    completed = subprocess.run(
        [*_EXAMPLE, flag], capture_output=True, text=True, cwd=tmp_path
    )
    assert completed.returncode != 0
    assert message in completed.stderr and "Traceback" not in completed.stderr
    assert not list(tmp_path.iterdir())
