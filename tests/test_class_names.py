"""Names of classes from files, and which class of the data is which output: against invented names, and by hand."""

import hashlib

import pytest

from cswin.class_names import imagenet_words, match_classes, numbers, read_class_names, words
from cswin.errors import UserError

PETS = ("cat", "dog", "eel")
WNIDS = tuple(imagenet_words())


def test_the_classes_of_imagenet():
    """Known at both ends, sorted as every framework has them, and known by the digest of the list of WNIDs."""
    assert len(WNIDS) == 1000 and list(WNIDS) == sorted(WNIDS)
    assert (WNIDS[0], WNIDS[999]) == ("n01440764", "n15075141")
    assert words("n01440764") == "tench, Tinca tinca" and words("n15075141") == "toilet tissue, toilet paper, bathroom tissue"
    assert WNIDS[134] == "n02012849" and WNIDS[517] == "n03126707" and words(WNIDS[134]) == words(WNIDS[517]) == "crane"
    assert words("cat") == "cat" and numbers(3) == ("0", "1", "2")


@pytest.mark.parametrize(
    ("found", "labels", "note"),
    [
        (PETS, [0, 1, 2], None),
        (("dog", "eel", "cat"), [1, 2, 0], "data: classes are matched by name"),
        (
            ("cat", "eel"),
            [0, 2],
            "data: classes are matched by name; the data have 2 of the checkpoint's 3 classes, all outputs compete",
        ),
    ],
)
def test_by_name(found, labels, note):
    assert match_classes(found, PETS, "data") == (dict(zip(found, labels, strict=True)), note)


def test_what_is_left_out_is_said():
    labels, note = match_classes(("ant", "cat", "dog", "eel", "fox"), PETS, "data")
    assert labels == {"cat": 0, "dog": 1, "eel": 2}
    assert note == "data: 2 of its 5 classes are not among the checkpoint's 3: their images are left out (ant, fox)"


@pytest.mark.parametrize("found", [("cat", "dgo", "eel"), ("ant",), ("0", "1", "2")])
def test_what_cannot_be_mapped_is_refused_with_the_names(found):
    with pytest.raises(
        UserError, match="data: holds classes that the checkpoint does not have: .*; it has cat, dog, eel"
    ) as error:
        match_classes(found, PETS, "data")
    assert all(name in str(error.value) for name in set(found) - set(PETS)) and "convert-weights" not in str(error.value)


def test_numbers_are_imagenet_s_indices():
    """As ImageNet-V2 names its folders; sorted as text they are in another order."""
    found = sorted(numbers(1000))
    labels, note = match_classes(found, WNIDS, "v2")
    assert labels == {str(index): index for index in range(1000)} and note == "v2: classes are matched as ImageNet's indices"
    moved = WNIDS[1:] + WNIDS[:1]
    assert match_classes(("0", "1", "0999"), moved, "v2")[0] == {"0": 999, "1": 0, "0999": 998}


@pytest.mark.parametrize(
    ("found", "known"), [(("1", "01"), WNIDS), (("5", "1000"), WNIDS), (("5",), WNIDS[:999]), (("5", "x"), WNIDS)]
)
def test_numbers_that_are_no_indices_are_refused(found, known):
    with pytest.raises(UserError, match="holds classes that the checkpoint does not have"):
        match_classes(found, known, "data")


def test_numbers_that_are_names_stay_names():
    assert match_classes(("2", "10"), ("0", "1", "10", "2"), "data")[0] == {"2": 3, "10": 2}


def test_a_checkpoint_without_names_is_told_how_to_get_them():
    with pytest.raises(UserError, match="the names of its outputs are numbers: `cswin convert-weights` names them"):
        match_classes(WNIDS[:2], numbers(1000), "data")


def test_two_outputs_of_one_name_are_refused():
    with pytest.raises(UserError, match="several outputs of the name crane"):
        match_classes(("crane", "cat"), ("cat", "crane", "crane"), "data")
    assert match_classes(("cat",), ("cat", "crane", "crane"), "data")[0] == {"cat": 0}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.txt", b"cat\na dog\n\xe6\xb5\xb7\xe8\xb1\x9a\n"),
        ("windows.txt", b"\xef\xbb\xbfcat\r\na dog\r\n\xe6\xb5\xb7\xe8\xb1\x9a"),
        ("gaps.txt", b"\ncat \n\n a dog\n\xe6\xb5\xb7\xe8\xb1\x9a\n\n"),
        ("table.tsv", b"\xef\xbb\xbfcat\tFelis catus, cat\r\na dog\tdog\r\n\xe6\xb5\xb7\xe8\xb1\x9a\tdolphin\r\n"),
        ("dataset.json", b'{"class_names": ["cat", "a dog", "\xe6\xb5\xb7\xe8\xb1\x9a"], "format": "x"}'),
    ],
)
def test_lists_from_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_class_names(tmp_path / name) == ("cat", "a dog", "海豚")


def test_names_with_odd_blanks_stay_whole(tmp_path):
    (tmp_path / "a.txt").write_text("\u3000a\u2028b\u3000\nc\x0bd\n", encoding="utf-8")
    assert read_class_names(tmp_path / "a.txt") == ("\u3000a\u2028b\u3000", "c\x0bd")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("utf16.txt", "cat\n".encode("utf-16")),
        ("a.json", b"[1]"),
        ("b.json", b"{}"),
        ("c.json", b"{"),
        ("empty.txt", b"\xef\xbb\xbf\r\n"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*one name per line"):
        read_class_names(tmp_path / name)


def test_a_missing_list(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        read_class_names(tmp_path / "none.txt")


def test_the_list_itself():
    """The WNIDs as the ImageNet community passes them on, one per line."""
    digest = hashlib.sha256("".join(f"{wnid}\n" for wnid in WNIDS).encode()).hexdigest()
    assert digest == "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15"
