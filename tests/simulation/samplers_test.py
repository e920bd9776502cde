"""Clients of rounds: who is drawn, how often, and the same again after a pause."""

from __future__ import annotations

import asyncio
import collections

import numpy as np
import pytest
import tensorflow_federated as tff

from tff_fedmpq.simulation.samplers import ClientSampler

IDS = [f"c{i}" for i in range(8)]
WEIGHTS = [0, 1, 1, 2, 4, 8, 8, 8]


def counts(sampler, rounds, k):
    drawn = collections.Counter(
        c for r in range(rounds) for c in sampler.draw(r + 1, k)
    )
    return np.array([drawn[client_id] for client_id in sampler.client_ids])


SAMPLERS = {
    "uniform": ClientSampler(IDS, seed=3),
    "budget": ClientSampler.by_budget(dict(zip(IDS, WEIGHTS)), seed=3),
    "failing": ClientSampler(IDS, seed=3, dropout=0.4),
    "diurnal": ClientSampler(IDS, seed=3, rounds_per_day=6),
    "all": ClientSampler.by_data_size(
        dict(zip(IDS, WEIGHTS)), seed=3, dropout=0.4, rounds_per_day=6
    ),
}


def test_uniform_rounds_are_those_of_a_generator_per_round():
    """As in `run_experiment`, whose results were made with these draws."""
    sampler = ClientSampler(range(10), seed=7)
    for number in (1, 2, 30):
        rng = np.random.default_rng([7, number])
        expected = sorted(rng.choice(10, 4, replace=False))
        assert sampler.draw(number, 4) == [str(client) for client in expected]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_round_has_different_known_clients_in_order(name):
    rounds = [SAMPLERS[name].draw(number, 3) for number in range(1, 60)]
    for drawn in rounds:
        assert len(drawn) <= 3
        assert drawn == sorted(set(drawn)) and set(drawn) <= set(IDS)
    assert len(set(map(tuple, rounds))) > 10


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_goes_on_from_its_bytes(name):
    whole = SAMPLERS[name].iterator()
    expected = [whole.select(4) for _ in range(12)]
    halted = SAMPLERS[name].iterator()
    first = [halted.select(4) for _ in range(5)]
    again = ClientSampler.from_bytes(halted.to_bytes())
    assert again == halted
    assert first + [again.select(4) for _ in range(7)] == expected
    # An iterator of its own leaves the source where it was.
    assert SAMPLERS[name].round_number == 1


def test_tffs_state_managers_save_samplers(tmp_path):
    manager = tff.program.FileProgramStateManager(str(tmp_path))
    sampler = SAMPLERS["all"].iterator()
    sampler.select(4)

    async def save_and_load():
        await manager.save({"sampler": sampler, "round": 1}, 1)
        like = {"sampler": SAMPLERS["all"], "round": 0}
        return (await manager.load_latest(like))[0]

    assert asyncio.run(save_and_load())["sampler"] == sampler


def test_other_seeds_and_rounds_draw_others():
    draws = {
        tuple(ClientSampler(range(100), seed).draw(number, 10))
        for seed in (0, 1, 2**40)
        for number in (1, 2, 3)
    }
    assert len(draws) == 9


def test_clients_are_drawn_by_weight():
    drawn = counts(ClientSampler.by_budget(dict(zip(IDS, WEIGHTS))), 8_000, 1)
    assert drawn[0] == 0
    # Six standard deviations.
    p = np.array(WEIGHTS) / sum(WEIGHTS)
    bound = 6 * np.sqrt(8_000 * p * (1 - p))
    assert (np.abs(drawn - 8_000 * p) <= bound).all()
    by_size = ClientSampler.by_data_size(dict(zip(IDS, WEIGHTS)))
    assert by_size == ClientSampler(IDS, weights=WEIGHTS)
    # There are seven to be had.
    assert len(by_size.draw(1, 8)) == 7


def test_chosen_clients_fail_on_their_own():
    drawn = counts(ClientSampler(IDS, dropout=0.25), 4_000, 8)
    bound = 6 * np.sqrt(4_000 * 0.25 * 0.75)
    assert (np.abs(drawn - 3_000) < bound).all()
    # The rest of a round is that of the same sampler without failures.
    for number in range(1, 20):
        without = ClientSampler(IDS, seed=5).draw(number, 5)
        assert set(ClientSampler(IDS, 5, dropout=0.5).draw(number, 5)) <= set(without)


def test_clients_are_available_by_the_time_of_their_day():
    sampler = ClientSampler(IDS[:4], rounds_per_day=4)
    days = 1_500
    hours = np.zeros([4, 4])
    for number in range(1, 4 * days + 1):
        for client in sampler.draw(number, 4):
            hours[number % 4, int(client[1])] += 1
    # Each has its noon a quarter of a day after the one before.
    expected = [[1, 0.5, 0, 0.5], [0.5, 1, 0.5, 0], [0, 0.5, 1, 0.5], [0.5, 0, 0.5, 1]]
    np.testing.assert_allclose(hours / days, expected, atol=6 * 0.5 / np.sqrt(days))


def test_a_round_may_have_nobody():
    alone = ClientSampler(["a"], rounds_per_day=2, round_number=1)
    assert [alone.select() for _ in range(4)] == [[], ["a"], [], ["a"]]
    assert ClientSampler(["a"], weights=[0]).select(3) == []


def test_a_selection_of_all_is_that_of_none_named():
    assert ClientSampler([7, 3]).select() == ["7", "3"]
    assert ClientSampler([7, 3]).federated_type == tff.FederatedType(
        np.str_, tff.CLIENTS
    )


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"client_ids": []}, ValueError, "client_ids is empty"),
        ({"client_ids": "abc"}, TypeError, "have to be a list"),
        ({"client_ids": ["a", "a"]}, ValueError, "given twice"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": None}, TypeError, "seed"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"weights": [1]}, ValueError, "expected 8 finite numbers"),
        ({"weights": 7 * [1] + [-1]}, ValueError, "expected 8 finite numbers"),
        ({"weights": 7 * [1] + [np.nan]}, ValueError, "expected 8 finite numbers"),
        ({"dropout": 1}, ValueError, "dropout has to be from 0"),
        ({"dropout": -0.1}, ValueError, "dropout has to be from 0"),
        ({"rounds_per_day": 0}, ValueError, "rounds_per_day has to be"),
        ({"rounds_per_day": 1.5}, ValueError, "rounds_per_day has to be"),
        ({"round_number": 0}, ValueError, "round_number has to be"),
    ],
)
def test_wrong_settings_are_one_sentence(settings, kind, text):
    with pytest.raises(kind, match=text) as error:
        ClientSampler(**{"client_ids": IDS, **settings})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("k", [0, -1, 2.5])
def test_a_round_is_of_at_least_one(k):
    with pytest.raises(ValueError, match="k has to be a whole number"):
        ClientSampler(IDS).select(k)
