"""A campaign of faults against `mclst-infer`: each ends in one sentence and the right exit code, and changes
nothing.

Which fault is tested where, and which cannot happen here, stands in docs/faults.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
import tifffile
from forked_runs import WORDS, ForkServer, assert_one_sentence, tree
from onnx import TensorProto, helper, numpy_helper
from small_model import TILE_PX
from synthetic_slides import tissue

from mclst.runtime.bundle.bank import Bank, bank_bytes, read_bank

Change = Callable[[Path], object]


@pytest.fixture
def here(run_inputs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_inputs, tmp_path / "here"))


# What is wrong with a bundle: its hashes are right, since whoever writes a bundle writes its hashes


def rehash(here: Path, *names: str, **fields: Any) -> None:
    """Write the manifest anew with the files' true hashes, and `fields` in place of its own."""
    path = here / "mclst-bundle" / "manifest.json"
    manifest = {**json.loads(path.read_text()), **fields}
    for name in names:
        content = (path.parent / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(manifest))


def manifest(text: str | bytes) -> Change:
    return lambda here: (here / "mclst-bundle" / "manifest.json").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )


def encoder(content: bytes) -> Change:
    def change(here: Path) -> None:
        (here / "mclst-bundle" / "encoder.onnx").write_bytes(content)
        rehash(here, "encoder.onnx")

    return change


def graph(
    *nodes: onnx.NodeProto, weights: list[onnx.TensorProto] | None = None, opset: int = 17, width: int = 16
) -> bytes:
    tiles = helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["N", TILE_PX, TILE_PX, 3])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", width])
    made = helper.make_graph(list(nodes), "g", [tiles], [out], weights or [])
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    ).SerializeToString()


def linear(width: int = 16, scale: float = 1e-3, **options: Any) -> bytes:
    """A sound encoder but for `width` or `scale`."""
    values = np.full((TILE_PX * TILE_PX * 3, width), scale, np.float32)
    weights = [
        numpy_helper.from_array(values, "w"),
        numpy_helper.from_array(np.array([-1, len(values)]), "shape"),
    ]
    return graph(
        helper.make_node("Cast", ["tiles"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["embedding"]),
        weights=weights, width=width, **options,
    )  # fmt: skip


def outside(location: str, *, length: int = 16 * 4) -> bytes:
    weight = TensorProto(name="w", dims=[16], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        weight.external_data.add(key=key, value=value)
    return graph(helper.make_node("Identity", ["w"], ["embedding"]), weights=[weight])


def vast_graph() -> bytes:
    shape = numpy_helper.from_array(np.array([2**40, 16]), "shape")
    return graph(helper.make_node("ConstantOfShape", ["shape"], ["embedding"]), weights=[shape])


def weights_in(name: str, held: bytes | None) -> Change:
    """Weights of the encoder in a file that the manifest lists."""

    def change(here: Path) -> None:
        encoder(outside(name))(here)
        if held is not None:
            (here / "mclst-bundle" / name).write_bytes(held)
            rehash(here, name)

    return change


def linked_weights(here: Path) -> None:
    (here / "secret").write_bytes(bytes(64))
    weights_in("weights.data", bytes(64))(here)
    (here / "mclst-bundle" / "weights.data").unlink()
    (here / "mclst-bundle" / "weights.data").symlink_to(here / "secret")


def bank(change: Callable[[h5py.File], object]) -> Change:
    def apply(here: Path) -> None:
        with h5py.File(here / "mclst-bundle" / "bank.h5", "r+") as file:
            change(file)
        rehash(here, "bank.h5")

    return apply


def replaced(name: str, **options: Any) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return change


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((48, 16), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "embedding", (48, 16))
    del file["embedding"]
    file.create_virtual_dataset("embedding", layout)


def soft_link(file: h5py.File) -> None:
    del file["embedding"]
    file["embedding"] = h5py.SoftLink("/expression")


def long_name(file: h5py.File) -> None:
    names = [str(name) for name in file["genes"].asstr()[:]]
    replaced("genes", data=["A" * 10_000_000, *names[1:]], dtype=h5py.string_dtype())(file)


def bank_of(**parts: Any) -> Change:
    """The bank with some of its arrays changed."""

    def apply(here: Path) -> None:
        path = here / "mclst-bundle" / "bank.h5"
        held = vars(read_bank(path))
        path.write_bytes(
            bank_bytes(Bank(**{**held, **{name: change(held[name]) for name, change in parts.items()}}))
        )
        rehash(here, "bank.h5")

    return apply


def with_row(values: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[3] = values
        return array

    return change


def half_a_bank(here: Path) -> None:
    path = here / "mclst-bundle" / "bank.h5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rehash(here, "bank.h5")


def left_open(here: Path) -> None:
    """As a writer leaves it that was killed: HDF5's superblock says that it is being written."""
    path = here / "mclst-bundle" / "bank.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for name in ("embedding", "expression"):
            file[name] = np.ones((48, 16), "f4")
        path_now = path.with_suffix(".open")
        file.flush()
        shutil.copy(path, path_now)
    path_now.replace(path)
    rehash(here, "bank.h5")


def without(name: str) -> Change:
    return lambda here: (here / "mclst-bundle" / name).unlink()


def bundle_is_a_file(here: Path) -> None:
    shutil.rmtree(here / "mclst-bundle")
    (here / "mclst-bundle").write_text("not a folder")


BUNDLES: list[tuple[str, Change, str]] = [
    ("a manifest nested 100,000 deep", manifest("[" * 100_000), "manifest.json"),
    ("a number of 5,000 digits", manifest('{"format": ' + "9" * 5000 + "}"), "manifest.json"),
    (
        "a Git LFS pointer for a manifest",
        manifest("version https://git-lfs.github.com/spec/v1\n"),
        "manifest.json",
    ),
    ("a web page for a manifest", manifest("<!doctype html>"), "manifest.json"),
    (
        "a manifest in UTF-16",
        lambda here: manifest((here / "mclst-bundle/manifest.json").read_text().encode("utf-16"))(here),
        "manifest.json",
    ),
    (
        "a manifest without its end",
        lambda here: manifest((here / "mclst-bundle/manifest.json").read_bytes()[:-40])(here),
        "manifest.json",
    ),
    ("a manifest of zeros", manifest(bytes(500)), "manifest.json"),
    ("a bundle that is a file", bundle_is_a_file, "is not a bundle"),
    ("no encoder", without("encoder.onnx"), "encoder.onnx"),
    ("no bank", without("bank.h5"), "bank.h5"),
    (
        "an encoder cut off",
        lambda here: encoder((here / "mclst-bundle/encoder.onnx").read_bytes()[:-100])(here),
        "encoder.onnx",
    ),
    ("an empty encoder", encoder(b""), "encoder.onnx"),
    ("a web page for an encoder", encoder(b"<!doctype html><html></html>"), "encoder.onnx"),
    ("operators of a later ONNX", encoder(linear(opset=99)), "encoder.onnx"),
    (
        "an operator nobody knows",
        encoder(graph(helper.make_node("Teleport", ["tiles"], ["embedding"], domain="own"))),
        "encoder.onnx",
    ),
    ("an embedding of another width", encoder(linear(8)), "do not belong together"),
    ("an embedding that is not finite", encoder(linear(scale=float("nan"))), "not finite"),
    ("weights above the bundle", encoder(outside("../spots.csv")), "../spots.csv"),
    ("weights at an absolute path", encoder(outside("/etc/passwd")), "/etc/passwd"),
    ("weights through a link", linked_weights, "weights.data"),
    ("weights that are missing", weights_in("weights.data", None), "weights.data"),
    ("weights cut off", weights_in("weights.data", bytes(10)), "encoder.onnx"),
    ("half a bank", half_a_bank, "bank.h5"),
    ("a bank whose writer was killed", left_open, "bank.h5"),
    ("a bank of a trillion rows", bank(replaced("embedding", shape=(10**12, 16), dtype="f4")), "bank.h5"),
    ("a trillion names", bank(replaced("genes", shape=(10**12,), dtype=h5py.string_dtype())), "bank.h5"),
    (
        "a compressed bank",
        bank(replaced("embedding", shape=(10**9, 16), dtype="f4", chunks=(10**6, 16), compression="gzip")),
        "bank.h5",
    ),
    (
        "a bank elsewhere",
        bank(
            lambda file: (
                file.pop("embedding"),
                file.__setitem__("embedding", h5py.ExternalLink("/etc/passwd", "/x")),
            )
        ),
        "bank.h5",
    ),
    ("a bank put together from other files", bank(virtual), "bank.h5"),
    ("a bank's part by another name", bank(soft_link), "bank.h5"),
    ("whole numbers for embeddings", bank(replaced("embedding", data=np.ones((48, 16), "i4"))), "bank.h5"),
    ("half precision for embeddings", bank(replaced("embedding", data=np.ones((48, 16), "f2"))), "bank.h5"),
    ("embeddings of another width", bank(replaced("embedding", data=np.ones((48, 8), "f4"))), "bank.h5"),
    ("no spots in the bank", bank(replaced("embedding", data=np.ones((0, 16), "f4"))), "bank.h5"),
    ("a row that is not finite", bank_of(embedding=with_row(np.nan)), "not finite in row 3"),
    ("expression that is not finite", bank_of(expression=with_row(np.inf)), "not finite in row 3"),
    (
        "names that are not UTF-8",
        bank(replaced("genes", data=[b"\xff\xfe"] * 12, dtype=h5py.string_dtype())),
        "bank.h5",
    ),
    ("numbers for names", bank(replaced("genes", data=np.arange(12))), "bank.h5"),
    ("a gene twice", bank(replaced("genes", data=["A"] * 12, dtype=h5py.string_dtype())), "bank.h5"),
    ("a name of ten million letters", bank(long_name), "bank.h5"),
    ("more genes than the bank has", lambda here: rehash(here, genes=13), "bank.h5"),
]


@pytest.mark.parametrize(
    ("change", "words"), [case[1:] for case in BUNDLES], ids=[case[0] for case in BUNDLES]
)
def test_a_bundle_that_is_wrong(
    fork_server: ForkServer, here: Path, log_dir: Path, change: Change, words: str
) -> None:
    change(here)
    before = tree(here)
    ended = fork_server.run(here, *WORDS, log_dir=log_dir, memory_mb=1500)
    assert_one_sentence(ended, 4, words)
    assert tree(here) == before


# What is wrong with a slide


def zeros(count: int) -> bytes:
    """A zlib stream of at least `count` zeros, put together from one megabyte's: its checksum is wrong, if
    asked.
    """
    packer = zlib.compressobj(9)
    first = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (count >> 20) + packer.flush()


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of zeros that says so in a thousandth of its size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zeros((3 * width + 1) * height))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def tiff(**options: Any) -> Change:
    def change(here: Path) -> None:
        pixels = options.pop("pixels", tissue())
        tifffile.imwrite(here / "slide.tif", pixels, metadata=None, **{"photometric": "rgb", **options})

    return change


def patched(at: str, content: Callable[[bytes], bytes], tile: int = 7) -> Change:
    """One tile's bytes or one of its tags changed."""

    def change(here: Path) -> None:
        path = here / "slide.tif"
        with tifffile.TiffFile(path, mode="r+") as tif:
            page = tif.pages.first
            if at != "data":
                values = list(page.tags[at].value)
                values[tile] = int(content(b"")[0])
                page.tags[at].overwrite(values)
                return
            offset, count = page.dataoffsets[tile], page.databytecounts[tile]
        whole = bytearray(path.read_bytes())
        whole[offset : offset + count] = content(bytes(whole[offset : offset + count]))
        path.write_bytes(whole)

    return change


def inflates_to_gigabytes(here: Path) -> None:
    """One tile of 64 px whose deflate stream goes on for 4 GB."""
    packed = zeros(4 << 30)
    path = here / "slide.tif"
    with tifffile.TiffFile(path, mode="r+") as tif:
        tags = tif.pages.first.tags
        offsets, counts = list(tags["TileOffsets"].value), list(tags["TileByteCounts"].value)
        offsets[0], counts[0] = path.stat().st_size, len(packed)
        tags["TileOffsets"].overwrite(offsets)
        tags["TileByteCounts"].overwrite(counts)
    with path.open("ab") as file:
        file.write(packed)


def huge_strip(here: Path) -> None:
    """A single strip of 30,000 x 30,000 px in three megabytes."""
    packed = zeros(900_000_000)
    fields = [
        (256, 30_000),
        (257, 30_000),
        (258, 8),
        (259, 8),
        (262, 1),
        (273, 200),
        (277, 1),
        (278, 30_000),
        (279, len(packed)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    head = b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + struct.pack("<I", 0)
    (here / "slide.tif").write_bytes(head.ljust(200, b"\0") + packed)


def fifo(here: Path) -> None:
    (here / "slide.tif").unlink()
    os.mkfifo(here / "slide.tif")


def circle(here: Path) -> None:
    (here / "slide.tif").unlink()
    (here / "slide.tif").symlink_to("slide.tif")


def sixteen_bits(shape: tuple[int, ...]) -> Any:
    return np.full(shape, 40_000, np.uint16)


SLIDES: list[tuple[str, Change, str]] = [
    (
        "a picture of 900 megapixels in 3 MB",
        lambda here: (here / "slide.tif").write_bytes(png_bomb(30_000, 30_000)),
        "slide.tif",
    ),
    ("a strip of 900 megapixels in 3 MB", huge_strip, "slide.tif"),
    ("a tile that unpacks to gigabytes", inflates_to_gigabytes, "slide.tif"),
    ("a pipe", fifo, "not a regular file"),
    ("a link that leads to itself", circle, "slide.tif"),
    ("16-bit RGB", tiff(pixels=sixteen_bits((90, 90, 3))), "16-bit"),
    ("16-bit gray", tiff(pixels=sixteen_bits((90, 90)), photometric="minisblack"), "16-bit"),
    ("floats", tiff(pixels=np.zeros((90, 90, 3), np.float32)), "32-bit floating-point"),
    ("a tile of 0xFF", patched("data", lambda data: b"\xff" * len(data)), "cannot be decoded"),
    ("a tile of zeros", patched("data", lambda data: bytes(len(data))), "cannot be decoded"),
    ("a tile without bytes", patched("TileByteCounts", lambda data: b"\0"), "no data"),
    ("a tile that starts at 0", patched("TileOffsets", lambda data: b"\0"), "no data"),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in SLIDES], ids=[case[0] for case in SLIDES])
def test_a_slide_that_is_wrong(
    fork_server: ForkServer, here: Path, log_dir: Path, change: Change, words: str
) -> None:
    change(here)
    before = tree(here)
    ended = fork_server.run(here, *WORDS, log_dir=log_dir, memory_mb=1500)
    assert_one_sentence(ended, 4, words)
    assert tree(here) == before
