"""Aggregators of TFF between clients' updates and the next model."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_fedmpq.baselines.registry import SCHEMES
from tff_fedmpq.federated.acceptance import Rejection
from tff_fedmpq.federated.aggregation import AGGREGATORS, epsilon
from tff_fedmpq.federated.checkpoints import Checkpoints
from tff_fedmpq.federated.process import build_process
from tff_fedmpq.federated.robust_means import TrimmedMeanFactory

CLIENTS = ["bert", "cléo", "dora"]  # Anna has no examples.
SETTINGS = {"epochs": 1, "batch_size": 8, "learning_rate_decay": "none"}
NOISE, DELTA = 0.2, 1e-5
ALL = [name for name in SCHEMES if not name.endswith("_literal")]


def build(problem, scheme, aggregator, more=None, **options):
    """Builds a process of the problem's clients and `more`: id -> examples."""
    settings = dict(SETTINGS, **options.pop("settings", {}))
    if scheme in ("fpq8", "aqfl", "fedmpq"):
        # The plain path has no others in common with an aggregator's.
        settings["statistics_per_budget"] = False
    examples = {**problem.examples, **(more or {})}
    return build_process(
        problem.model_fn,
        # FedPAQ has no updates of fewer bits.
        {name: max(problem.budgets.get(name, 4), 2) for name in examples},
        tff.simulation.datasets.TestClientData(examples),
        SCHEMES[scheme](**settings),
        aggregator=aggregator,
        seed=3,
        **options,
    )


def weights_of(state):
    return tf.nest.flatten(state.global_model_weights)


def assert_equal(a, b):
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def median(problem):
    """FedMPQ with the median over clients; also over Eve, who has a bad image."""
    images, labels = problem.make_examples(5, 1)
    images[2] = np.nan
    return build(problem, "fedmpq", "median", {"eve": (images, labels)})


@pytest.fixture(scope="module")
def private(problem):
    """FedMPQ with differential privacy."""
    aggregator = tff.learning.dp_aggregator(NOISE, 10, zeroing=False)
    return build(problem, "fedmpq", aggregator)


# --- types --------------------------------------------------------------------


def test_state_and_measurements_have_the_aggregators_types(median, problem):
    signature = median.next.type_signature
    assert signature.parameter["state"] == median.initialize.type_signature.result
    assert signature.result["state"] == signature.parameter["state"]
    names = tff.structure.name_list(signature.result["metrics"].member)
    assert names[-1] == "aggregator"
    # On workers, the round ends with the state, the sums and all answers.
    assert len(median.next.split().finish.type_signature.parameter) == 3
    weights = tff.to_type([tff.TensorType(np.float32, [2, 3])])
    process = AGGREGATORS["clipping"]().create(weights, tff.TensorType(np.float32))
    clipping = build(problem, "fedavg", "clipping").initialize.type_signature.result
    for name in ("weights", "statistics"):
        expected = process.initialize.type_signature.result.member
        assert clipping.member["aggregator"][name] == expected


def test_names_are_those_of_factories():
    weighted = tff.aggregators.WeightedAggregationFactory
    assert all(isinstance(make(), weighted) for make in AGGREGATORS.values())


# --- what is refused -------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregator", "error", "words"),
    [
        ("mean", ValueError, "Unknown aggregator 'mean'.*'median', 'trimmed_mean'"),
        (np.mean, TypeError, "factory of tff.aggregators or tff.learning"),
        (TrimmedMeanFactory, TypeError, "factory of tff.aggregators or tff.learning"),
        (0.5, TypeError, "found 0.5"),
    ],
)
def test_refuses_what_is_no_aggregator_before_a_model_is_built(
    problem, aggregator, error, words
):
    with pytest.raises(error, match=words) as caught:
        build_process(
            lambda: pytest.fail("a model was built"),
            problem.budgets,
            problem.client_data,
            problem.config(),
            aggregator=aggregator,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ({"pruning_threshold": 0.1}, {}, "set pruning_threshold=None"),
        ({}, {"metrics_per_client": True}, "leave out metrics_per_client"),
    ],
)
def test_refuses_privacy_with_what_tells_of_clients(problem, settings, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        build_process(
            lambda: pytest.fail("a model was built"),
            problem.budgets,
            problem.client_data,
            SCHEMES["fedmpq"](**settings),
            aggregator=tff.learning.dp_aggregator(NOISE, 10),
            **options,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_refuses_privacy_with_secure_sums(problem):
    aggregator = tff.learning.ddp_secure_aggregator(NOISE, 10)
    with pytest.raises(ValueError, match="use tff.learning.dp_aggregator") as caught:
        build(problem, "fedavg", aggregator)
    assert "\n" not in str(caught.value)


# --- rounds ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ALL)
def test_tffs_mean_is_the_plain_round(runtime, problem, scheme):
    """Of every scheme: what clients change reaches the aggregator as it is."""
    plain = build(problem, scheme, None)
    process = build(problem, scheme, tff.aggregators.MeanFactory())
    outputs = [p.next(p.initialize(), problem.client_ids) for p in (plain, process)]
    for _ in range(2):
        for expected, found in zip(*(weights_of(o.state) for o in outputs)):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)
        metrics = [dict(output.metrics) for output in outputs]
        metrics[1].pop("aggregator")
        assert_equal(*metrics)
        # The same state, so that rounding does not move codes.
        state = outputs[0].state
        joined = state._replace(aggregator=outputs[1].state.aggregator)
        outputs = [
            plain.next(state, CLIENTS),
            process.next(joined, CLIENTS),
        ]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ALL)
@pytest.mark.parametrize(
    "make",
    [
        *AGGREGATORS.values(),
        tff.learning.robust_aggregator,
        tff.learning.secure_aggregator,
        functools.partial(tff.learning.dp_aggregator, 0.1, 3),
    ],
)
def test_every_scheme_takes_every_aggregator(runtime, problem, scheme, make):
    adam = tff.learning.optimizers.build_adam(0.01)
    process = build(problem, scheme, make(), server_optimizer_fn=adam)
    state = process.initialize()
    for participants in (problem.client_ids, CLIENTS):
        output = process.next(state, participants)
        assert not output.metrics["abandoned"]
        assert not np.array_equal(weights_of(output.state)[0], weights_of(state)[0])
        state = output.state


def test_a_round_is_numpys_median_of_its_clients(runtime, median, problem):
    start = median.initialize()
    old = weights_of(start)
    # The median of one client is this client's change.
    changes = [
        [new - w for new, w in zip(weights_of(median.next(start, [c]).state), old)]
        for c in CLIENTS
    ]
    output = median.next(start, problem.client_ids)
    for found, w, values in zip(weights_of(output.state), old, zip(*changes)):
        expected = w + np.median(np.stack(values), axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert output.metrics["participations"].tolist() == [1, 1, 1, 1, 0]


def test_the_parts_of_a_round_are_the_round(runtime, median):
    """With them clients are on other machines."""
    state = median.initialize()
    parts = median.next.split()
    sums, answers = parts.zero(), []
    for client in CLIENTS:
        client_id = client.encode()  # TFF sends text in ASCII alone.
        *sent, ticket = parts.select(state, client_id)
        answers.append((parts.work(client_id, *sent), ticket))
        sums = parts.accumulate(sums, answers[-1])
    assert_equal(
        weights_of(parts.finish(state, sums, answers).state),
        weights_of(median.next(state, CLIENTS).state),
    )


@pytest.mark.faults
def test_a_client_that_is_left_out_does_not_count(runtime, median):
    start = median.initialize()
    output = median.next(start, [*CLIENTS, "eve"])
    row = median.client_ids.index("eve")
    assert output.metrics["rejected"][row] == Rejection.IMAGES
    others = median.next(start, CLIENTS)
    assert_equal(weights_of(output.state), weights_of(others.state))


@pytest.mark.faults
def test_a_round_of_nobody_changes_nothing_but_its_number(runtime, private):
    start = private.initialize()
    output = private.next(start, ["anna"])
    assert output.metrics["abandoned"] and output.state.distributor["round"] == 1
    for name in ("global_model_weights", "aggregator"):
        pair = (tf.nest.flatten(getattr(s, name)) for s in (output.state, start))
        assert_equal(*pair)


# --- differential privacy --------------------------------------------------------


def epsilon_by_oracle(noise_multiplier, releases):
    """Of Gaussian mechanisms, by Renyi's divergence (Mironov 2017, Canonne 2020)."""
    orders = np.concatenate([np.linspace(1.01, 20, 20000), np.arange(20.0, 512)])
    divergence = releases * orders / (2 * noise_multiplier**2)
    spare = np.log1p(-1 / orders) - np.log(DELTA * orders) / (orders - 1)
    return np.min(divergence + spare)


def test_epsilon_is_that_of_all_rounds_and_survives_a_checkpoint(
    runtime, private, tmp_path
):
    state = private.initialize()
    with pytest.raises(ValueError, match="at least one round"):
        epsilon(state, DELTA)
    for _ in range(2):
        state = private.next(state, CLIENTS).state
    # In each round once for weights and once for statistics.
    expected = epsilon_by_oracle(NOISE, releases=4)
    assert epsilon(state, DELTA) == pytest.approx(expected, rel=0.02)
    assert epsilon(state, DELTA) >= expected * (1 - 1e-6)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    loaded, _ = checkpoints.load_latest(private.initialize())
    assert_equal(tf.nest.flatten(loaded), tf.nest.flatten(state))
    assert epsilon(private.next(loaded, CLIENTS).state, DELTA) > expected


def test_private_bit_widths_do_not_depend_on_examples(runtime, private):
    start = private.initialize()
    state = private.next(start, CLIENTS).state
    assert_equal(
        state.distributor["mean_bit_widths"], start.distributor["mean_bit_widths"]
    )
    assert state.distributor["statistics_weights"].tolist() == [1.0]
    variances = state.global_model_weights.non_trainable[1]
    assert (variances >= 0).all()


def test_epsilon_needs_privacy(runtime, median):
    state = median.next(median.initialize(), CLIENTS).state
    with pytest.raises(ValueError, match="aggregator of differential privacy"):
        epsilon(state, DELTA)
