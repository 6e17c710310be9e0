"""Slides as vendors' scanners lay them out, made small, each with the pixels that belong at every place.

No real file of these vendors could be had in a few megabytes. The layouts follow OpenSlide's own description
of each format; the pixels expected are composed here from the pieces that were written, so that OpenSlide is
checked too.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from synthetic_slides import tissue

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class SyntheticSlide:
    """path: what is opened. levels: the pixels of each, uint8 [h, w, 3]. mpp: µm per level-0 pixel."""

    path: Path
    levels: tuple[Pixels, ...]
    mpp: float
    vendor: str


def halved(image: Pixels) -> Pixels:
    return np.ascontiguousarray(image[::2, ::2])


def on_white(height: int, width: int, *pieces: tuple[int, int, Pixels]) -> Pixels:
    """Pieces (x, y, pixels) on white glass."""
    canvas = np.full((height, width, 3), 255, np.uint8)
    for x, y, pixels in pieces:
        canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return canvas


def leica_scn(folder: Path) -> SyntheticSlide:
    """Two scanned areas and an overview; areas lie at offsets in nm on the glass, here of 500 nm per pixel."""
    nm, (height, width) = 500, (480, 640)
    areas = [(100, 60, tissue(200, 240)), (380, 240, tissue(160, 220, seed=1))]
    written: list[Pixels] = [tissue(96, 128, seed=2)]
    described = [_scn_image(0, 0, width * nm, height * nm, [written[0]], 0)]
    for x, y, pixels in areas:
        both = [pixels, halved(pixels)]
        size = (pixels.shape[1] * nm, pixels.shape[0] * nm)
        described.append(_scn_image(x * nm, y * nm, *size, both, len(written)))
        written += both
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection sizeX="{width * nm}" sizeY="{height * nm}">{"".join(described)}</collection></scn>'
    )
    path = folder / "made.scn"
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for number, pixels in enumerate(written):
            tif.write(
                pixels,
                tile=(64, 64),
                photometric="rgb",
                compression="zlib",
                metadata=None,
                description=text if number == 0 else None,
                resolution=(20000, 20000),
                resolutionunit="CENTIMETER",
            )
    levels = [
        on_white(
            height // by, width // by, *((x // by, y // by, pixels[::by, ::by]) for x, y, pixels in areas)
        )
        for by in (1, 2)
    ]
    return SyntheticSlide(path, tuple(levels), nm / 1000, "leica")


def _scn_image(x: int, y: int, width: int, height: int, levels: list[Pixels], first: int) -> str:
    dimensions = "".join(
        f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{r}" ifd="{first + r}"/>'
        for r, level in enumerate(levels)
    )
    return (
        f"<image><pixels>{dimensions}</pixels>"
        f'<view sizeX="{width}" sizeY="{height}" offsetX="{x}" offsetY="{y}"/>'
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
    )


BIF_TILE, BIF_ADVANCE, BIF_ACROSS, BIF_DOWN = 64, 56, 6, 4


def ventana_bif(folder: Path) -> SyntheticSlide:
    """Overlapping tiles: the file holds them side by side, the slide has them 8 px closer."""
    tile, advance, across, down = BIF_TILE, BIF_ADVANCE, BIF_ACROSS, BIF_DOWN
    whole = tissue(advance * (down - 1) + tile, advance * (across - 1) + tile)
    held = np.zeros((tile * down, tile * across, 3), np.uint8)
    for row in range(down):
        for column in range(across):
            x, y = column * advance, row * advance
            held[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile] = whole[
                y : y + tile, x : x + tile
            ]
    path = folder / "made.bif"
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "compression": "zlib"}
        scan = b'<iScan Magnification="20" ScanRes="0.465" Z-layers="1"/>'
        label = tissue(60, 40, seed=4)
        tif.write(label, description="Label Image", extratags=[(700, 1, len(scan), scan, True)], **options)
        joints = _bif_joints(across, down, tile - advance).encode()
        for level, pixels in enumerate((held, halved(held))):
            tif.write(
                pixels, tile=(tile, tile), description=f"level={level} mag={20 >> level} quality=90",
                extratags=[(700, 1, len(joints), joints, True)] if level == 0 else [], **options,
            )  # fmt: skip
    return SyntheticSlide(path, (whole, halved(whole)), 0.465, "ventana")


def _bif_joints(across: int, down: int, overlap: int) -> str:
    """Tiles are numbered from the lower left corner, to and fro."""

    def number(column: int, row: int) -> int:
        up = down - 1 - row
        return up * across + (across - 1 - column if up % 2 else column) + 1

    joint = '<TileJointInfo FlagJoined="1" Confidence="99" Direction="{}" Tile1="{}" Tile2="{}" OverlapX="{}" OverlapY="{}"/>'
    joints = [
        joint.format("RIGHT", number(column, row), number(column + 1, row), overlap, 0)
        for row in range(down) for column in range(across - 1)
    ] + [
        joint.format("UP", number(column, row), number(column, row - 1), 0, overlap)
        for row in range(1, down) for column in range(across)
    ]  # fmt: skip
    return (
        '<EncodeInfo Ver="2"><SlideInfo/><SlideStitchInfo>'
        f'<ImageInfo AOIScanned="1" AOIIndex="0" NumRows="{down}" NumCols="{across}" Width="{BIF_TILE}" '
        f'Height="{BIF_TILE}" Pos-X="0" Pos-Y="0">{"".join(joints)}</ImageInfo></SlideStitchInfo>'
        '<AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )


def mirax(folder: Path) -> SyntheticSlide:
    """A thumbnail with a folder beside it: photographs 8 px over each other, one of them never taken."""
    side, overlap, across, down, missing = 64, 8, 6, 4, (3, 1)
    advance = side - overlap
    whole = tissue(advance * (down - 1) + side, advance * (across - 1) + side)
    inside = folder / "made"
    inside.mkdir()
    photographs = {
        (column, row): whole[row * advance : row * advance + side, column * advance : column * advance + side]
        for row in range(down) for column in range(across) if (column, row) != missing
    }  # fmt: skip
    fours = {
        (column, row): _four(photographs, column, row, side)
        for row in range(0, down, 2) for column in range(0, across, 2)
    }  # fmt: skip
    data = bytearray()
    index = bytearray(b"01.02" + MIRAX_ID.encode())
    root = len(index) + 8
    index += struct.pack("<ii", root, root)
    at = root + 8
    pointers, pages = b"", b""
    for images in (photographs, fours):
        entries = b""
        for (column, row), pixels in images.items():
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, format="png")
            entries += struct.pack("<iiii", row * across + column, len(data), png.tell(), 0)
            data += png.getvalue()
        pointers += struct.pack("<i", at + len(pages))
        page = at + len(pages) + 8
        pages += struct.pack("<iiii", 0, page, len(images), 0) + entries
    (inside / "Index.dat").write_bytes(bytes(index) + pointers + pages)
    (inside / "Data0000.dat").write_bytes(data)
    (inside / "Slidedat.ini").write_text(_slidedat(across, down, side, overlap), encoding="utf-8-sig")
    Image.fromarray(whole).save(folder / "made.mrxs", format="jpeg")
    seen = whole.copy()
    x, y = missing[0] * advance, missing[1] * advance
    seen[y + overlap : y + advance, x + overlap : x + advance] = 255
    return SyntheticSlide(
        folder / "made.mrxs", (seen, _halved_mirax(seen, whole, x // 2, y // 2)), 0.25, "mirax"
    )


MIRAX_ID = "0123456789ABCDEF0123456789ABCDEF"


def _four(photographs: dict[tuple[int, int], Pixels], column: int, row: int, side: int) -> Pixels:
    """Four photographs, halved and put together as the coarser level holds them."""
    joined = np.zeros((side, side, 3), np.uint8)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        photograph = photographs.get((column + dx, row + dy))
        if photograph is not None:
            joined[dy * side // 2 : (dy + 1) * side // 2, dx * side // 2 : (dx + 1) * side // 2] = halved(
                photograph
            )
    return joined


def _halved_mirax(seen: Pixels, whole: Pixels, x: int, y: int) -> Pixels:
    level = halved(whole)
    level[y + 4 : y + 28, x + 4 : x + 28] = 255
    return level


def _slidedat(across: int, down: int, side: int, overlap: int) -> str:
    level = (
        "[LEVEL_{n}]\nOVERLAP_X = {overlap}\nOVERLAP_Y = {overlap}\nMICROMETER_PER_PIXEL_X = {mpp}\n"
        "MICROMETER_PER_PIXEL_Y = {mpp}\nIMAGE_FORMAT = PNG\nIMAGE_FILL_COLOR_BGR = 16777215\nDIGITIZER_WIDTH = {side}\n"
        "DIGITIZER_HEIGHT = {side}\nIMAGE_CONCAT_FACTOR = {n}\n"
    )
    return (
        f"[GENERAL]\nSLIDE_VERSION = 01.02\nSLIDE_ID = {MIRAX_ID}\nIMAGENUMBER_X = {across}\n"
        f"IMAGENUMBER_Y = {down}\nOBJECTIVE_MAGNIFICATION = 20\n"
        "[HIERARCHICAL]\nHIER_COUNT = 1\nNONHIER_COUNT = 0\nINDEXFILE = Index.dat\nHIER_0_NAME = Slide zoom level\n"
        "HIER_0_COUNT = 2\nHIER_0_VAL_0_SECTION = LEVEL_0\nHIER_0_VAL_1_SECTION = LEVEL_1\n"
        "[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = Data0000.dat\n"
        + level.format(n=0, overlap=overlap, mpp=0.25, side=side)
        + level.format(n=1, overlap=overlap / 2, mpp=0.5, side=side)
    )


def philips_tiff(folder: Path) -> SyntheticSlide:
    """Levels whose declared sizes are whole tiles: what they truly are stands in the description."""
    image = tissue(64 * 5, 64 * 7)
    true = [image, image[::2, ::2], image[::4, ::4]]
    sizes = "".join(
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" '
        f'Element="0x0030" PMSVR="IDoubleArray">"{0.00025 * 2**i}" "{0.00025 * 2**i}"</Attribute></DataObject>'
        for i in range(len(true))
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">"0.00025" "0.00025"</Attribute>'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array>'
        '<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE" PMSVR="IString">WSI</Attribute>'
        '<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">"0.00025" "0.00025"</Attribute>'
        '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" PMSVR="IDataObjectArray"><Array>'
        f"{sizes}</Array></Attribute></DataObject></Array></Attribute></DataObject>"
    )
    path = folder / "made philips.tiff"
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for number, level in enumerate(true):
            padded = np.full((*(-(-side // 64) * 64 for side in level.shape[:2]), 3), 255, np.uint8)
            padded[: level.shape[0], : level.shape[1]] = level
            tif.write(
                padded,
                tile=(64, 64),
                photometric="ycbcr",
                compression="jpeg",
                compressionargs={"level": 90},
                metadata=None,
                description=text if number == 0 else None,
                software="Philips DP v1.0" if number == 0 else None,
                subfiletype=int(number > 0),
            )
    with tifffile.TiffFile(path) as tif:
        decoded = [np.asarray(tif.pages[number].asarray()) for number in range(len(true))]
    levels = [
        np.ascontiguousarray(pixels[: level.shape[0], : level.shape[1]])
        for pixels, level in zip(decoded, true, strict=True)
    ]
    return SyntheticSlide(path, tuple(levels), 0.25, "philips")


def dicom(folder: Path, *, compressed: bool = True) -> SyntheticSlide:
    """A DICOM whole slide: one file per level in a folder of its own, opened by any of them."""
    inside = folder / ("dicom" if compressed else "dicom uncompressed")
    inside.mkdir()
    image = tissue(300, 420)
    levels = [
        _dicom_level(inside, pixels, number, compressed)
        for number, pixels in enumerate((image, halved(image)))
    ]
    return SyntheticSlide(inside / "level0.dcm", tuple(levels), 0.25, "dicom")


def _dicom_level(folder: Path, pixels: Pixels, number: int, compressed: bool) -> Pixels:
    """Write one level in tiles of 64 px; its pixels as Pillow decodes them again."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import (
        ExplicitVRLittleEndian,
        JPEGBaseline8Bit,
        VLWholeSlideMicroscopyImageStorage,
        generate_uid,
    )

    side, (height, width) = 64, pixels.shape[:2]
    rows, columns = -(-height // side), -(-width // side)
    padded = np.full((rows * side, columns * side, 3), 255, np.uint8)
    padded[:height, :width] = pixels
    frames, seen = [], padded.copy()
    for row in range(rows):
        for column in range(columns):
            box = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
            frame = padded[box].tobytes()
            if compressed:
                jpeg = io.BytesIO()
                Image.fromarray(padded[box]).save(jpeg, format="jpeg", quality=90, subsampling="4:2:2")
                frame = jpeg.getvalue()
                seen[box] = np.asarray(Image.open(jpeg))
            frames.append(frame)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["instance", str(number)])
    meta.TransferSyntaxUID = JPEGBaseline8Bit if compressed else ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    data.Modality = "SM"
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"] if number == 0 else [
        "DERIVED", "PRIMARY", "VOLUME", "RESAMPLED",
    ]  # fmt: skip
    data.SamplesPerPixel, data.PlanarConfiguration, data.PixelRepresentation = 3, 0, 0
    data.PhotometricInterpretation = "YBR_FULL_422" if compressed else "RGB"
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.Rows, data.Columns, data.NumberOfFrames = side, side, len(frames)
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows, data.TotalPixelMatrixFocalPlanes = (
        width,
        height,
        1,
    )
    data.DimensionOrganizationType = "TILED_FULL"
    spacing, shared = Dataset(), Dataset()
    spacing.PixelSpacing = [0.00025 * 2**number] * 2
    shared.PixelMeasuresSequence = [spacing]
    data.SharedFunctionalGroupsSequence = [shared]
    data.PixelData = encapsulate(frames) if compressed else b"".join(frames)
    data.save_as(folder / f"level{number}.dcm", enforce_file_format=True)
    return seen[:height, :width]


def dicom_uncompressed(folder: Path) -> SyntheticSlide:
    return dicom(folder, compressed=False)


VENDORS: dict[str, Callable[[Path], SyntheticSlide]] = {
    "Leica SCN": leica_scn,
    "Ventana BIF": ventana_bif,
    "MIRAX": mirax,
    "Philips TIFF": philips_tiff,
    "DICOM, JPEG": dicom,
    "DICOM, uncompressed": dicom_uncompressed,
}
