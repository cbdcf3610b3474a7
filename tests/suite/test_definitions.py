"""What the suite measures, on invented logits, against formulas in plain NumPy."""

import numpy as np
import pytest

from cswin.class_names import imagenet_words
from cswin.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from cswin.data.loader.batches import EvalBatch
from cswin.data.loader.labelled import Labelled
from cswin.evaluate import judge
from cswin.model.variants import VARIANTS
from cswin.predictions import Predictions
from cswin.report.statistics import wilson
from cswin.suite.sets import class_indices, real_hits, real_labels
from cswin.suite.suite import judge_suite
from cswin.suite.table import csv_text, shown_text, suite_table

PREPROCESSING = Preprocessing(224, 0.9, IMAGENET_MEAN, IMAGENET_STD)
A, R = class_indices("a"), class_indices("r")


class Invented:
    """A network whose images are the numbers of the rows of its logits."""

    classes = 1000

    def __init__(self, logits):
        self.rows = logits

    def on_device(self, weights):
        return weights

    def logits(self, weights, images):
        return self.rows[images]


class Dataset:
    """n images with labels, and logits that are often right."""

    def __init__(self, seed, n, classes, names=None):
        rng = np.random.default_rng(seed)
        self.labels = rng.choice(classes, n)
        self.logits = rng.normal(size=(n, 1000)).astype(np.float32)
        self.logits[np.arange(n), self.labels] += rng.normal(3, 1.5, n).astype(np.float32)
        self.source = Labelled(None, n, outputs=frozenset(self.labels.tolist()), names=names and (lambda: names))

    def evaluate(self, views):
        rows = np.arange(len(self.labels))
        batches = [EvalBatch(part, self.labels[part], part) for part in np.array_split(rows, 7)]
        return judge(Invented(self.logits), {"raw": None}, batches, views)


def of_all(dataset):
    best = np.argsort(-dataset.logits, 1)[:, :5]
    return (best[:, 0] == dataset.labels).mean(), (best == dataset.labels[:, None]).any(1).mean()


def of_subset(dataset, subset):
    """As timm: `output[:, classes]`, and the label is the number of the class among them."""
    kept = np.isin(dataset.labels, subset)
    best = np.argsort(-dataset.logits[kept][:, subset], 1)[:, :5]
    number = {label: i for i, label in enumerate(subset.tolist())}
    targets = np.array([number[label] for label in dataset.labels[kept].tolist()])
    return (best[:, 0] == targets).mean(), (best == targets[:, None]).any(1).mean(), kept.sum()


def of_real(dataset, first):
    """Files `first`, `first` + 1, …; images without a label do not count."""
    right1, right5 = [], []
    for row, logits in enumerate(dataset.logits):
        labels = real_labels()[first + row]
        if labels:
            best = np.argsort(-logits)[:5].tolist()
            right1.append(best[0] in labels)
            right5.append(any(guess in labels for guess in best))
    return np.mean(right1), np.mean(right5), len(right1)


@pytest.fixture(scope="module")
def datasets():
    first = 1000  # the files are those from ILSVRC2012_val_00001001.JPEG on
    names = {i: f"ILSVRC2012_val_{first + i + 1:08d}.JPEG" for i in range(2000)}
    found = {"validation": Dataset(0, 2000, np.arange(1000), names), "imagenet_v2": Dataset(1, 500, np.arange(1000))}
    found |= {"imagenet_a": Dataset(2, 300, A), "imagenet_r": Dataset(3, 400, R), "sketch": Dataset(4, 600, np.arange(1000))}
    labels = found["validation"].labels  # nearly those of the annotators, as in truth
    for i in range(2000):
        if real_labels()[first + i] and i % 5:
            labels[i] = min(real_labels()[first + i])
            found["validation"].logits[i, labels[i]] += 3
    return found


@pytest.fixture(scope="module")
def table(datasets):
    evaluators = {id(dataset.source): dataset.evaluate for dataset in datasets.values()}
    sources = {key: dataset.source for key, dataset in datasets.items()}
    scores = judge_suite(sources, lambda source, views: evaluators[id(source)](views), "raw")
    return suite_table(scores, VARIANTS["cswin_64_12211_tiny_224"], PREPROCESSING, "a file", "raw").set_index("set")


def test_every_set_by_its_formula(datasets, table):
    expected = {
        "imagenet": (*of_all(datasets["validation"]), 2000),
        "imagenet-real": of_real(datasets["validation"], 1000),
        "imagenet-a-clean": of_subset(datasets["validation"], A),
        "imagenet-r-clean": of_subset(datasets["validation"], R),
        "imagenetv2-matched-frequency": (*of_all(datasets["imagenet_v2"]), 500),
        "imagenet-a": of_subset(datasets["imagenet_a"], A),
        "imagenet-r": of_subset(datasets["imagenet_r"], R),
        "sketch": (*of_all(datasets["sketch"]), 600),
    }
    assert list(table.index) == list(expected)
    for name, (top1, top5, n) in expected.items():
        row = table.loc[name]
        assert 0.1 < top1 < top5 < 1
        assert (row.top1, row.top5, row.n) == (pytest.approx(100 * top1), pytest.approx(100 * top5), n), name
        assert (row.top1_err, row.top5_err) == (pytest.approx(100 - 100 * top1), pytest.approx(100 - 100 * top5))
        assert (row.right1, row.right5) == (round(top1 * n), round(top5 * n))
        assert (row.top1_low, row.top1_high) == wilson(row.right1, n) and (row.top5_low, row.top5_high) == wilson(row.right5, n)


def test_only_the_classes_of_a_subset_compete(datasets, table):
    """Otherwise the figure would be lower."""
    dataset = datasets["imagenet_a"]
    assert table.loc["imagenet-a"].top1 > 100 * of_all(dataset)[0]


def test_differences_are_those_of_timm_s_files(table):
    bases = {"imagenet-real": "imagenet", "imagenetv2-matched-frequency": "imagenet", "sketch": "imagenet"}
    bases |= {"imagenet-a": "imagenet-a-clean", "imagenet-r": "imagenet-r-clean"}
    for name, row in table.iterrows():
        for k in ("top1", "top5"):
            if name in bases:
                assert row[f"{k}_diff"] == pytest.approx(row[k] - table.loc[bases[name]][k])
            else:
                assert np.isnan(row[f"{k}_diff"])


def test_columns_and_text(table):
    lines = csv_text(table.reset_index()).splitlines()
    assert lines[0].startswith(
        "set,model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation,top1_diff,top5_diff"
    )
    row = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert (row["model"], row["img_size"]) == ("cswin_64_12211_tiny_224", "224")
    assert (row["crop_pct"], row["interpolation"], row["top1_diff"], row["weights"]) == ("0.900", "bicubic", "", "raw")
    assert (row["published_top1"], row["published_top5"]) == ("82.810", "96.280")
    assert row["top1"] == f"{table.top1.iloc[0]:.3f}" and row["n"] == "2000"
    assert 22 < float(row["param_count"]) < 24  # the paper: 23 million
    assert dict(zip(lines[0].split(","), lines[2].split(","), strict=True))["published_top1"] == ""
    shown = shown_text(table.reset_index())
    assert "nan" not in shown and "82.81" in shown and "imagenet-a-clean" in shown


def test_a_base_that_is_not_there_leaves_the_difference_empty(datasets):
    scores = judge_suite({"sketch": datasets["sketch"].source}, lambda source, views: datasets["sketch"].evaluate(views), "raw")
    table = suite_table(scores, VARIANTS["cswin_64_12211_tiny_224"].replace(depth=(1, 2, 2, 1)), PREPROCESSING, "mine", "raw")
    assert list(table.set) == ["sketch"] and table.top1_diff.isna().all() and list(table.model) == ["mine"]


def test_no_image_has_a_label_of_real():
    none = Predictions(np.zeros(2, np.int32), np.zeros((2, 5), np.int32), np.zeros(2), np.arange(2))
    assert [len(hits) for hits in real_hits(none, [frozenset(), frozenset()])] == [0, 0]


def test_what_ships_with_the_package():
    words = list(imagenet_words().values())
    assert len(A) == len(R) == 200 and len(set(A) | set(R)) < 400
    assert words[A[0]].startswith("stingray") and words[R[0]].startswith("goldfish")
    labels = real_labels()
    assert len(labels) == 50_000 and sum(not found for found in labels) == 3163
    assert labels[1] == {970, 795} and max(max(found, default=0) for found in labels) == 999
