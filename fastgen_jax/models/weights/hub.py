"""Checkpoints of the Hugging Face Hub, by repository id."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fastgen_jax.errors import ConfigError

# Any kind of tokenizer, with what says where its answers end.
TOKENIZER_FILES: tuple[str, ...] = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
# What the engine reads: weights, their index, descriptions, and the tokenizer.
NEEDED_FILES: tuple[str, ...] = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    *TOKENIZER_FILES,
)


class Snapshot(Protocol):
    """Downloads a repository's files, as huggingface_hub.snapshot_download does."""

    def __call__(
        self,
        repo_id: str,
        *,
        cache_dir: Path | None,
        allow_patterns: list[str],
        local_files_only: bool,
    ) -> str: ...


def fetch_from_hub(
    repo_id: str, *, cache_dir: Path | None = None, snapshot: Snapshot | None = None
) -> Path:
    """Return a directory with the repository's files, downloading those that aren't kept yet.

    Without a network, or with HF_HUB_OFFLINE set, the files kept by an earlier download are used.
    ``cache_dir`` is huggingface_hub's own if None. Raises ConfigError when the files can neither
    be downloaded nor found.
    """
    snapshot = _hub_snapshot if snapshot is None else snapshot
    patterns = list(NEEDED_FILES)
    # Any of its exceptions, and of the HTTP client's below it, means the same to the user.
    try:
        found = snapshot(
            repo_id, cache_dir=cache_dir, allow_patterns=patterns, local_files_only=False
        )
    except Exception as online_error:
        try:
            found = snapshot(
                repo_id, cache_dir=cache_dir, allow_patterns=patterns, local_files_only=True
            )
        except Exception:
            raise _unavailable(repo_id, online_error) from online_error
    directory = Path(found)
    if not (directory / "config.json").is_file():
        raise ConfigError(
            "the repository has no config.json",
            field="model",
            value=repo_id,
            remedy="name a repository with safetensors weights in transformers' format; of a "
            "GGUF repository, download the .gguf file and give its path",
        )
    return directory


def _hub_snapshot(
    repo_id: str, *, cache_dir: Path | None, allow_patterns: list[str], local_files_only: bool
) -> str:
    # Imported here, as local files need nothing of it.
    from huggingface_hub import snapshot_download

    return snapshot_download(
        repo_id,
        cache_dir=cache_dir,
        allow_patterns=allow_patterns,
        local_files_only=local_files_only,
    )


def _unavailable(repo_id: str, error: Exception) -> ConfigError:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return ConfigError(
        f"the repository can neither be downloaded nor found among earlier downloads ({reason})",
        field="model",
        value=repo_id,
        remedy="check the name, the network and, for a private repository, `hf auth login`; or "
        "download it elsewhere with `hf download` and give the directory's path",
    )
