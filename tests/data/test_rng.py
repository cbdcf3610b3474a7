"""The random streams: equal to Philox as published, disjoint, uniform, and frozen."""

import itertools
import pickle

import numpy as np
import pytest
from scipy import stats

from cswin.data.loader.rng import Stream, batch_rng, drop_path_rng, holdout_rng, init_rng, order_rng, sample_rng
from cswin.errors import UserError

MASK = (1 << 64) - 1
GOLDEN_DRAWS = [
    0.430234485,
    0.198998173,
    1.540325863,
    -0.563799134,
    -0.868986487,
    -1.044742107,
    0.367737896,
    0.225226799,
    2.430762762,
    2.765921168,
    8.294783068,
]
GOLDEN_INTEGERS = [417, 699, 577, 412, 137]
GOLDEN_ORDER = [3, 4, 8, 0, 9, 6, 7, 1, 2, 5]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as in Salmon et al. 2011, section 3.3."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(p1 >> 64) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 64) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


STREAMS = [
    (sample_rng(7, 3, 11), Stream.SAMPLE, (0, 11, 3)),
    (batch_rng(7, 3, 11, 5), Stream.BATCH, (5, 11, 3)),
    (drop_path_rng(7, 3, 11), Stream.DROP_PATH, (0, 11, 3)),
    (order_rng(7, 3), Stream.ORDER, (0, 0, 3)),
    (init_rng(7), Stream.INIT, (0, 0, 0)),
    (holdout_rng(7), Stream.HOLDOUT, (0, 0, 0)),
]


@pytest.mark.parametrize(("generator", "stream", "place"), STREAMS, ids=lambda value: getattr(value, "name", None))
def test_stream_is_philox_at_its_coordinates(generator, stream, place):
    generator = pickle.loads(pickle.dumps(generator))
    expected = [word for block in (1, 2) for word in philox([block, *place], [7, int(stream)])]
    assert generator.bit_generator.random_raw(8).tolist() == expected


def test_stream_numbers_are_frozen():
    assert {stream.name: int(stream) for stream in Stream} == {
        "SAMPLE": 1,
        "BATCH": 2,
        "DROP_PATH": 3,
        "ORDER": 4,
        "INIT": 5,
        "HOLDOUT": 6,
    }


def test_no_two_streams_share_a_number():
    seeds, epochs, indices = (0, 1, 2), (0, 1, 5), (0, 1, 2, 3, 1000)
    streams = [sample_rng(s, e, i) for s, e, i in itertools.product(seeds, epochs, indices)]
    streams += [batch_rng(s, e, i, g) for s, e, i, g in itertools.product(seeds, epochs, indices, (0, 1, 2))]
    streams += [drop_path_rng(s, e, i) for s, e, i in itertools.product(seeds, epochs, indices)]
    streams += [order_rng(s, e) for s, e in itertools.product(seeds, epochs)]
    streams += [make(s) for make, s in itertools.product((init_rng, holdout_rng), seeds)]
    words = np.concatenate([stream.bit_generator.random_raw(64) for stream in streams])
    assert len(np.unique(words)) == 64 * len(streams)


def test_first_numbers_are_uniform_and_uncorrelated_over_neighbours():
    first = np.array([sample_rng(1, 2, index).random() for index in range(20_000)])
    by_epoch = np.array([sample_rng(1, epoch, 3).random() for epoch in range(20_000)])
    other_seed = np.array([sample_rng(2, 2, index).random() for index in range(20_000)])
    for values in (first, by_epoch, other_seed):
        assert stats.kstest(values, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / np.sqrt(len(values))
    assert abs(np.corrcoef(first, other_seed)[0, 1]) < 4 / np.sqrt(len(first))


def test_numbers_do_not_change_with_numpy():
    """A NumPy that draws differently would change every training run: it must not pass unnoticed."""
    rng = sample_rng(42, 5, 123)
    drawn = [
        *rng.random(2),
        *rng.standard_normal(2),
        *rng.standard_normal(2, dtype=np.float32),
        *rng.beta(0.8, 0.8, 2),
        *rng.uniform(2, 3, 2),
        rng.normal(9, 0.5),
    ]
    np.testing.assert_allclose(drawn, GOLDEN_DRAWS, rtol=1e-6)
    assert rng.integers(0, 1000, 5).tolist() == GOLDEN_INTEGERS
    assert order_rng(42, 5).permutation(10).tolist() == GOLDEN_ORDER


@pytest.mark.parametrize(("arguments", "name"), [((-1, 0, 0), "seed"), ((0, 1 << 64, 0), "epoch"), ((0, 0, -5), "index")])
def test_coordinates_out_of_range_are_refused(arguments, name):
    with pytest.raises(UserError, match=name):
        sample_rng(*arguments)
