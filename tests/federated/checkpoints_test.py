"""Rounds that are saved, and what is left of them when files are lost or damaged."""

from __future__ import annotations

import asyncio
import errno
import shutil

import numpy as np
import pytest

from tff_fedmpq import files
from tff_fedmpq.federated.checkpoints import CheckpointError, Checkpoints
from tff_fedmpq.federated.waiting import wait_for

NOTHING = {"weights": np.zeros(4, np.float32), "round": np.int32(0)}


def state_of(round_number):
    return {
        "weights": np.full(4, round_number, np.float32),
        "round": np.int32(round_number),
    }


def save(directory, *rounds):
    checkpoints = Checkpoints(directory)
    for number in rounds:
        checkpoints.save(number, state_of(number), {"round": number})


def load(directory):
    """Returns the round of the state, checked to be whole, and those of the records."""
    state, records = Checkpoints(directory).load_latest(NOTHING)
    number = int(state["round"])
    np.testing.assert_array_equal(state["weights"], state_of(number)["weights"])
    return number, [record["round"] for record in records]


def damage(directory, round_number):
    path = directory / f"checkpoints/round_{round_number}.npz"
    assert path.exists()
    path.write_bytes(b"")


def test_nothing_saved_gives_the_structure(tmp_path):
    assert load(tmp_path) == (0, [])


def test_the_latest_is_loaded_and_few_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3)
    assert load(tmp_path) == (3, [1, 2, 3])
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"round_2.npz", "round_3.npz"}


@pytest.mark.faults
def test_a_damaged_state_is_passed_over_and_its_round_saved_again(tmp_path):
    save(tmp_path, 1, 2, 3)
    damage(tmp_path, 3)
    assert load(tmp_path) == (2, [1, 2])
    assert (tmp_path / "checkpoints/damaged_3.npz").exists()
    save(tmp_path, 3)
    assert load(tmp_path) == (3, [1, 2, 3])


@pytest.mark.faults
def test_nothing_is_deleted_where_no_state_can_be_read(tmp_path):
    save(tmp_path, 1, 2)
    for _ in range(2):
        damage(tmp_path, 1)
        damage(tmp_path, 2)
        with pytest.raises(CheckpointError, match="round 2: .*round 1: "):
            load(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"new": np.int32(0)}, "of another run"),
        ({"weights": np.zeros(5, np.float32)}, r"tensor 1 is float32\[4\]"),
        ({"weights": np.zeros(4, np.float64)}, r"tensor 1 is float32\[4\]"),
    ],
)
def test_a_state_of_another_structure_is_not_deleted(tmp_path, changes, message):
    save(tmp_path, 1, 2)
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path).load_latest({**NOTHING, **changes})
    assert load(tmp_path) == (2, [1, 2])


@pytest.mark.faults
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_passed_over(tmp_path, value):
    save(tmp_path, 1, 2)
    bad = {**state_of(3), "weights": np.full(4, value, np.float32)}
    Checkpoints(tmp_path).save(3, bad, {"round": 3})
    assert load(tmp_path) == (2, [1, 2])


@pytest.mark.faults
def test_a_record_that_was_changed_is_noticed(tmp_path):
    save(tmp_path, 1, 2, 3)
    record = tmp_path / "rounds/00003.json"
    record.write_text(record.read_text().replace("3", "2"))
    assert load(tmp_path) == (2, [1, 2])


@pytest.mark.faults
def test_flipped_bits_are_noticed(tmp_path):
    save(tmp_path, 1, 2)
    path = tmp_path / "checkpoints/round_2.npz"
    content = path.read_bytes()
    tensor = content.index(state_of(2)["weights"].tobytes())
    for position in (tensor, tensor + 7):
        changed = bytearray(content)
        changed[position] ^= 4
        path.write_bytes(changed)
        assert load(tmp_path) == (1, [1])
        (tmp_path / "checkpoints/damaged_2.npz").unlink()
    path.write_bytes(content)
    assert load(tmp_path) == (2, [1, 2])


@pytest.mark.faults
def test_loading_unpickles_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    save(tmp_path, 1, 2)
    objects = np.array([Payload()], dtype=object)
    np.savez(tmp_path / "checkpoints/round_2.npz", records=objects, **{"0": objects})
    assert load(tmp_path) == (1, [1])
    assert not (tmp_path / "executed").exists()


@pytest.mark.faults
def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    save(tmp_path, 1)
    for folder in ("checkpoints", "rounds"):
        (tmp_path / folder / ".round_2.npz.123.tmp").touch()
    assert load(tmp_path) == (1, [1])
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.faults
@pytest.mark.parametrize("content", [None, "{"])
def test_a_lost_record_is_named_and_states_are_kept(tmp_path, content):
    save(tmp_path, 1, 2)
    record = tmp_path / "rounds/00001.json"
    before = record.read_text()
    record.unlink() if content is None else record.write_text(content)
    with pytest.raises(CheckpointError, match="00001.json"):
        load(tmp_path)
    record.write_text(before)
    assert load(tmp_path) == (2, [1, 2])


@pytest.mark.faults
@pytest.mark.parametrize("content", [None, "{"])
def test_without_its_own_record_a_state_is_passed_over(tmp_path, content):
    save(tmp_path, 1, 2, 3)
    record = tmp_path / "rounds/00003.json"
    record.unlink() if content is None else record.write_text(content)
    assert load(tmp_path) == (2, [1, 2])


def test_works_where_an_event_loop_runs_already(tmp_path):
    """As in a notebook."""

    async def cell():
        save(tmp_path, 1)
        return load(tmp_path)

    assert asyncio.run(cell()) == (1, [1])


def test_waiting_raises_what_was_raised():
    async def fail():
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        wait_for(fail())


def test_a_folder_without_checkpoints_begins_anew(tmp_path):
    save(tmp_path, 1)
    shutil.rmtree(tmp_path / "checkpoints")
    assert load(tmp_path) == (0, [])


@pytest.fixture
def disk(monkeypatch):
    """A disk on which the n-th call that writes is the first to fail, from 0."""

    class Disk:
        calls, full_at = 0, None

        def use(self, function):
            def call(*args, **kwargs):
                self.calls += 1
                if self.full_at is not None and self.calls > self.full_at:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return function(*args, **kwargs)

            return call

    disk = Disk()

    def open_file(*args):
        file = disk.use(open)(*args)
        return _File(file, disk.use(file.write))

    class _File:
        def __init__(self, file, write):
            self._file, self.write = file, write

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self._file.close()

    monkeypatch.setattr(files, "open", open_file, raising=False)
    for name in ("fsync", "replace"):
        monkeypatch.setattr(files.os, name, disk.use(getattr(files.os, name)))
    return disk


@pytest.mark.faults
@pytest.mark.parametrize("moment", range(8))
def test_a_full_disk_loses_no_round(tmp_path, disk, moment):
    """Whichever of the eight calls that save a round fails, also twice."""
    save(tmp_path, 1, 2)
    before, calls = load(tmp_path), disk.calls
    for _ in range(2):
        disk.calls, disk.full_at = 0, moment
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 3)
        disk.full_at = None
        assert load(tmp_path) == before == (2, [1, 2])
        assert not list(tmp_path.rglob("*.tmp"))
    assert calls == 16
    save(tmp_path, 3)
    assert load(tmp_path) == (3, [1, 2, 3])


@pytest.mark.faults
@pytest.mark.parametrize("value", [np.nan, np.inf, np.float64("-inf")])
def test_a_record_is_json_or_the_round_is_not_saved(tmp_path, value):
    save(tmp_path, 1)
    with pytest.raises(ValueError, match="JSON"):
        Checkpoints(tmp_path).save(2, state_of(2), {"round": 2, "loss": value})
    assert load(tmp_path) == (1, [1])
