"""Parts of the network against float64 formulas, in both formulations; drop path; number formats."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from networks import cut, initialised
from scipy import special, stats

from cswin.errors import UserError
from cswin.model import cpu
from cswin.model.attention import ConvolutionLePE
from cswin.model.cswin import CSWin
from cswin.model.drop_path import drop_path_factors, drop_path_rates
from cswin.model.formulation import choose_formulation
from cswin.model.layers import Gelu, LayerNorm, Linear
from cswin.model.precision import precision
from cswin.model.stripes import RowLayout, Stripes, TransposeLayout, branches
from cswin.model.variants import Architecture
from cswin.model.weights import initial_weights

FORMULATIONS = ("CPU", "Ascend")
ARCH = Architecture(8, (1, 1, 1, 1), (2, 2, 2, 1), (2, 2, 4, 4), image_size=32, num_classes=4)


def gradients(function, inputs, sensitivity):
    """Gradients of sum(function(inputs) * sensitivity), as NumPy arrays."""

    def total(*inputs):
        return (function(*inputs) * sensitivity).sum()

    found = ms.grad(total, tuple(range(len(inputs))))(*inputs)
    return [g.asnumpy() for g in (found if isinstance(found, tuple) else (found,))]


def close(found, wanted, tolerance=2e-6):
    return np.abs(found - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gelu_is_exact(formulation):
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0]])
    phi, density = special.ndtr(x), stats.norm.pdf(x)
    gelu, values = Gelu(formulation), Tensor(x.astype(np.float32))
    assert np.abs(gelu(values).asnumpy() - x * phi).max() < 1e-6
    (slope,) = gradients(gelu, (values,), Tensor(np.ones(x.shape, np.float32)))
    assert np.abs(slope - (phi + x * density)).max() < 5e-6


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_layer_norm_and_its_gradients(formulation):
    """Rows far from zero, a row of small deviation (where epsilon counts): float64 formulas."""
    rng = np.random.default_rng(0)
    x = rng.normal(5, 2, (2, 7, 24)).astype(np.float32)
    x[0, 0] = 1 + 1e-3 * rng.standard_normal(24)
    w, b, dy = (rng.normal(1, 0.5, shape).astype(np.float32) for shape in (24, 24, x.shape))
    layer = LayerNorm(24, formulation)

    x64, dy64 = x.astype(np.float64), dy.astype(np.float64)
    scale = 1 / np.sqrt(x64.var(-1, keepdims=True) + 1e-5)
    normal = (x64 - x64.mean(-1, keepdims=True)) * scale
    g = dy64 * w
    dx = (g - g.mean(-1, keepdims=True) - normal * (g * normal).mean(-1, keepdims=True)) * scale
    y = layer(Tensor(x), Tensor(w), Tensor(b)).asnumpy()
    assert close(y[1], (normal * w + b)[1], 1e-5)
    assert close(y[0], (normal * w + b)[0], 1e-4)  # the almost constant row: its deviation has 4 digits in float32

    found_x, found_w, found_b = gradients(layer, (Tensor(x), Tensor(w), Tensor(b)), Tensor(dy))
    assert close(found_x[1], dx[1], 1e-5)
    assert close(found_x[0], dx[0], 1e-4)
    assert close(found_w, (dy64 * normal).sum((0, 1)), 1e-5)
    assert close(found_b, dy64.sum((0, 1)), 1e-5)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("sizes", [(6, 18), (18, 6), (6, 6)])
def test_linear_and_its_gradients(sizes, formulation):
    rng = np.random.default_rng(1)
    inputs, outputs = sizes
    x, w, b, dy = (rng.standard_normal(s).astype(np.float32) for s in ((3, 5, inputs), sizes[::-1], outputs, (3, 5, outputs)))
    layer = Linear(inputs, outputs, ms.float32, formulation)
    arguments = (Tensor(x), Tensor(w.ravel()), Tensor(b))
    assert close(layer(*arguments).asnumpy(), np.einsum("bli,oi->blo", x, w) + b)
    found_x, found_w, found_b = gradients(layer, arguments, Tensor(dy))
    assert close(found_x, np.einsum("blo,oi->bli", dy, w))
    assert close(found_w, np.einsum("blo,bli->oi", dy, x).ravel())
    assert close(found_b, dy.sum((0, 1)))


def lepe_by_hand(v, weight, bias, cut, heads):
    """Depthwise 3x3 convolution of each stripe alone, its border padded with zeros; float64 loops over the taps."""
    windows, tokens, head_dim = v.shape
    image = v.reshape(-1, heads, cut.height, cut.width, head_dim).astype(np.float64)
    kernel = weight.reshape(heads, head_dim, 3, 3)
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    total = np.broadcast_to(bias.reshape(1, heads, 1, 1, head_dim), image.shape).copy()
    for dy in range(3):
        for dx in range(3):
            part = padded[:, :, dy : dy + cut.height, dx : dx + cut.width]
            total += part * kernel[:, :, dy, dx].reshape(1, heads, 1, 1, head_dim)
    return total.reshape(windows, tokens, head_dim)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("cut", [Stripes(6, 6, 1), Stripes(6, 2, 6), Stripes(4, 4, 2), Stripes(3, 3, 3)])
def test_lepe_pads_inside_each_stripe(cut, formulation):
    rng = np.random.default_rng(2)
    heads, head_dim = 2, 3
    v = rng.standard_normal((2 * cut.count * heads, cut.tokens, head_dim)).astype(np.float32)
    weight = rng.standard_normal((heads * head_dim, 1, 3, 3)).astype(np.float32)
    bias = rng.standard_normal(heads * head_dim).astype(np.float32)
    cell = cpu.LePE(cut.width) if formulation == "CPU" else ConvolutionLePE(cut, heads, head_dim)
    wanted = lepe_by_hand(v, weight, bias, cut, heads)
    assert close(cell(Tensor(v), Tensor(weight.ravel()), Tensor(bias)).asnumpy(), wanted)
    assert not close(wanted, lepe_by_hand(v, weight, bias, Stripes(cut.side, cut.width, cut.height), heads)) or (
        cut.width == cut.height
    )


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_stripe_sees_no_other_stripe(formulation):
    """Change one token: in a block without the horizontal branch's heads, only its own vertical stripe may change."""
    network, rng = CSWin(ARCH, formulation=formulation), np.random.default_rng(4)
    weights = initial_weights(ARCH, np.random.default_rng(3))
    for branch in range(2):
        name = f"stage1.0.attns.{branch}.get_v.weight"
        weights[name] = rng.standard_normal(weights[name].shape).astype(np.float32)
    weights["stage1.0.proj.weight"] = np.eye(8, dtype=np.float32)
    parts, pieces, block = cut(network, weights), len(network.layout.pieces), network.blocks[0]
    m, v = block.take(parts[1], parts[pieces + 1])
    x = rng.standard_normal((1, 64, 8)).astype(np.float32)
    changed = x.copy()
    changed[0, 8 * 3 + 3] += rng.standard_normal(8)  # row 3, column 3
    before, after = (block.attend(Tensor(a), m, v).asnumpy().reshape(8, 8, 8) for a in (x, changed))
    vertical, horizontal = (np.abs(after - before).max(-1) for before, after in
                            ((before[..., :4], after[..., :4]), (before[..., 4:], after[..., 4:])))  # fmt: skip
    columns, rows = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    columns[:, 2:4] = rows[2:4, :] = True  # stripes of width 2
    assert (vertical[columns] > 0).all() and (vertical[~columns] == 0).all()
    assert (horizontal[rows] > 0).all() and (horizontal[~rows] == 0).all()


@pytest.mark.slow
def test_recomputed_blocks_have_the_same_bits():
    rng = np.random.default_rng(6)
    images, sensitivity = (Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in ((2, 3, 32, 32), (2, 4)))

    def gradient(stages):
        network = CSWin(ARCH, formulation="Ascend", recompute=stages)
        weights = cut(network, initial_weights(ARCH, np.random.default_rng(3)))

        def total(*weights):
            return (network(images, weights) * sensitivity).sum()

        return [g.asnumpy() for g in ms.jit(ms.grad(total, tuple(range(len(weights)))))(*weights)]

    kept, recomputed = gradient(()), gradient((1, 2, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(kept, recomputed, strict=True)) and np.abs(kept[0]).max() > 0


@pytest.mark.parametrize("stage", [0, 3])
def test_both_layouts_are_the_same_permutation(stage):
    """Two branches and one: qkv to windows, windows to tokens, and their gradients."""
    cuts, dim, heads, rng = branches(ARCH, stage), ARCH.dims[stage], ARCH.num_heads[stage], np.random.default_rng(5)
    area = ARCH.resolutions[stage] ** 2
    qkv = Tensor(rng.standard_normal((3, area, 3 * dim)).astype(np.float32))
    layouts = [layout(cuts, dim, heads) for layout in (RowLayout, TransposeLayout)]
    windows = [layout.split(qkv) for layout in layouts]
    for branch, other in zip(*windows, strict=True):
        for ours, theirs in zip(branch, other, strict=True):
            assert np.array_equal(ours.asnumpy(), theirs.asnumpy())
    for part in range(3):
        inner = tuple(branch[part] for branch in windows[0])
        for layout in layouts:
            tokens = layout.join(inner).asnumpy()
            assert np.array_equal(tokens, qkv.asnumpy()[:, :, part * dim : (part + 1) * dim])
    sensitivity = Tensor(rng.standard_normal((3, area, dim)).astype(np.float32))
    found = []
    for layout in layouts:

        def mixed(qkv, layout=layout):
            return layout.join(tuple(q * k + v for q, k, v in layout.split(qkv)))

        found.append(gradients(mixed, (qkv,), sensitivity)[0])
    assert np.array_equal(*found)


def test_taken_rows_must_be_all_rows():
    """A set of rows and its gradient: taking and putting back is the identity, forwards and backwards."""
    order = np.random.default_rng(6).permutation(10)
    sets = (order[:4], order[4:])
    take, put = cpu.TakeRows(sets, (2, 3), 3), cpu.PutRows(sets, (2, 3), 3, 10)
    x = Tensor(np.random.default_rng(7).standard_normal((2, 10, 3)).astype(np.float32))
    first, second = take(x)
    assert np.array_equal(first.asnumpy(), x.asnumpy()[:, order[:4]].reshape(-1, 2, 3))
    assert np.array_equal(second.asnumpy(), x.asnumpy()[:, order[4:]].reshape(-1, 3, 3))
    assert np.array_equal(put((first, second)).asnumpy(), x.asnumpy())
    sensitivity = Tensor(np.random.default_rng(8).standard_normal((2, 10, 3)).astype(np.float32))
    (back,) = gradients(lambda x: put(take(x)), (x,), sensitivity)
    assert np.array_equal(back, sensitivity.asnumpy())


def test_formulation_names():
    assert choose_formulation(None) == "CPU"
    assert [choose_formulation(name) for name in FORMULATIONS] == list(FORMULATIONS)
    with pytest.raises(UserError, match="formulation: 'gpu' is not known; one of CPU, Ascend"):
        CSWin(ARCH, formulation="gpu")


def test_drop_path_rates_are_linear_over_the_blocks():
    assert np.allclose(drop_path_rates(0.3, (1, 2, 3, 1)), [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
    assert drop_path_rates(0.3, (1, 1, 1, 1)).dtype == np.float64


def test_drop_path_rate_and_scaling():
    """200,000 draws per branch: values 0 and 1 / (1 - rate) only, the right share of zeros, mean 1, independent branches."""
    rates, draws = drop_path_rates(0.4, (1, 1, 2, 1)), 200_000
    factors = drop_path_factors(rates, draws, np.random.default_rng(9))
    assert factors.shape == (10, draws) and factors.dtype == np.float32
    for row, rate in zip(factors, np.repeat(rates, 2), strict=True):
        assert set(np.unique(row)) <= {np.float32(0), np.float32(1 / (1 - rate))}
        assert stats.binomtest(int((row == 0).sum()), draws, rate).pvalue > 1e-4
    assert (factors[:2] == 1).all()  # the first block is never dropped
    correlation = np.corrcoef(factors[2:])[~np.eye(8, dtype=bool)]
    assert np.abs(correlation).max() < 5 / np.sqrt(draws)
    again = drop_path_factors(rates, draws, np.random.default_rng(9))
    assert np.array_equal(factors, again)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_factors_scale_each_branch_of_each_sample(formulation):
    """Factor 0 leaves the residual stream alone, other factors scale the branch, sample by sample; none in evaluation."""
    network, weights = initialised(ARCH, 3, None, formulation)
    block, rng = network.blocks[0], np.random.default_rng(10)
    own = (weights[1], weights[len(network.layout.pieces) + 1])
    m, v = block.take(*own)
    x = Tensor(rng.standard_normal((3, 64, 8)).astype(np.float32))
    attention, mlp = np.array([0, 1, 2.5], np.float32), np.array([0, 4, 0], np.float32)
    found = block(x, *own, Tensor(attention.reshape(3, 1, 1)), Tensor(mlp.reshape(3, 1, 1))).asnumpy()
    middle = x + block.attend(block.norm(x, v[1], v[2]), m, v) * Tensor(attention.reshape(3, 1, 1))
    hidden = block.gelu(block.fc1(block.norm(middle, v[8], v[9]), m[4], v[6]))
    wanted = middle + block.fc2(hidden, m[5], v[7]) * Tensor(mlp.reshape(3, 1, 1))
    assert np.array_equal(found[0], x.asnumpy()[0])
    assert close(found, wanted.asnumpy())
    images = Tensor(rng.standard_normal((2, 3, 32, 32)).astype(np.float32))
    factors = np.zeros((8, 2), np.float32)
    dropped = network.features(images, weights, Tensor(factors))
    assert np.array_equal(dropped[0].asnumpy(), dropped[1].asnumpy())
    assert close(network(images, weights).asnumpy(), network(images, weights, Tensor(factors + 1)).asnumpy())


def trained_once(level, formulation, images, target, factors):
    """Loss (times 64, a loss scale) and all gradients; compiled, as training is."""
    network, weights = initialised(ARCH, 12, precision(level), formulation)

    def loss(images, *weights):
        return -(target * ops.log_softmax(network(images, weights, factors), -1)).sum() * 64.0

    value, grads = ms.jit(ms.value_and_grad(loss, tuple(range(1, 1 + len(weights)))))(images, *weights)
    assert all(g.dtype == ms.float32 for g in grads)
    return float(value), np.concatenate([g.asnumpy().ravel() for g in grads]).astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_low_precision_training_stays_near_float32(formulation):
    """Forward and backward in float16 on the CPU against O0."""
    rng = np.random.default_rng(11)
    images = Tensor(rng.standard_normal((3, 3, 32, 32)).astype(np.float32))
    target = Tensor(rng.dirichlet(np.ones(4), 3).astype(np.float32))
    factors = Tensor(drop_path_factors(drop_path_rates(0.3, ARCH.depth), 3, rng))
    exact, wanted = trained_once("O0", formulation, images, target, factors)
    for level, tolerance in (("O1", 1e-2), ("O2", 3e-2)):
        value, found = trained_once(level, formulation, images, target, factors)
        assert 0 < abs(value - exact) < tolerance * abs(exact)
        assert 0 < np.linalg.norm(found - wanted) < tolerance * np.linalg.norm(wanted)
