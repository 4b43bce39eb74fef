"""Worlds of images: folders that are refused, what is stored of them, and how they are decoded."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import streamtrain as st
from streamtrain.cli.inference.predict import warn_of_size
from streamtrain.loader.device.transfer import Placement
from streamtrain.training.inference.saved_run import decode_of_run, read_run
from tests.advice.training import net
from tests.advice.world import World, world
from tests.support.images import class_folders, encoded, pixels_of

_FOLDERS = "ingestion/sources/images/class_folders.py:"
_CHECK = "ingestion/sources/images/image_check.py:"
_DELIVERY = "loader/decode/delivery.py:"
_IMAGES = "loader/decode/images.py:Images.__init__:"
_COMMAND = "cli/preparation/images.py:"


def _folder(name: str = "in", n: int = 6) -> Path:
    class_folders(Path(name), n)
    return Path(name)


def _stored(**options: Any) -> st.Dataset:
    return st.ingest(_folder(), "d.zarr", progress=False, **options)


@world(
    "ingestion/sources/recognition/folders.py:folder_of_folders: give one folder at a time, into a dataset of its own: {}"
)
def folders_of_folders_of_classes(w: World) -> None:
    for name in ("train", "test"):
        _folder(f"photos/{name}")
    assert "'photos/test' 'photos/train'" in w.refuses("ingest photos d.zarr")
    w.works("ingest photos/train d.zarr")


@world(
    f"{_FOLDERS}_status_of_image: give folders of images, one for each class",
    f"{_FOLDERS}_status_of_image: move it out of the folder",
    f"{_FOLDERS}_status_of_image: write it again, or leave it out",
    f"{_FOLDERS}_files_in: put images into the folder, or remove it",
    f"{_FOLDERS}open_image_folder: move it into the folder of its class, or out of this one",
    f"{_FOLDERS}_check_names: rename one of the folders, or put their images together",
)
def folders_that_are_none_of_classes(w: World) -> None:
    folder = _folder()
    (folder / "cat" / "more").mkdir()
    w.refuses("ingest in d.zarr")
    (folder / "cat" / "more").rmdir()
    os.mkfifo(folder / "cat" / "pipe")
    w.refuses("ingest in d.zarr")
    (folder / "cat" / "pipe").unlink()
    (folder / "cat" / "empty.jpg").touch()
    w.refuses("ingest in d.zarr")
    (folder / "cat" / "empty.jpg").unlink()
    (folder / "yak").mkdir()
    w.refuses("ingest in d.zarr")
    (folder / "yak").rmdir()
    (folder / "notes.txt").write_text("beside")
    w.refuses("ingest in d.zarr")
    (folder / "notes.txt").rename("notes.txt")
    shutil.copytree(folder / "cat", folder / "Cat")
    w.refuses("ingest in d.zarr")
    (folder / "Cat").rename(folder / "lynx")
    w.works("ingest in d.zarr")


@world(
    f"{_CHECK}ImageCheck._check: store one of its pictures as an image of its own",
    f"{_CHECK}ImageCheck._check: convert it to 8 bits, or store it as an array",
    f"{_CHECK}_header: convert it to a JPEG, PNG or WebP image, or move it out of the folder",
    f"{_CHECK}_check_end: write or download it again, or leave it out",
    f"{_CHECK}_undecodable: write or download it again, or leave it out",
)
def images_that_cannot_be_stored(w: World) -> None:
    bad = _folder() / "cat" / "bad.png"
    moving = io.BytesIO()
    first, *others = [Image.fromarray(pixels_of(i)) for i in range(3)]
    first.save(moving, "PNG", save_all=True, append_images=others)
    whole = encoded(pixels_of(0, size=(64, 64)), "PNG")
    deep = encoded(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999, "PNG")
    for data in (
        moving.getvalue(),
        deep,
        b"GIF89a of another program",
        whole[:-1],
        whole[:100] + bytes(9) + whole[109:],
    ):
        bad.write_bytes(data)
        w.refuses("ingest in d.zarr")
    bad.write_bytes(whole)
    w.works("ingest in d.zarr")


@world(
    f"{_CHECK}ImageCheck._check: make it smaller; or max_pixels={{}}, say",
    f"{_CHECK}ImageCheck._check: mode='RGB'",
    f"{_CHECK}DecodingRoom.room: memory={{}}, or make the image smaller",
    f"{_CHECK}image_options: {{}}, say",
    f"{_CHECK}image_options: store='decoded' with size=256, say",
    f"{_CHECK}check_no_images: leave {{}} out",
    "ingestion/request.py:_checked_capacity: max_side={} makes large images smaller; or leave this one out",
)
def options_that_let_images_in(w: World) -> None:
    folder = _folder()
    w.typed("ingest in a.zarr --max-pixels 700")
    w.followed(st.ingest, folder, "b.zarr", max_pixels="many")
    w.typed("ingest in c.zarr --size 16")
    np.save("x.npy", np.zeros((4, 2)))
    w.refuses("ingest x.npy e.zarr --max-side 10")
    w.works("ingest x.npy e.zarr")
    (folder / "cat" / "alpha.png").write_bytes(encoded(np.zeros((9, 9, 4), np.uint8), "PNG"))
    w.typed("ingest in f.zarr")
    (folder / "cat" / "alpha.png").write_bytes(encoded(np.zeros((1200, 1200, 3), np.uint8), "PNG"))
    w.typed("ingest in g.zarr --memory 24MB")
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    (folder / "cat" / "alpha.png").write_bytes(encoded(noise, quality=100))
    w.typed("ingest in h.zarr")


@world("ingestion/append.py:_check_capacity: ingest all sources together, as one dataset")
def images_that_no_block_has_room_for(w: World) -> None:
    base = _stored()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    (Path("in") / "dog" / "noise.jpg").write_bytes(encoded(noise, quality=95))
    w.refuses("ingest in d.zarr --append")
    assert len(st.open(base.path)) == 18
    w.works("ingest in all.zarr")


@world(
    f"{_DELIVERY}delivered_layout: decode={{}}, say",
    f"{_DELIVERY}check_decode: decode={{}}, say",
    f"{_DELIVERY}_check: leave decode= out",
    "loader/device/transfer.py:DeviceTransfer._place_of: pool='host'",
)
def images_that_a_loader_decodes(w: World) -> None:
    data = _stored()

    def loaded(given: st.Dataset = data, **options: Any) -> None:
        with st.StreamLoader(given, batch_size=4, **options) as loader:
            next(iter(loader))

    w.followed(loaded)
    w.followed(loaded, decode={"image": 224})
    w.refused(loaded, w.dataset("x.zarr"), decode={"x": st.Images(8)})
    loaded(st.open("x.zarr"))

    def placed(pool: Any = "device") -> None:
        loaded(decode={"image": st.Images(8)}, device=Placement(device="cpu", pool=pool))

    w.followed(placed)


@world(
    f"{_IMAGES} Images(224), say",
    f"{_IMAGES} Images(224, crop='center', resize=256), say",
    f"{_IMAGES} flip=0.5",
    "loader/decode/images.py:_range: {}, say",
)
def images_of_no_size(w: World) -> None:
    assert w.refused(st.Images, 0) == "Images(224), say"
    st.Images(224)
    w.followed(st.Images, 224, resize=256)
    w.followed(st.Images, 224, flip=2)
    w.followed(st.Images, 224, scale=(0, 1))
    w.followed(st.Images, 224, ratio=1)


@world(
    f"{_COMMAND}parse_images: --images 224 (random crops, to train on), or --images center:224",
    f"{_COMMAND}decode_of: --images 224 (random crops, to train on), or --images center:224",
    f"{_COMMAND}decode_of: leave it out",
    f"{_COMMAND}parse_images: --images {{}}",
    f"{_COMMAND}_parse_scale: --image-scale 0.35, or --image-scale 0.35,1",
    "cli/compare.py:_of_data: leave it out",
)
def images_on_the_command_line(w: World) -> None:
    _stored()
    train = "train d.zarr --model linear --epochs 1 --batch-size 4"
    w.typed(train)
    w.typed(f"{train} --images large")
    assert w.refuses(f"{train} --images 8x8") == "--images 8"
    w.typed(f"{train} --images center:8 --image-scale 0.5")
    w.typed(f"{train} --images 8 --image-scale 2")
    w.dataset("x.zarr")
    w.refuses("train x.zarr --model linear --epochs 1 --images 8")
    w.refuses("train x.zarr --model linear --epochs 1 --image-scale 0.5")
    w.works("train x.zarr --model linear --epochs 1")
    compare = "compare d.zarr --model linear --epochs 1 --batch-size 4 --images 8 --rules batch --optimizers sgd"
    w.refuses(f"{compare} --normalize imagenet")
    w.works(compare)


_FILES = "loader/decode/image_files.py:"


@world(
    f"{_FILES}ImageFiles._check_room: memory={{}}",
    f"{_FILES}ImageFiles._decode: write or download it again, or leave it out",
    "cli/inference/predict.py:opened_data: JPEG, PNG or WebP, folders of them, or a dataset of images",
    "cli/inference/predict.py:warn_of_size: leave it out, or --images {}",
    "cli/inference/evaluate.py:_check_fields: data with {} {}, as the run was trained on",
    f"{_FILES}labels_by_folder: a folder for each class, its name that of the class; or a dataset with labels",
    "training/inference/batches.py:images_of_run: ingest them as its training data was, and give the dataset",
)
def images_that_are_predicted_where_they_lie(w: World) -> None:
    _stored()
    w.works("train d.zarr --model linear --epochs 1 --batch-size 4 --images 8 --out r")
    model = st.load("r", device="cpu")
    w.followed(model.predict, "in", memory="20kB", batch_size=1)
    w.refuses("evaluate r in --labels y.npy")
    w.works("evaluate r in")
    shutil.copytree("in/cat", "other/lynx")
    w.refuses("evaluate r other")
    Path("other/lynx").rename("other/cat")
    w.works("evaluate r other")
    Path("other/cat/000.jpg").write_bytes(Path("in/cat/000.jpg").read_bytes()[:300])
    w.refuses("predict r other")
    Path("other/cat/000.jpg").unlink()
    w.works("predict r other")
    Path("notes.txt").write_text("no image")
    w.refuses("predict r notes.txt")
    w.dataset("numbers.zarr")
    w.works("train numbers.zarr --model linear --epochs 1 --batch-size 4 --out of_numbers")
    w.refuses("evaluate of_numbers d.zarr")
    w.works("evaluate of_numbers numbers.zarr")
    warn_of_size(decode_of_run(read_run(Path("r")).config), "8")
    w.warned(warn_of_size, decode_of_run(read_run(Path("r")).config), "16")
    w.works("ingest in pixels.zarr --store decoded --size 8")
    w.works("train pixels.zarr --model linear --epochs 1 --batch-size 4 --out plain")
    w.refuses("predict plain in")
    w.works("ingest other new.zarr --store decoded --size 8")
    w.works("predict plain new.zarr")


@world(
    "models/normalization.py:normalize_field: normalize='imagenet', the usual figures; or normalize={}",
    "models/normalization.py:normalize_as_imagenet: normalize='auto'",
)
def images_without_statistics(w: World) -> None:
    data, images = _stored(check="header"), {"image": st.Images(8)}

    class Net(type(net())):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return super().forward(x.float().mean(dim=(2, 3))[:, [0, 1, 2, 2]])

    def fit(given: Any = data, decode: Any = images, inputs: str = "image", normalize: Any = "auto") -> None:
        model = net()
        model.__class__ = Net if inputs == "image" else model.__class__
        trainer = st.Trainer(model, loss="cross_entropy", inputs=(inputs,), normalize=normalize)
        trainer.fit(given, decode=decode, max_epochs=1, batch_size=4, progress=False)

    w.followed(fit)
    w.followed(fit, given=w.dataset("x.zarr"), decode=None, inputs="x", normalize="imagenet")


_PARQUET = "ingestion/sources/images/parquet_images.py:"
_TAR = "ingestion/sources/images/webdataset.py:WebDataset."


@world(
    f"{_PARQUET}probe: columns={{}}, with label_column=",
    f"{_PARQUET}ParquetImages._label_values: label_column= names the column of labels",
    f"{_PARQUET}ParquetImages._label_values: leave its row out, or write the label",
    f"{_PARQUET}ParquetImages._images: leave its row out, or write the image's bytes into it",
)
def images_in_parquet(w: World) -> None:
    files = [encoded(pixels_of(i)) for i in range(4)]

    def written(name: str = "a.parquet", **changed: Any) -> str:
        table = {"image": files, "label": [0, 1, 0, 1], "size": [1, 2, 3, 4], **changed}
        pq.write_table(pa.table(table), name)
        return name

    written()
    w.typed("ingest a.parquet a.zarr --columns image,size")
    w.refuses("ingest a.parquet c.zarr --label-column kind")
    w.works("ingest a.parquet c.zarr --label-column label")
    written(label=[0, 1, None, 1])
    w.refuses("ingest a.parquet e.zarr --label-column label")
    written(image=[*files[:3], None])
    w.refuses("ingest a.parquet e.zarr --label-column label")
    written()
    w.works("ingest a.parquet e.zarr --label-column label")


@world(
    "ingestion/sources/images/tar_members.py:_Walk._error: write or download it again",
    "ingestion/sources/images/tar_members.py:_Walk._refused: pack plain files, under names inside their folder, sorted by name",
    f"{_TAR}__init__: pack files into it",
    f"{_TAR}_error: pack the files sorted by name (sort=name of GNU tar), or fields={{'image': 'jpg', 'y': 'cls'}}",
    f"{_TAR}_fields_of: write all labels as text, or all as numbers",
    f"{_TAR}_read: bring all to one dtype and shape",
    f"{_TAR}_array: save numbers: numpy.save(file, x)",
    f"{_TAR}_label: fields={{'image': 'jpg', 'y': 'cls'}} names the members to read, by their suffixes; "
    "y=json:KEY a value in JSON",
)
def images_in_tar_files(w: World) -> None:
    Path("in").mkdir()

    def packed(*names: str) -> None:
        with tarfile.open("a.tar", "w") as out:
            for name in names or sorted(path.name for path in Path("in").iterdir()):
                out.add(f"in/{name}", name)

    def array(x: Any) -> bytes:
        np.save("x.npy", x)
        return Path("x.npy").read_bytes()

    for i in range(3):
        (Path("in") / f"{i}.jpg").write_bytes(encoded(pixels_of(i)))
        (Path("in") / f"{i}.cls").write_text(str(i))
        (Path("in") / f"{i}.npy").write_bytes(array(np.arange(3 + (i == 2))))
    Path("a.tar").write_bytes(bytes(10_240))
    w.refuses("ingest a.tar d.zarr")
    packed("0.jpg", "1.jpg", "1.cls", "0.cls")
    w.refuses("ingest a.tar d.zarr")
    packed()
    w.works("ingest a.tar d.zarr")
    w.refuses("ingest a.tar e.zarr --fields y=cls:kind")
    w.works("ingest a.tar e.zarr --fields image=jpg,y=cls")
    w.refuses("ingest a.tar f.zarr --fields x=npy")
    (Path("in") / "2.npy").write_bytes(b"no array")
    packed()
    w.refuses("ingest a.tar f.zarr --fields x=npy")
    (Path("in") / "2.npy").write_bytes(array(np.arange(3)))
    packed()
    w.works("ingest a.tar f.zarr --fields x=npy")
    (Path("in") / "2.cls").write_text("cat")
    packed()
    w.refuses("ingest a.tar g.zarr")
    (Path("in") / "2.cls").write_text("2")
    Path("in/3.jpg").symlink_to("2.jpg")
    packed()
    w.refuses("ingest a.tar g.zarr")
    Path("in/3.jpg").unlink()
    packed()
    Path("a.tar").write_bytes(Path("a.tar").read_bytes()[:2000])
    w.refuses("ingest a.tar g.zarr")
    packed()
    w.works("ingest a.tar g.zarr")


_LABELS = "ingestion/sources/images/label_table.py:"


@world(
    f"{_LABELS}open_labelled_folder: label_key='file' names the column of file names, and label_column=",
    f"{_LABELS}open_labelled_folder: leave labels= out, or put all images into one folder",
    f"{_LABELS}_values: did you mean {{}}?",
    f"{_LABELS}_values: label_key='file' names the column of file names, and label_column=",
    f"{_LABELS}_values: label them, or move them out of the folder",
    f"{_LABELS}_note: give the folder of the labelled images, or leave the row out",
    f"{_LABELS}_note: leave one of the rows out",
    f"{_LABELS}_note: label it, or leave it out of both",
)
def labels_of_images(w: World) -> None:
    Path("in").mkdir()
    for i in range(4):
        (Path("in") / f"{i}.jpg").write_bytes(encoded(pixels_of(i)))

    def labelled(*rows: str) -> None:
        Path("labels.csv").write_text("\n".join(["file,kind", *rows]) + "\n")

    right = [f"{i}.jpg,{i % 2}" for i in range(4)]
    labelled(*right)
    w.refuses("ingest in a.zarr --labels labels.csv --label-column kind")
    ingest = "ingest in a.zarr --labels labels.csv --label-key file --label-column kind"
    assert "'kind'" in w.refuses("ingest in a.zarr --labels labels.csv --label-key file --label-column kinds")
    w.refuses("ingest in a.zarr --labels labels.csv --label-key zzzzzzzz --label-column kind")
    for rows in (right[:3], [*right, "9.jpg,0"], [*right, "0.jpg,1"], [*right[:3], "3.jpg,"]):
        labelled(*rows)
        w.refuses(ingest)
    labelled(*right)
    w.works(ingest)
    class_folders(Path("classes"), 2)
    w.refuses("ingest classes b.zarr --labels labels.csv --label-key file --label-column kind")
    w.works("ingest classes b.zarr")
