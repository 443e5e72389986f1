"""Image folders as they are downloaded: which are for training and test, which are classes, and what is neither."""

import unicodedata

import pytest
from PIL import Image
from samples import image_folder

from splitlearn.errors import UserError
from splitlearn.tasks.image_classification import sources
from splitlearn.tasks.image_classification.folders import layout_of
from splitlearn.tasks.partition import labels


@pytest.fixture
def tree(tmp_path):
    """tree("train/a/1.png", "list.csv", "empty/", …): a folder with these images, other files, and empty folders."""

    def make(*paths):
        for path in paths:
            full = tmp_path / path
            (full if path.endswith("/") else full.parent).mkdir(parents=True, exist_ok=True)
            if path.endswith((".csv", ".txt", ".db", ".xml", ".DS_Store")):
                full.write_text("no image")
            elif not path.endswith("/"):
                Image.new("RGB", (8, 8)).save(full, "PNG")
        return tmp_path

    return make


def images(*folders):
    """Two images in each."""
    return [f"{folder}/{number}.png" for folder in folders for number in (1, 2)]


def found(root, classes=None):
    """Where training and test images are, relative to the root, each with its classes."""
    layout = layout_of(root, classes)
    parts = (layout.train, layout.test)
    return [part and (part.root.relative_to(root).as_posix(), *part.folders) for part in parts]


@pytest.mark.parametrize(
    "train, test",
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("TRAIN", "VAL"),
        ("trn", "tst"),
        ("train", "valid"),
        ("train", "validation"),
        ("Train", "dev"),
        ("train", "eval"),
        ("training_set", "test_set"),
        ("Train Images", "Test Images"),
        ("TrainingSet", "TestSet"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("archive/dataset/train", "archive/dataset/test"),
        ("chest_xray/train", "chest_xray/val"),
    ],
)
def test_splits_are_known_by_their_usual_names(train, test, tree):
    root = tree(*images(f"{train}/a", f"{train}/b", f"{test}/a", f"{test}/b"), "list.csv", "Thumbs.db")
    assert found(root) == [(train, "a", "b"), (test, "a", "b")]


def test_of_several_the_images_for_test_come_before_those_for_validation(tree):
    root = tree(*images("train/a", "valid/a", "Test/a", "dev/a"))
    assert found(root) == [("train", "a"), ("Test", "a")]
    assert layout_of(root).notes == [f"{root}: trains on train/, is tested on Test/, and leaves out dev, valid"]


@pytest.mark.parametrize("inner", ["", "images", "archive/PetImages"])
def test_folders_of_classes_alone_may_be_in_folders_of_their_own(inner, tree):
    root = tree(*images(*(f"{inner}/{name}".strip("/") for name in ("cat", "dog"))), "readme.txt")
    assert found(root) == [(inner or ".", "cat", "dog"), None]


@pytest.mark.parametrize("name", ["train", "Training", "test", "val"])
def test_a_class_that_is_called_as_a_split_is_one(name, tree):
    root = tree(*images("bus", "car", name))
    assert found(root) == [(".", *sorted(["bus", "car", name])), None]
    assert layout_of(root).notes == [f"{root}: {name} has images of its own, and is taken for a class"]


def test_classes_beside_a_folder_for_test_are_for_training(tree):
    assert found(tree(*images("bus", "car", "test/bus", "test/car"))) == [(".", "bus", "car"), ("test", "bus", "car")]


def test_what_is_hidden_or_holds_no_images_is_no_class(tree):
    hidden = ["a/.ipynb_checkpoints", ".ipynb_checkpoints", "__MACOSX/a", ".cache/a", "@eaDir", "__pycache__"]
    root = tree(*images("a", "b", *hidden), "b/._1.png", "b/.DS_Store", "empty/", "labels/1.xml")
    assert found(root) == [(".", "a", "b"), None]
    layout = layout_of(root)
    from splitlearn.tasks.image_classification.folders import Folder

    names = [path.rpartition("/")[2] for path, _ in Folder(layout.train, ["a", "b"], None).samples]
    assert names == ["1.png", "2.png"] * 2


def test_extensions_are_known_in_any_case(tree):
    root = tree("a/1.PNG", "a/2.JPeG", "b/1.gif", "b/2.WEBP", "b/3.TIFF", "b/4.jfif", "c/1.txt")
    assert found(root) == [(".", "a", "b"), None]


def test_images_for_test_without_a_class_are_left_out_and_told_of(tree):
    root = tree(*images("train/a", "train/b"), "test/1.png", "sample.csv")
    assert found(root) == [("train", "a", "b"), None]
    assert layout_of(root).notes == [f"{root}: trains on train/, and leaves out test"]


def test_images_for_test_alone_are_enough_for_a_server(tree, config):
    root = tree(*images("test/a", "test/b"))
    assert found(root) == [None, ("test", "a", "b")]
    train, test, classes = sources.build(image_folder(config, root), 0)
    assert (len(train), len(test), classes) == (0, 4, ["a", "b"])


@pytest.mark.parametrize(
    "paths, words",
    [
        (["1.png", "2.png"], "is no image folder: it holds no class folders with images"),
        ([], "is no image folder"),
        (["a/1.txt", "empty/"], "is no image folder"),
        (["train/1.png", "test/2.png"], "test/, train/ hold no class folders: put the images of each class"),
        (["train_1/a/1.png", "train_2/a/1.png"], "has train_1/ and train_2/ for the same"),
        (["Train/a/1.png", "train/a/1.png"], "has Train/ and train/ for the same"),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], "splits have to be above classes"),
    ],
)
def test_what_is_no_image_folder_is_one_sentence(paths, words, tree, config):
    with pytest.raises(UserError, match=rf"^data\.root=.*{words}") as error:
        sources.build(image_folder(config, tree(*paths)), 0)
    assert "\n" not in str(error.value)


# Classes


def test_one_list_for_all_gives_the_labels_and_a_client_may_lack_some(tree, config):
    root = tree(*images("train/cat", "train/ant", "test/cat"))
    train, test, classes = sources.build(image_folder(config, root, "data.classes=[cat,bee,ant]"), 0)
    assert classes == ["cat", "bee", "ant"]
    assert sorted(labels(train)) == [0, 0, 2, 2] and labels(test).tolist() == [0, 0]


@pytest.mark.parametrize("classes", ["ant", "5", "[]", "[a,a]", "{a: 1}"])
def test_a_list_that_is_none_is_one_sentence(classes, tree, config):
    with pytest.raises(UserError, match=r"^data.classes=.* has to be null, or a list of different names"):
        sources.build(image_folder(config, tree(*images("a")), f"data.classes={classes}"), 0)


def test_an_empty_folder_is_a_class_that_is_in_the_list(tree, config):
    root = tree(*images("cat"), "dog/")
    assert sources.build(image_folder(config, root), 0)[2] == ["cat"]
    assert sources.build(image_folder(config, root, "data.classes=[cat,dog]"), 0)[2] == ["cat", "dog"]


def test_a_folder_that_is_not_in_the_list_is_named(tree, config):
    root = tree(*images("train/cat", "train/ant", "test/cat"))
    with pytest.raises(UserError, match=r"the folder \S+train/ant is not in data.classes=\[cat, dog\]"):
        sources.build(image_folder(config, root, "data.classes=[cat,dog]"), 0)


def test_test_images_may_lack_a_class_but_have_no_other(tree, config):
    root = tree(*images("train/a", "train/b", "train/c", "test/c"))
    _, test, classes = sources.build(image_folder(config, root), 0)
    assert classes == ["a", "b", "c"] and labels(test).tolist() == [2, 2]
    tree(*images("test/d"))
    with pytest.raises(UserError, match=r"^data.root=.*: test/ has classes that train/ has not: d; .*data.classes"):
        sources.build(image_folder(config, root), 0)


def test_a_name_is_the_same_however_its_accents_are_written(tree, config):
    root = tree(*images(*(f"train/{unicodedata.normalize('NFD', name)}" for name in ("Bär", "Öl")), "test/Bär"))
    _, test, classes = sources.build(image_folder(config, root), 0)
    assert classes == ["Bär", "Öl"] and labels(test).tolist() == [0, 0]


def test_numbers_may_be_classes(tree, config):
    root = tree(*images("0", "1"))
    assert sources.build(image_folder(config, root, "data.classes=[1,0]"), 0)[2] == ["1", "0"]


@pytest.mark.parametrize("fraction, num_test", [(0, 0), (0.25, 1)])
def test_nothing_need_be_held_out(fraction, num_test, tree, config):
    train, test, _ = sources.build(image_folder(config, tree(*images("a", "b")), f"data.test_fraction={fraction}"), 0)
    assert (len(train), len(test)) == (4 - num_test, num_test)


def test_names_for_labels_that_are_numbers_must_be_as_many(config):
    cfg = config("data.classes=[one,two]").data
    with pytest.raises(UserError, match=r"data.classes=\[one, two\] has 2 names; digits has 10 classes"):
        sources.build(cfg, 0)
