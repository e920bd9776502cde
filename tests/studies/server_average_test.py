import collections
import json

import numpy as np
import tensorflow as tf

from studies import server_average

State = collections.namedtuple("State", "global_model_weights distributor")


def test_mean_state_is_the_mean_of_weights_statistics_and_bits():
    states = [
        State(
            [np.float32([value, 0])],
            {
                "bit_reductions": np.int32([[7]]),
                "mean_bit_widths": np.float32([value]),
                "round": number,
                "statistics": [np.float32([[2 * value]])],
            },
        )
        for number, value in enumerate([1.0, 3.0, 8.0])
    ]
    mean = server_average.mean_state(states)
    assert mean.global_model_weights[0].tolist() == [4, 0]
    assert mean.distributor["mean_bit_widths"].tolist() == [4]
    assert mean.distributor["statistics"][0].tolist() == [[8]]
    assert mean.distributor["round"] == 2
    assert mean.distributor["bit_reductions"].numpy().tolist() == [[0]]


def test_recalibration_takes_the_statistics_of_the_images():
    images = np.random.default_rng(0).normal(3, 2, [200, 5]).astype(np.float32)
    model = tf.keras.Sequential(
        [tf.keras.Input([5]), tf.keras.layers.BatchNormalization(momentum=0.9)]
    )
    server_average.recalibrate(model, images)
    (layer,) = model.layers
    np.testing.assert_allclose(layer.moving_mean, images.mean(0), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, images.var(0), rtol=1e-4)
    assert layer.momentum == 0.9


def test_page_has_the_mean_over_all_rounds_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(server_average, "RESULTS", tmp_path)
    for name, gain in (("as-sent", 0.0), ("mean-of-3", 0.02)):
        rounds = [
            {
                "test_accuracy": 0.1 * number + gain,
                "devices": {"2": {"accuracy": 0.05 * number + gain}},
            }
            for number in range(1, 7)
        ]
        path = tmp_path / f"scarce-{name}" / "seed0.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"rounds": rounds}))
    sent, averaged, difference = server_average._rows("scarce")
    assert sent["global model, %"] == "35.0 (1)"
    assert sent["2 bits"] == "17.5 (1)"
    assert averaged["global model, %"] == "37.0 (1)"
    assert difference["2 bits"] == "+2.0 (1)"
