"""Reading a client's examples, and its part of a round as a TFF computation."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tff_fedmpq.federated import messages
from tff_fedmpq.federated.client_work import read_all_examples
from tff_fedmpq.federated.local_training import LocalTrainer


@pytest.fixture(params=["pairs", "mapping", "mapping, y first"])
def make_dataset(request):
    """(images, labels) -> data set of one of the allowed structures."""

    def make(images, labels):
        structure = {
            "pairs": (images, labels),
            "mapping": {"x": images, "y": labels},
            "mapping, y first": {"y": labels, "x": images},
        }[request.param]
        return tf.data.Dataset.from_tensor_slices(structure)

    return make


@pytest.mark.parametrize("count", [0, 1, 5, 300])
def test_all_examples_are_read_in_order(make_dataset, problem, count):
    images, labels = problem.make_examples(count, 0)
    read_images, read_labels, weights = read_all_examples(make_dataset(images, labels))
    assert weights is None
    np.testing.assert_array_equal(read_images, images)
    np.testing.assert_array_equal(read_labels, labels)
    assert read_images.dtype == tf.float32 and read_labels.dtype == tf.int32


@pytest.mark.parametrize("count", [0, 4])
def test_static_shapes_are_known_in_a_graph(make_dataset, problem, count):
    dataset = make_dataset(*problem.make_examples(count, 0))

    @tf.function
    def read():
        images, labels, _ = read_all_examples(dataset)
        assert images.shape.as_list() == [None, 8, 8, 3]
        assert labels.shape.as_list() == [None]
        return tf.shape(images)[0]

    assert int(read()) == count


def test_all_examples_are_read_of_a_set_of_unknown_size(problem):
    images, labels = problem.make_examples(6, 0)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    read_images, read_labels, _ = read_all_examples(dataset.filter(lambda x, y: y > 0))
    np.testing.assert_array_equal(read_images, images[labels > 0])
    np.testing.assert_array_equal(read_labels, labels[labels > 0])


@pytest.mark.parametrize("shape", [(1,), (4,), (3, 2)])
def test_labels_keep_their_shape(make_dataset, problem, shape):
    images, _ = problem.make_examples(5, 0)
    labels = np.random.default_rng(0).normal(size=(5, *shape))
    _, read, _ = read_all_examples(make_dataset(images, labels))
    np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize("as_mapping", [False, True])
@pytest.mark.parametrize("count", [0, 5])
def test_structures_and_sample_weights_are_kept(as_mapping, count):
    rng = np.random.default_rng(0)
    x = {"age": rng.normal(size=count), "photo": rng.normal(size=(count, 3, 2))}
    y = (np.arange(count), {"mask": np.ones([count, 4], bool)})
    weights = rng.random(count)
    examples = (x, y, weights)
    if as_mapping:
        examples = {"sample_weight": weights, "y": y, "x": x}
    read = read_all_examples(tf.data.Dataset.from_tensor_slices(examples))
    tf.nest.map_structure(np.testing.assert_array_equal, read, (x, y, weights))


@pytest.mark.parametrize(
    "structure",
    [
        np.zeros([3, 2]),
        (np.zeros([3, 2]),),
        4 * (np.zeros([3]),),
        {"x": np.zeros([3, 2])},
        {"image": np.zeros([3, 2]), "label": np.zeros([3])},
        {"x": np.zeros([3, 2]), "y": np.zeros([3]), "weight": np.zeros([3])},
    ],
    ids=["tensor", "single", "four", "only x", "other names", "one more"],
)
def test_another_structure_is_refused_with_the_mend(structure):
    dataset = tf.data.Dataset.from_tensor_slices(structure)
    with pytest.raises(ValueError, match=r"pairs \(x, y\)") as error:
        read_all_examples(dataset)
    message = str(error.value)
    assert "client_data.preprocess" in message  # How to mend it,
    assert "TensorSpec" in message  # and what was found.
    assert "\n" not in message


# --- as a computation -------------------------------------------------------


@pytest.fixture(scope="module")
def trainer(problem):
    """Trains as the clients of the problem do."""
    return LocalTrainer(
        problem.scheme.build_client_model(problem.model_fn()),
        problem.scheme.training,
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        pruning=problem.scheme.pruning,
    )


@pytest.mark.parametrize("name", ["bert", "dora", "anna"])
def test_a_client_trains_as_the_trainer_does(recorded_round, problem, trainer, name):
    """TFF adds nothing: the same message and seed give the same model.

    Not quite to the bit on every processor, as the worker has kernels of its own. But
    examples in another order, say, would give another loss and most codes other values.
    """
    sent, result = recorded_round.messages[name], recorded_round.results[name]
    weights = messages.unpack_model(
        tf.nest.map_structure(tf.constant, sent), problem.spec
    )
    seed = tf.random.split(sent["seed"], 2)[0]
    images, labels = map(tf.constant, problem.examples[name])
    trained, sums, densities = trainer.train(weights, images, labels, seed)
    np.testing.assert_allclose(list(result.training)[:2], list(sums)[:2], rtol=1e-3)
    np.testing.assert_allclose(result.msb_densities, densities, atol=0.02)
    np.testing.assert_array_equal(result.bit_widths, trained.bit_widths)
    packed = messages.pack_model(trained)
    same = result.message["codes"] == packed["codes"].numpy()
    assert same.mean() > 0.9
    np.testing.assert_allclose(result.message["scales"], packed["scales"], rtol=1e-6)
    for mine, value in zip(
        result.message["float_parameters"], packed["float_parameters"]
    ):
        np.testing.assert_allclose(mine, value, rtol=1e-2, atol=1e-2)


def test_a_client_reports_its_row_weight_and_bit_widths(recorded_round, problem):
    for name in recorded_round.participants:
        result = recorded_round.results[name]
        count = len(problem.examples[name][1])
        assert result.key == problem.client_ids.index(name)
        assert result.weight == problem.budgets[name] * count  # v_n |D_n|
        assert result.training.count == problem.options["epochs"] * count
        np.testing.assert_array_equal(result.bit_widths, result.message["bit_widths"])


def test_a_client_without_examples_learns_nothing(recorded_round):
    sent, result = recorded_round.messages["anna"], recorded_round.results["anna"]
    assert result.weight == 0
    assert tf.nest.flatten(result.training) == [0, 0, 0, 0]
    for before, after in zip(
        sent["float_parameters"], result.message["float_parameters"]
    ):
        np.testing.assert_array_equal(before, after)
