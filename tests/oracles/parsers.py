"""What every parser promises of any bytes, as functions that a fuzzer calls.

A target takes bytes, which describe edits of a valid input, and returns "refused" or
"taken". It raises AssertionError where a promise is broken: another error than the
typed one, or input that is taken though it is not what it says. `tests/fuzzing_test.py`
calls them with few bytes of Hypothesis, `.ci/fuzz.py` for minutes with libFuzzer's.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import io
import itertools
import json
import lzma
import pathlib
import pickle
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from oracles import quantization as oracle

REFUSED, TAKEN = "refused", "taken"
IS_LONG = False  # Whether to build graphs first, which saves time later.
_EDIT = struct.Struct("<BBHBB")  # What, from where, position, length, value.
_RAW = 255  # As the first byte of a script: the rest is the whole input.


def edited(content: bytes, script: bytes) -> bytes:
    """Returns content after the edits of a script, six bytes each.

    Half of the positions are counted from the begin, a quarter from the end, where
    headers and directories are.
    """
    if script[:1] == bytes([_RAW]):
        return script[1:]
    data = bytearray(content)
    whole = len(script) // _EDIT.size * _EDIT.size
    for what, place, position, length, value in _EDIT.iter_unpack(script[:whole]):
        size = len(data) + 1
        at = [position % 256, position % 256, size - position % 256, position * 7919]
        begin = at[place % 4] % size
        end = min(begin + 1 + length % 16, len(data))
        if what % 5 == 0 and begin < len(data):
            data[begin] ^= 1 << (value % 8)
        elif what % 5 == 1:
            data[begin:end] = bytes([value]) * (end - begin)
        elif what % 5 == 2:
            del data[begin:end]
        elif what % 5 == 3:
            data[begin:begin] = bytes([value]) * (1 + length % 16)
        elif what % 5 == 4:
            del data[begin:]
    return bytes(data)


@functools.cache
def folder() -> pathlib.Path:
    """Returns a folder for this process's files, in memory where there is one."""
    memory = pathlib.Path("/dev/shm")
    path = tempfile.mkdtemp(dir=memory if memory.is_dir() else None)
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return pathlib.Path(path)


# --- codes --------------------------------------------------------------------


def entropy_blocks(script: bytes) -> str:
    """A block gives its symbols, or `EntropyCodingError`; its checksum may be right."""
    from tff_fedmpq.baselines import entropy_coding

    symbols = np.random.default_rng(0).integers(-3, 4, 200)
    sample = entropy_coding.encode(symbols)
    is_signed, script = bool(script[:1] and script[0] % 2), script[1:]
    block = edited(sample[:-4] if is_signed else sample, script)
    if is_signed:
        block += struct.pack("<I", zlib.crc32(block))
    try:
        found = entropy_coding.decode(block, 10_000)
    except entropy_coding.EntropyCodingError:
        assert block != sample
        return REFUSED
    assert found.dtype == np.int32 and 1 <= found.size <= 10_000
    assert -(2**15) <= found.min() and found.max() < 2**15
    if not is_signed:
        assert block == sample and np.array_equal(found, symbols)
    return TAKEN


def packed_layers(script: bytes) -> str:
    """Bytes give the codes that are in them, or an error for another number of them."""
    import tensorflow as tf

    from tff_fedmpq.quantization import packing

    bit_width, num_codes = (script[0] % 8 + 1, script[1]) if script[1:] else (3, 5)
    packed = np.frombuffer(script[2:], np.uint8)
    fits = packed.size == -(-num_codes * bit_width // 8)
    try:
        codes = packing.unpack_numpy(packed, bit_width, num_codes)
    except ValueError:
        codes = None
    try:
        width = tf.constant(bit_width)
        in_graph = packing.unpack(tf.constant(packed), width, num_codes).numpy()
    except tf.errors.InvalidArgumentError:
        in_graph = None
    layer = np.array([num_codes]), tf.constant([bit_width])
    assert bool(packing.has_packed_size(tf.constant(packed), *layer)) == fits
    assert (codes is not None) == (in_graph is not None) == fits
    if codes is None or in_graph is None:
        return REFUSED
    assert np.array_equal(codes, oracle.unpack(packed, bit_width, num_codes))
    assert np.array_equal(codes, in_graph)
    return TAKEN


# --- messages -----------------------------------------------------------------


@functools.cache
def _parties() -> list[Any]:
    """Returns parties of schemes, sums over three clients, the fourth's answer.

    The second of four is `accumulate` for answers of the right shapes.
    """
    import tensorflow as tf

    from oracles.party import KEYS, Party
    from oracles.problem import make_problem
    from tff_fedmpq.baselines.fedavg import FedAvgConfig
    from tff_fedmpq.baselines.fedpaq import FedPAQConfig
    from tff_fedmpq.baselines.uveqfed import UVeQFedConfig
    from tff_fedmpq.federated.fedmpq import FedMPQConfig

    problem = make_problem()
    configs = FedMPQConfig(), FedMPQConfig(error_feedback=False), FedAvgConfig()
    parties = []
    for config in (*configs, FedPAQConfig(), UVeQFedConfig()):
        party = Party(problem, config)
        sums = party.accumulate([party.answer(key) for key in KEYS[:-1]])
        accumulate = party.server.accumulate
        if IS_LONG:
            accumulate = tf.function(accumulate, autograph=False)
        parties.append((party, accumulate, sums, party.answer(KEYS[-1])))
    return parties


def messages(script: bytes) -> str:
    """A message adds what a client may add, or nothing, and its sender is named.

    One tensor of it is edited; the checksum may be made to fit.
    """
    import tensorflow as tf

    from tff_fedmpq.federated import acceptance
    from tff_fedmpq.federated.acceptance import Rejection

    which, is_signed, leaf, rank = (*script[:4], 0, 0, 0, 0)[:4]
    party, accumulate, before, answer = _parties()[which % 5]
    key = int(answer.key)
    flat = tf.nest.flatten(answer)
    leaf %= len(flat)
    array = flat[leaf].numpy()
    content = edited(array.tobytes(), script[4:])
    values = np.frombuffer(content[: len(content) - len(content) % array.itemsize],
                           array.dtype)  # fmt: skip
    fits = values.size == array.size and rank % 4
    shape = array.shape if fits else [[-1], [1, -1], [-1, 1], [-1]][rank % 4]
    if not array.ndim:  # Scalars travel as such.
        shape, values = (), np.resize(values, 1) if values.size else array.reshape(1)
    changed = values.reshape(shape)
    flat[leaf] = tf.constant(changed)
    result = tf.nest.pack_sequence_as(answer, flat)
    same = changed.shape == array.shape and changed.tobytes() == array.tobytes()
    if is_signed % 2:
        seed = party.sent[key]["seed"]
        result = result._replace(checksum=acceptance.checksum(result, seed))
        same = False
    if changed.shape != array.shape:  # A graph of its own would take seconds.
        accumulate = party.server.accumulate
    after = accumulate(before, result, party.sent[key]["ticket"])
    if after.num_rejected:
        code = int(after.rejected[key])
        assert Rejection(code) and not same
        unsigned = Rejection.CHECKSUM, Rejection.TICKET, Rejection.RECEIVED
        assert is_signed % 2 or code in unsigned
        after = after._replace(rejected=before.rejected)
        after = after._replace(num_rejected=before.num_rejected)
        pairs = zip(tf.nest.flatten(before), tf.nest.flatten(after))
        assert all(np.array_equal(a, b) for a, b in pairs)
        return REFUSED
    assert same or is_signed % 2
    assert all(np.isfinite(t).all() for t in tf.nest.flatten(after))
    assert after.participations[key] == 1
    ticket = party.sent[key]["ticket"]
    widths = after.bit_widths[key].numpy()
    assert (widths >= 1).all() and (widths <= ticket.bit_widths.numpy()).all()
    added = float(after.total_weight - before.total_weight)
    budget = tf.constant(party.server.budgets[key], tf.float32)
    weigh = party.server.scheme.aggregation_weight
    assert 0 <= added <= float(weigh(budget, tf.constant(100_000.0)))
    limit = acceptance.MAX_WEIGHT_RATIO * float(ticket.magnitude) * max(added, 1.0)
    num_trainable = party.spec.num_weights - party.spec.num_statistics
    changes = np.abs(after.weights - before.weights)[:num_trainable]
    assert np.max(changes) <= 1.001 * limit
    return TAKEN


# --- files --------------------------------------------------------------------


def _take_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def partitions(script: bytes) -> str:
    """A manifest gives the partition that it says, or ValueError."""
    from tff_fedmpq.simulation.data.partitions import Partition, dirichlet_partition

    path = folder() / "partition.json"
    partition = dirichlet_partition(np.arange(30) % 3, 3, 0.5, 7, "digits")
    partition.save(path)
    content = edited(path.read_bytes(), script)
    path.write_bytes(content)
    try:
        found = Partition.load(path)
    except ValueError as error:
        assert content and "delete it" in str(error) or not content
        return REFUSED
    said = _take_json(content)
    assert all(said[key] == value for key, value in found._manifest().items())
    positions = np.concatenate(found.client_indices)
    assert positions.size == np.unique(positions).size and positions.min(initial=0) >= 0
    return TAKEN


def cifar_files(script: bytes) -> str:
    """A batch file gives images with labels in range, or `DatasetError`."""
    from tff_fedmpq.simulation.data import DatasetError, cifar

    path = folder() / "data_batch_1"
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (2, 3072), np.uint8)
    sample = pickle.dumps({b"data": data, b"labels": [3, 9]}, protocol=3)
    content = edited(sample, script)
    path.write_bytes(content)
    try:
        images, labels = cifar._read_file(path, cifar._CIFAR10)
    except DatasetError as error:
        assert content != sample and "\n" not in str(error)
        return REFUSED
    assert images.dtype == np.uint8 and images.shape == (len(labels), 32, 32, 3)
    assert labels.dtype == np.int32 and labels.size
    assert labels.min() >= 0 and labels.max() < 10
    return TAKEN


@functools.cache
def _tiny_images() -> pathlib.Path:
    """Returns a folder in Tiny-ImageNet's layout, of two classes."""
    from PIL import Image

    root = folder() / "tiny-imagenet-200"
    rng = np.random.default_rng(0)
    names = [f"train/{wnid}/images/{wnid}_0.JPEG" for wnid in ("n01", "n02")]
    for name in (*names, "val/images/val_0.JPEG", "secret.JPEG"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(path, "JPEG", quality=10)
    (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t62\t62\n")
    (root / "wnids.txt").write_text("n01\nn02\n")
    return root


def tiny_imagenet_files(script: bytes) -> str:
    """Lists and images give the data set of their folder, or `DatasetError`."""
    from tff_fedmpq.simulation.data import DatasetError, tiny_imagenet

    root = _tiny_images()
    names = "val/val_annotations.txt", "wnids.txt", "val/images/val_0.JPEG"
    path = root / names[(script[0] if script else 0) % 3]
    sample = path.read_bytes()
    content = edited(sample, script[1:])
    path.write_bytes(content)
    try:
        found = tiny_imagenet.load_tiny_imagenet(root)
    except DatasetError as error:
        assert content != sample and "\n" not in str(error)
        return REFUSED
    finally:
        path.write_bytes(sample)
    assert found.train_images.shape == (2, 64, 64, 3)
    assert found.test_images.shape[1:] == (64, 64, 3)
    assert found.test_labels.max() < found.num_classes == 2
    return TAKEN


_STATE = {"round": np.int32(0), "weights": np.zeros(4, np.float32)}


@functools.cache
def _checkpoints() -> Mapping[str, bytes]:
    """Returns the files of a run of two rounds by their names."""
    from tff_fedmpq.federated.checkpoints import Checkpoints

    root = folder() / "run"
    for number in (1, 2):
        state = {"round": np.int32(number), "weights": np.full(4, number, np.float32)}
        Checkpoints(root).save(number, state, {"round": number, "loss": 0.5})
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def checkpoints(script: bytes) -> str:
    """A damaged state or record is passed over; the round before is there.

    One member of the archive may be edited, so that the archive's checksums fit: then
    the state has the shapes of the process, and finite numbers.
    """
    from tff_fedmpq.federated.checkpoints import Checkpoints

    root, what = folder() / "run", (script[0] if script else 0) % 3
    files = dict(_checkpoints())
    name = "rounds/00002.json" if what == 1 else "checkpoints/round_2.npz"
    if what == 2:
        files[name] = _with_edited_member(files[name], script[1:])
    else:
        files[name] = edited(files[name], script[1:])
    shutil.rmtree(root)
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    state, records = Checkpoints(root).load_latest(_STATE)
    number = len(records)
    assert [record["round"] for record in records] == list(range(1, number + 1))
    assert number in (1, 2)
    for key, like in _STATE.items():
        assert (state[key].dtype, state[key].shape) == (like.dtype, like.shape)
        assert np.isfinite(state[key]).all()
        if what != 2 or number == 1:
            assert (state[key] == number).all()
    return TAKEN if number == 2 else REFUSED


def _with_edited_member(archive: bytes, script: bytes) -> bytes:
    which, script = (script[0] if script else 0), script[1:]
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        for name in names:
            content = old.read(name)
            chosen = name == names[which % len(names)]
            new.writestr(name, edited(content, script) if chosen else content)
    return file.getvalue()


def result_files(script: bytes) -> str:
    """A result or a configuration is the one written, or `OutputDirectoryError`.

    The checksum may be made to fit.
    """
    from tff_fedmpq.simulation import run_files

    path = folder() / "result.json"
    result = {"scheme": "fedmpq", "rounds": [{"round": 1, "test_accuracy": 0.5}]}
    run_files.write_result(path, result)
    is_signed, script = bool(script[:1] and script[0] % 2), script[1:]
    content = edited(path.read_bytes(), script)
    said = _take_json(content)
    if is_signed and isinstance(said, dict):
        said.pop("checksum", None)
        content = json.dumps({**said, "checksum": run_files._checksum(said)}).encode()
    path.write_bytes(content)
    try:
        found = run_files.read_result(path)
    except run_files.OutputDirectoryError:
        assert said != result
        return REFUSED
    assert is_signed or found == result
    return TAKEN


_num_models = itertools.count()


@functools.cache
def _packed_file() -> bytes:
    """Returns the packed file of a small quantized model."""
    import tensorflow as tf

    from tff_fedmpq import export
    from tff_fedmpq.keras import quantize_model

    tf.keras.utils.set_random_seed(0)
    dense = tf.keras.layers.Dense(3, "relu", name="dense")
    model = tf.keras.Sequential([tf.keras.Input([4]), dense], "model")
    path = folder() / "model.fedmpq"
    export.write_packed(quantize_model(model, 3, 4), path)
    return path.read_bytes()


def packed_files(script: bytes) -> str:
    """A packed file gives the variables that it holds, or `PackedFileError`.

    Size and checksum may be made to fit, of an edited value of the header too.
    """
    import tensorflow as tf

    from tff_fedmpq.export.packed import PackedFileError, unpack_model

    what, script = (script[0] if script else 0) % 3, script[1:]
    content = sample = _packed_file()
    header, body = _parts_of(sample)
    if what == 0:
        content = edited(sample, script)
    elif what == 1:
        rest = edited(sample[56:], script)
        content = _signed(len(header), rest)
    elif what == 2:
        header = lzma.compress(_with_edited_value(lzma.decompress(header), script))
        content = _signed(len(header), header + body)
    if next(_num_models) % 100 == 0:
        tf.keras.backend.clear_session()  # Keras keeps what models are made of.
    try:
        model = unpack_model(content)
    except PackedFileError:
        assert content != sample
        return REFUSED
    assert what or content == sample
    _check_variables(model, _parts_of(content)[1])
    return TAKEN


def _parts_of(packed_file: bytes) -> tuple[bytes, bytes]:
    """Returns header and body; see `tff_fedmpq.export.packed`."""
    end = 56 + struct.unpack_from("<I", packed_file, 52)[0]
    return packed_file[56:end], packed_file[end:]


def _signed(header_size: int, rest: bytes) -> bytes:
    """Returns a packed file whose size and checksum fit."""
    start = _packed_file()[:12] + struct.pack("<Q", 56 + len(rest))
    end = struct.pack("<I", header_size) + rest
    return start + hashlib.sha256(start + end).digest() + end


def _with_edited_value(text: bytes, script: bytes) -> bytes:
    """Returns JSON of which one value or name is edited."""
    values = [match.span() for match in re.finditer(rb'"[^"]*"|[-\w.]+', text)]
    which = int.from_bytes(script[:2], "little") % len(values)
    begin, end = values[which]
    return text[:begin] + edited(text[begin:end], script[2:]) + text[end:]


def _check_variables(model: Any, body: bytes) -> None:
    """Asserts that a model's variables are those of a packed file's body."""
    from tff_fedmpq.keras import quantized_kernels

    widths = {id(kernel.bit_width) for kernel in quantized_kernels(model)}
    for variable in model.weights:
        if id(variable) in widths:
            continue
        value = variable.numpy()
        if hasattr(variable, "quantized_kernel"):
            bits = int(variable.quantized_kernel.bit_width)
            size = -(-value.size * bits // 8)
            packed = np.frombuffer(body[:size], np.uint8)
            codes = oracle.unpack(packed, bits, value.size)
            assert np.array_equal(value.reshape(-1), codes)
        else:
            size = value.nbytes
            assert value.tobytes() == body[:size]
        body = body[size:]
    assert not body


TARGETS: Mapping[str, Callable[[bytes], str]] = {
    target.__name__: target
    for target in (
        messages,
        packed_layers,
        entropy_blocks,
        partitions,
        cifar_files,
        tiny_imagenet_files,
        checkpoints,
        result_files,
        packed_files,
    )
}
