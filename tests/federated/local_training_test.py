"""What a client does in a round, without TFF."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
from oracles import quantization as oracle

from tff_fedmpq.federated.config import CodeTrainingConfig, LocalTrainingConfig
from tff_fedmpq.federated.local_training import (
    LocalTrainer,
    Pruning,
    learning_rates_at,
)
from tff_fedmpq.federated.messages import QuantizedWeights, quantize_weights
from tff_fedmpq.federated.tasks import Metrics
from tff_fedmpq.keras import quantize_model
from tff_fedmpq.keras.variables import float_parameter_variables
from tff_fedmpq.quantization.representations import SIGN_MAGNITUDE
from tff_fedmpq.quantization.scales import least_squares_scale

LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SEED = (3, 4)
ACCURACY = functools.partial(
    Metrics,
    ["accuracy"],
    outputs=tf.TensorSpec([4]),
    labels=tf.TensorSpec([], tf.int32),
)


def accuracy(sums) -> float:
    return float(sums.metrics[0][0] / sums.metrics[0][1])


def client_model(problem, lasso=0.0) -> tf.keras.Model:
    """Returns a model whose weights are assigned later, by a rule that is fast."""
    return quantize_model(problem.model_fn(), 8, 4, scale_rule="max", lasso=lasso)


def make_trainer(
    problem, *, pruning=None, augment=None, on_step=None, lasso=0.0, **config
):
    """Returns `LocalTrainer.train` as a TFF computation runs it.

    That is traced once for any number of examples, and beginning with fresh variables,
    the optimizer's among them, at every call.
    """
    model = client_model(problem, lasso=lasso)
    defaults = {"epochs": 2, "batch_size": 4, "learning_rate_unit": "code"}
    trainer = LocalTrainer(
        model,
        CodeTrainingConfig(**{**defaults, **config}),
        LOSS,
        pruning=pruning,
        augment=augment,
        on_step=on_step,
        metrics=ACCURACY(),
    )
    kernel_shapes = problem.spec.kernel_shapes
    float_parameter_shapes = problem.spec.float_parameter_shapes
    weights = QuantizedWeights(
        tuple(tf.TensorSpec(shape, tf.uint8) for shape in kernel_shapes),
        tf.TensorSpec([len(kernel_shapes)]),
        tf.TensorSpec([len(kernel_shapes)], tf.int32),
        tuple(tf.TensorSpec(shape) for shape in float_parameter_shapes),
    )
    images, labels = tf.TensorSpec([None, 8, 8, 3]), tf.TensorSpec([None], tf.int32)
    seed = tf.TensorSpec([2], tf.int32)

    @tf.function(input_signature=[weights, images, labels, seed])
    def train_in_graph(weights, images, labels, seed):
        return trainer.train(weights, images, labels, seed)

    variables = train_in_graph.get_concrete_function().variables
    fresh = [(variable, variable.numpy()) for variable in variables]

    def train_afresh(*arguments):
        for variable, value in fresh:
            variable.assign(value)
        return train_in_graph(*arguments)

    return train_afresh


@pytest.fixture(scope="module")
def trainer_of(problem):
    """Settings -> `make_trainer` of them, traced once."""
    return functools.cache(functools.partial(make_trainer, problem))


@pytest.fixture(scope="module")
def trainer(trainer_of):
    """Two epochs in batches of four, without pruning."""
    return trainer_of()


@pytest.fixture(scope="module")
def initial(problem):
    """bit_widths -> the float model of the problem, quantized to them."""
    model = problem.model_fn()
    weights = problem.spec.split(
        [variable.value() for variable in model.trainable_variables],
        [variable.value() for variable in model.non_trainable_variables],
    )

    def quantized(*bit_widths) -> QuantizedWeights:
        bit_widths = tf.constant(bit_widths, tf.int32)
        return quantize_weights(
            weights, bit_widths, SIGN_MAGNITUDE, least_squares_scale
        )

    return quantized


def train(trainer, weights, examples, seed=SEED):
    images, labels = examples
    return trainer(weights, tf.constant(images), tf.constant(labels), tf.constant(seed))


def assert_equal(a, b) -> None:
    """Bit for bit."""
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def differ(a, b) -> bool:
    pairs = zip(tf.nest.flatten(a), tf.nest.flatten(b))
    return any((x.numpy() != y.numpy()).any() for x, y in pairs)


def test_no_examples_leave_the_weights_as_they_are(trainer, initial, problem):
    weights = initial(2, 5)
    trained, sums, densities = train(trainer, weights, problem.make_examples(0, 0))
    assert_equal(trained, weights)
    assert tf.nest.flatten(sums) == [0, 0, 0, 0]
    assert densities.shape == [2] and np.isfinite(densities).all()


def test_training_moves_codes_and_float_parameters_but_not_scales(
    trainer, initial, problem
):
    weights = initial(2, 5)
    trained, _, _ = train(trainer, weights, problem.make_examples(12, 0))
    for before, after in zip(
        (*weights.codes, *weights.float_parameters),
        (*trained.codes, *trained.float_parameters),
    ):
        assert differ(before, after)
    np.testing.assert_array_equal(trained.scales, weights.scales)
    np.testing.assert_array_equal(trained.bit_widths, weights.bit_widths)


def test_a_seed_fixes_everything(problem, trainer, initial):
    weights, examples = initial(3, 6), problem.make_examples(11, 0)
    first = train(trainer, weights, examples)
    train(trainer, initial(8, 1), problem.make_examples(5, 9), seed=(0, 1))
    assert_equal(train(trainer, weights, examples), first)
    assert_equal(train(make_trainer(problem), weights, examples), first)


def known_to_the_graph(problem, learning_rate=0.1):
    """`LocalTrainer.train` itself, which sees the shapes that it is given."""
    config = CodeTrainingConfig(
        epochs=2, batch_size=4, learning_rate=learning_rate, learning_rate_unit="code"
    )
    trainer = LocalTrainer(client_model(problem), config, LOSS)
    # A bound `tf.function` alone would not keep the trainer alive.
    return lambda *arguments: trainer.train(*arguments)


def test_the_number_of_examples_may_be_known_to_the_graph(problem, trainer, initial):
    weights, examples = initial(3, 6), problem.make_examples(7, 0)
    first, _, _ = train(trainer, weights, examples)
    assert_equal(train(known_to_the_graph(problem), weights, examples)[0], first)


def test_a_trainer_keeps_nothing_from_its_last_call(problem, initial):
    trainer = known_to_the_graph(problem)
    weights, examples = initial(3, 6), problem.make_examples(7, 0)
    first = train(trainer, weights, examples)
    assert_equal(train(trainer, weights, examples), first)


def test_a_round_may_have_a_learning_rate_of_its_own(problem, initial):
    """They replace the configured ones, each its own, and for that call alone."""
    weights, examples = initial(3, 6), problem.make_examples(7, 0)
    trainer, slower = (
        known_to_the_graph(problem, learning_rate=rate) for rate in (1.0, 0.25)
    )
    images, labels = map(tf.constant, examples)
    expected = slower(weights, images, labels, SEED)
    rates = tf.constant([0.25, 0.1])
    assert_equal(trainer(weights, images, labels, SEED, rates), expected)
    before, _, _ = trainer(weights, images, labels, SEED)
    assert differ(before.codes, expected[0].codes)
    still, _, _ = trainer(weights, images, labels, SEED, tf.constant([0.0, 0.1]))
    assert_equal(still.codes, weights.codes)
    assert differ(still.float_parameters[0], weights.float_parameters[0])
    # Moving statistics, at the end, have no learning rate.
    still, _, _ = trainer(weights, images, labels, SEED, tf.constant([0.4, 0.0]))
    assert differ(still.codes, weights.codes)
    assert_equal(still.float_parameters[:-2], weights.float_parameters[:-2])


@pytest.mark.parametrize(
    ("round_number", "expected"), [(0, 0.4), (5, 0.2), (10, 0.0), (11, 0.0)]
)
def test_rates_fall_along_half_a_cosine_each_by_itself(round_number, expected):
    of_codes = CodeTrainingConfig(
        learning_rate=0.4, learning_rate_decay="cosine", rounds=10
    )
    of_float_parameters = CodeTrainingConfig(
        learning_rate=0.1,
        learning_rate_decay="none",
        float_learning_rate=0.4,
        float_learning_rate_decay="cosine",
        rounds=10,
    )
    found = learning_rates_at(of_codes, tf.constant(round_number))
    np.testing.assert_allclose(found, [expected, 0.1], atol=1e-7)
    found = learning_rates_at(of_float_parameters, tf.constant(round_number))
    np.testing.assert_allclose(found, [0.1, expected], atol=1e-7)


def test_a_float_model_has_one_rate(problem):
    config = LocalTrainingConfig(learning_rate=0.4, rounds=4)
    found = learning_rates_at(config, tf.constant(2))
    np.testing.assert_allclose(found, [0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize("rate", [0.4, 1])
@pytest.mark.parametrize(
    "settings", [{}, {"rounds": 10, "learning_rate_decay": "none"}]
)
def test_rates_are_floats_that_stay(rate, settings):
    config = CodeTrainingConfig(
        learning_rate=rate, float_learning_rate=rate, **settings
    )
    found = learning_rates_at(config, tf.constant(7))
    assert found.dtype == tf.float32  # A message's int32 would not fit the optimizer.
    np.testing.assert_allclose(found, [rate, rate])


@pytest.mark.parametrize("seed", [(3, 5), (4, 4), (0, 0)])
def test_another_seed_gives_other_codes(trainer, initial, problem, seed):
    weights, examples = initial(3, 6), problem.make_examples(11, 0)
    first, _, _ = train(trainer, weights, examples)
    other, _, _ = train(trainer, weights, examples, seed)
    assert differ(first.codes[0], other.codes[0])
    assert differ(first.codes[1], other.codes[1])


def test_the_seed_rounds_too_and_not_only_shuffles(trainer, initial, problem):
    """One example has one order only."""
    weights, examples = initial(3, 6), problem.make_examples(1, 0)
    first, _, _ = train(trainer, weights, examples)
    other, _, _ = train(trainer, weights, examples, (9, 9))
    assert differ(first.codes, other.codes)


def test_loss_falls(trainer_of, initial, problem):
    examples = problem.make_examples(24, 0)
    short, long = (trainer_of(epochs=epochs, batch_size=8) for epochs in (1, 20))
    for bit_widths in ((1, 2), (3, 4), (8, 8)):
        _, first, _ = train(short, initial(*bit_widths), examples)
        _, mean, _ = train(long, initial(*bit_widths), examples)
        assert mean.loss / mean.count < 0.6 * first.loss / first.count
        assert accuracy(mean) > max(0.7, accuracy(first))


def test_losses_of_layers_may_be_of_another_type():
    """As of a regularized layer in a mixed policy; logits may be bfloat16 too."""
    layers = tf.keras.layers
    hidden = layers.Dense(4, activity_regularizer="l2", dtype="mixed_bfloat16")
    head = layers.Dense(2, dtype="mixed_bfloat16")
    model = quantize_model(
        tf.keras.Sequential([tf.keras.Input([3]), hidden, head]), 8, lasso=0.01
    )
    trainer = LocalTrainer(model, CodeTrainingConfig(batch_size=2), LOSS)
    sums = trainer.step(tf.ones([2, 3]), tf.constant([0, 1]))
    assert sums.loss.dtype == tf.float32
    assert np.isfinite(sums.loss)


@pytest.mark.parametrize("bit_widths", [(1, 3), (2, 7), (8, 1)])
def test_codes_stay_within_their_bits(trainer_of, problem, initial, bit_widths):
    trainer = trainer_of(learning_rate=1e3)
    trained, _, _ = train(trainer, initial(*bit_widths), problem.make_examples(9, 0))
    for codes, bits in zip(trained.codes, bit_widths):
        assert codes.dtype == tf.uint8
        # So high a rate throws codes to both ends of the range.
        assert codes.numpy().min() == 0
        assert codes.numpy().max() == 2**bits - 1


@pytest.mark.parametrize("count", [1, 3, 4, 7, 8])
def test_every_example_counts_once_per_epoch(trainer, initial, problem, count):
    _, sums, _ = train(trainer, initial(4, 4), problem.make_examples(count, 0))
    assert float(sums.count) == 2 * count
    assert 0 <= accuracy(sums) <= 1
    assert float(sums.metrics[0][1]) == 2 * count
    assert float(sums.loss) > 0


def test_batches_are_a_new_order_each_epoch(problem, initial):
    """Seven examples in batches of four: 4, 3, 4, 3."""
    batches, steps = tf.Variable(tf.fill([8, 4], -1)), tf.Variable(0)

    def record(images, seed):
        del seed
        numbers = tf.cast(images[:, 0, 0, 0], tf.int32)
        padded = tf.pad(numbers, [[0, 4 - tf.size(numbers)]], constant_values=-1)
        batches.scatter_nd_update([[steps]], [padded])
        return images / 10

    trainer = make_trainer(
        problem, epochs=4, augment=record, on_step=lambda loss: steps.assign_add(1)
    )
    # An image is its number everywhere.
    images = np.broadcast_to(np.arange(7)[:, None, None, None], (7, 8, 8, 3))
    labels = np.zeros(7, np.int32)
    train(trainer, initial(4, 4), (images.astype(np.float32), labels))
    assert int(steps) == 8
    sizes = (batches.numpy() >= 0).sum(axis=1).tolist()
    assert sizes == [4, 3] * 4
    epochs = [row[row >= 0].tolist() for row in batches.numpy().reshape(4, 8)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 4
    assert len(set(map(tuple, epochs))) > 1


def test_augmentation_is_seeded_by_step(problem, initial):
    seeds, steps = tf.Variable(tf.zeros([4, 2], tf.int32)), tf.Variable(0)

    def record(images, seed):
        seeds.scatter_nd_update([[steps]], [seed])
        return images

    trainer = make_trainer(
        problem, augment=record, on_step=lambda loss: steps.assign_add(1)
    )
    seen = []
    for seed in (SEED, SEED, (1, 1)):
        train(trainer, initial(4, 4), problem.make_examples(8, 0), seed)
        seen.append(seeds.numpy().tolist())
    assert seen[0] == seen[1] != seen[2]
    assert len({tuple(seed) for seed in seen[0]}) == 4


def test_steps_report_the_task_loss(problem, initial):
    total = tf.Variable(0.0)
    trainer = make_trainer(
        problem, lasso=100.0, on_step=lambda loss: total.assign_add(4 * loss)
    )
    _, sums, _ = train(trainer, initial(4, 4), problem.make_examples(8, 0))
    np.testing.assert_allclose(total, sums.loss, rtol=1e-6)


def sparse_weights(initial, bit_widths, used_bits) -> QuantizedWeights:
    """A model whose magnitudes have `used_bits` digits and empty planes above."""
    weights = initial(*bit_widths)
    rng = np.random.default_rng(0)
    codes = []
    for old, bits, used in zip(weights.codes, bit_widths, used_bits):
        levels = rng.integers(-(2**used), 2**used, size=old.shape) + 0.5
        codes.append(tf.constant(levels + (2**bits - 1) / 2, tf.uint8))
    return weights._replace(codes=tuple(codes))


@pytest.mark.parametrize("used_bits", [(0, 4), (3, 2)])
def test_empty_planes_are_pruned(trainer_of, problem, initial, used_bits):
    bit_widths = (6, 8)
    trainer = trainer_of(pruning=Pruning(0.0, True))
    weights = sparse_weights(initial, bit_widths, used_bits)
    pruned, _, densities = train(trainer, weights, problem.make_examples(0, 0))
    assert pruned.bit_widths.numpy().tolist() == [used + 1 for used in used_bits]
    np.testing.assert_array_equal(densities, [0, 0])
    for i, bits in enumerate(bit_widths):
        codes, scale, width = oracle.prune_msb(
            oracle.SIGN_MAGNITUDE, weights.codes[i].numpy(), weights.scales[i], bits, 0
        )
        np.testing.assert_array_equal(pruned.codes[i], codes)
        np.testing.assert_allclose(pruned.scales[i], scale, rtol=1e-6)
        assert pruned.bit_widths[i] == width
        # Nothing was in these planes: the weights are as before.
        np.testing.assert_allclose(
            SIGN_MAGNITUDE.dequantize(pruned.codes[i], pruned.scales[i], width),
            SIGN_MAGNITUDE.dequantize(weights.codes[i], weights.scales[i], bits),
            rtol=1e-5,
        )


@pytest.mark.parametrize(("threshold", "bit_widths"), [(None, [6, 8]), (1.0, [1, 1])])
def test_the_threshold_decides(trainer_of, problem, initial, threshold, bit_widths):
    pruning = None if threshold is None else Pruning(threshold, True)
    trainer = trainer_of(pruning=pruning)
    weights = sparse_weights(initial, (6, 8), (2, 2))
    pruned, _, _ = train(trainer, weights, problem.make_examples(0, 0))
    assert pruned.bit_widths.numpy().tolist() == bit_widths


def test_densities_are_those_before_pruning(trainer_of, problem, initial, trainer):
    examples, weights = problem.make_examples(12, 0), initial(8, 3)
    pruning = trainer_of(pruning=Pruning(1.0, True))
    trained, _, densities = train(trainer, weights, examples)
    pruned, _, densities_pruned = train(pruning, weights, examples)
    assert pruned.bit_widths.numpy().tolist() == [1, 1]
    expected = [
        oracle.msb_density(oracle.SIGN_MAGNITUDE, codes.numpy(), bits)
        for codes, bits in zip(trained.codes, (8, 3))
    ]
    np.testing.assert_allclose(densities, expected, rtol=1e-6)
    np.testing.assert_array_equal(densities_pruned, densities)


def test_saturation_can_be_left_out(trainer_of, problem, initial):
    weights, examples = initial(4, 4), problem.make_examples(0, 0)
    for saturate in (True, False):
        trainer = trainer_of(pruning=Pruning(1.0, saturate))
        pruned, _, _ = train(trainer, weights, examples)
        for i in range(2):
            codes, _, _ = oracle.prune_msb(
                oracle.SIGN_MAGNITUDE,
                weights.codes[i].numpy(),
                weights.scales[i],
                4,
                1.0,
                saturate,
            )
            np.testing.assert_array_equal(pruned.codes[i], codes)


def test_lasso_empties_top_planes(trainer_of, problem, initial):
    densities = []
    for lasso in (0.0, 30.0):
        trainer = trainer_of(lasso=lasso, weight_decay=0.0)
        _, _, density = train(trainer, initial(4, 4), problem.make_examples(12, 0))
        densities.append(density.numpy())
    assert (densities[1] < 0.7 * densities[0]).all()


def test_a_float_model_trains_by_sgd(problem):
    """Against Keras's own optimizer: one example, so that there is one order."""
    model, reference = problem.model_fn(), problem.model_fn()
    config = LocalTrainingConfig(
        epochs=3, learning_rate=0.05, momentum=0.9, weight_decay=0.0
    )
    trainer = LocalTrainer(model, config, LOSS)
    values = tuple(variable.value() for variable in float_parameter_variables(model))
    weights = QuantizedWeights((), tf.zeros([0]), tf.zeros([0], tf.int32), values)
    images, labels = problem.make_examples(1, 0)
    trained, sums, densities = train(trainer.train, weights, (images, labels))
    reference.compile(tf.keras.optimizers.SGD(0.05, 0.9), LOSS)
    reference.fit(images, labels, epochs=3, verbose=0)
    for mine, variable in zip(
        trained.float_parameters, float_parameter_variables(reference)
    ):
        np.testing.assert_allclose(mine, variable, rtol=1e-4, atol=1e-6)
    assert trained.codes == () and densities.shape == [0]
    assert float(sums.count) == 3
