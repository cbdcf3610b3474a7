"""`cswin profile` against the authors' counts and against the network that MindSpore builds."""

import subprocess
import sys

import numpy as np
import pytest

from cswin.cli import main
from cswin.errors import UserError
from cswin.model.variants import Architecture, variant
from cswin.model.weights import Layout
from cswin.profile import profile

# Parameters and forward MACs at 1000 classes, from hooks on the authors' PyTorch modules.
TABLE = {
    "cswin_64_12211_tiny_224": (22_320_552, 4_324_203_008),
    "cswin_64_24322_small_224": (34_643_304, 6_800_714_752),
    "cswin_64_24322_small_224_report": (34_643_304, 6_845_672_448),
    "cswin_96_24322_base_224": (77_382_184, 14_955_348_480),
    "cswin_96_24322_base_384": (77_382_184, 46_963_660_800),
    "cswin_144_24322_large_224": (173_262_664, 33_130_144_512),
    "cswin_144_24322_large_384": (173_262_664, 101_881_930_752),
}


@pytest.mark.parametrize("name", TABLE)
def test_totals_to_the_unit(name):
    parts = profile(variant(name))
    assert (sum(p.parameters for p in parts), sum(p.macs for p in parts)) == TABLE[name]


@pytest.mark.parametrize("stripes", [(1, 2, 2, 1), (2, 4, 1, 1)])
def test_parameters_of_each_part_are_the_networks(stripes):
    arch = Architecture(24, (1, 2, 1, 2), stripes, (2, 2, 4, 4), 64, 2, 11, 3.0)
    sizes = dict.fromkeys((p.name for p in profile(arch)), 0)
    for name, shape in Layout.of(arch).shapes.items():
        layer = name.split(".")[0]
        stem = {"stage1_conv_embed": "stem", "norm": "head"}.get(layer, layer)
        sizes[stem if stem in sizes else f"{stem[:-1]} {stem[-1]}"] += int(np.prod(shape))
    assert sizes == {p.name: p.parameters for p in profile(arch)}


def test_one_block_by_hand():
    """Stage 1 of an 8-channel network with 64 tokens, stripes of 16 and 2 heads: everything counted on paper."""
    stage = profile(Architecture(8, (1, 1, 1, 1), (2, 2, 2, 1), (2, 2, 2, 2), image_size=32))[1]
    assert stage.name == "stage 1"
    linear = 64 * (8 * 24 + 8 * 8 + 2 * 8 * 32)
    lepe, products = 64 * 8 * 9, 2 * 64 * 16 * 8
    assert stage.macs == linear + lepe + products
    per_token = 2 * 8 + 3 * 8 + 3 * 8 + 32 + 32 + 2 * 16  # norm inputs; linear inputs; q, k, v; GELU, fc2; probabilities
    assert stage.activations == 64 * per_token * 4


def test_reduced_formats_keep_less():
    arch = variant("cswin_64_12211_tiny_224")
    totals = [sum(p.activations for p in profile(arch, level)) for level in ("O0", "O1", "O2")]
    assert totals[0] > totals[1] > totals[2] > totals[0] / 2
    with pytest.raises(UserError, match="amp_level: '1' is not known"):
        profile(arch, "1")


def test_recomputed_stages_keep_the_inputs_of_their_blocks():
    arch = variant("cswin_64_24322_small_224")
    kept, recomputed = (profile(arch, "O1", stages) for stages in ((), (3,)))
    [(before, after)] = [(a, b) for a, b in zip(kept, recomputed, strict=True) if a != b]
    assert before.name == "stage 3" and after.macs == before.macs
    assert after.activations == before.activations // 32 + 31 * 14 * 14 * 256 * 4


def test_command_prints_totals_and_memory(capsys):
    assert main(["profile", "cswin_64_12211_tiny_224", "--batch", "8"]) == 0
    text = capsys.readouterr().out
    assert "22,320,552" in text
    assert "4,324,203,008" in text
    weights = 22_320_552 * 4 / 2**20
    assert f"{weights:,.1f} MiB" in text
    assert f"{2 * weights:,.1f} MiB" in text


def test_command_takes_size_classes_and_channels(capsys):
    arguments = ["--image-size", "448", "--classes", "10", "--channels", "1"]
    assert main(["profile", "cswin_64_12211_tiny_224", *arguments]) == 0
    text = capsys.readouterr().out
    assert "image size 448, channels 1, classes 10" in text
    assert f"{22_320_552 - 990 * 513 - 2 * 49 * 64:,}" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing"], "arch: 'nothing' is not known"),
        (["cswin_64_12211_tiny_224", "--image-size", "256"], "split_size[2]"),
        (["cswin_64_12211_tiny_224", "--batch", "0"], "--batch: 0 must be positive"),
    ],
)
def test_command_refuses_in_one_line(arguments, message, capsys):
    assert main(["profile", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_mindspore_needed():
    code = "import sys, cswin.commands.profile; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
