"""The named architectures: sizes to the unit, and refusals that say what is wrong."""

import dataclasses
import json

import mindspore as ms
import numpy as np
import pytest
from networks import initialised

from cswin.errors import UserError
from cswin.model.variants import VARIANTS, Architecture, variant
from cswin.model.weights import GROUPS, Layout

# Parameters of the authors' models, counted in their PyTorch code.
PARAMETERS = {
    "cswin_64_12211_tiny_224": 22_320_552,
    "cswin_64_24322_small_224": 34_643_304,
    "cswin_64_24322_small_224_report": 34_643_304,
    "cswin_96_24322_base_224": 77_382_184,
    "cswin_144_24322_large_224": 173_262_664,
}
SMALL = Architecture(16, (1, 1, 1, 1), (1, 2, 2, 1), (2, 2, 4, 4), image_size=32, num_classes=5)


@pytest.mark.parametrize("name", PARAMETERS)
def test_network_has_the_authors_number_of_parameters(name):
    layout = Layout.of(variant(name))
    assert sum(map(layout.size, GROUPS)) == PARAMETERS[name]


@pytest.mark.parametrize("size", ["base", "large"])
def test_384_pixels_change_the_stripes_alone(size):
    small, large = (next(a for n, a in VARIANTS.items() if n.endswith(f"{size}_{px}")) for px in (224, 384))
    assert large == small.replace(image_size=384, split_size=(1, 2, 12, 12))


@pytest.mark.parametrize("classes, channels, image_size", [(7, 1, 224), (1000, 4, 448), (1, 3, 672)])
def test_any_size_classes_and_channels(classes, channels, image_size):
    arch = variant("cswin_64_12211_tiny_224").replace(
        num_classes=classes, in_channels=channels, image_size=image_size, depth=(1, 1, 1, 1)
    )
    network, weights = initialised(arch, 0)
    assert network.layout.shapes["head.weight"] == (classes, 512)
    assert network.layout.shapes["stage1_conv_embed.0.weight"] == (64, channels, 7, 7)
    images = ms.Tensor(np.zeros((1, channels, image_size, image_size), np.float32))
    assert network(images, weights).shape == (1, classes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 230}, r"image_size: 230 is not divisible by 32.*224 and 256"),
        ({"image_size": 16}, "image_size: 16 is not divisible by 32"),
        (
            {"image_size": 256},
            r"split_size\[2\]: a stripe of width 7 does not divide the 16 x 16 tokens.*\[1, 2, 4, 8, 16\]",
        ),
        ({"num_heads": (2, 4, 8, 15)}, r"num_heads\[3\]: 15 heads do not divide the width 512 of stage 4"),
        ({"num_heads": (1, 4, 8, 16)}, r"num_heads\[0\]: 1 heads cannot be halved"),
        ({"embed_dim": 65}, r"num_heads\[0\]: 2 heads do not divide the width 65 of stage 1"),
        ({"split_size": (1, 2, 7)}, r"split_size: \(1, 2, 7\) must be four positive integers"),
        ({"depth": (1, 2, 0, 1)}, r"depth: \(1, 2, 0, 1\) must be four positive integers"),
        ({"depth": (1, 2, 2.5, 1)}, "depth: .* must be four positive integers"),
        ({"depth": 4}, "depth: 4 must be four positive integers"),
        ({"num_classes": 0}, "num_classes: 0 must be a positive integer"),
        ({"in_channels": "3"}, "in_channels: '3' must be a positive integer"),
        ({"embed_dim": True}, "embed_dim: True must be a positive integer"),
        ({"mlp_ratio": -1}, "mlp_ratio: -1 must be a positive number"),
    ],
)
def test_refused_with_the_reason(changes, message):
    with pytest.raises(UserError, match=message):
        variant("cswin_64_12211_tiny_224").replace(**changes)


def test_one_head_is_enough_for_a_full_window():
    arch = SMALL.replace(num_heads=(2, 2, 1, 1))
    assert [arch.full_window(stage) for stage in range(4)] == [False, False, True, True]


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"arch: 'cswin_small' is not known; one of: cswin_64_12211_tiny_224"):
        variant("cswin_small")
    with pytest.raises(UserError, match="unknown architecture key: width"):
        Architecture.from_dict(SMALL.to_dict() | {"width": 3})


@pytest.mark.parametrize("name", VARIANTS)
def test_record_survives_json(name):
    assert Architecture.from_dict(json.loads(json.dumps(VARIANTS[name].to_dict()))) == VARIANTS[name]


def test_stripes_tell_apart_what_shapes_cannot():
    paper, report = VARIANTS["cswin_64_24322_small_224"], VARIANTS["cswin_64_24322_small_224_report"]
    assert paper.differences(report) == ["split_size: [1, 2, 7, 7], not [2, 2, 7, 7]"]
    assert paper.differences(dataclasses.replace(paper)) == []
