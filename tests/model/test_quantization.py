import numpy as np

from ddcap.model.quantization import SCALE, in_float32, quantise_state


def test_quantised_weights_survive_the_round_trip():
    generator = np.random.default_rng(0)
    state = {
        "large": generator.standard_normal((300, 256)).astype(np.float32) * generator.random((300, 1)) * 9,
        "bias": generator.standard_normal(256).astype(np.float32),
        "small": generator.standard_normal((4, 5, 6)).astype(np.float32),
        "numbers": np.arange(10),
    }
    state["large"][7] = 0
    state["large"] = state["large"].astype(np.float32)
    stored = quantise_state(state)
    assert stored["large"].dtype == np.int8 and stored["large#scale"].shape == (300,)
    again = {name: in_float32(stored[name], stored.get(name + SCALE)) for name in state}
    step = np.abs(state["large"]).max(axis=1, keepdims=True) / 127
    assert (np.abs(again["large"] - state["large"]) <= step / 2 + 1e-7).all()
    assert np.array_equal(again["bias"], state["bias"]) and np.array_equal(again["numbers"], state["numbers"])
    np.testing.assert_allclose(again["small"], state["small"], rtol=1e-3)
    twice = quantise_state(again)
    assert np.array_equal(twice["large"], stored["large"])
