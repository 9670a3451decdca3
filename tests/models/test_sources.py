"""What a user may call a model, and what each name leads to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.sources import default_cache_dir, resolve_model
from fastgen_jax.models.weights.builtin import BUILTIN_MODELS


def test_directory_and_gguf_file_are_taken_as_they_are(tmp_path):
    file = tmp_path / "model.gguf"
    file.touch()
    for path in (tmp_path, file):
        assert resolve_model(path) == path
        assert resolve_model(str(path)) == path


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.gguf").touch()
    assert resolve_model("~/model.gguf") == tmp_path / "model.gguf"


def test_existing_directory_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve_model("org/name") == Path("org/name")


@pytest.mark.parametrize(
    "model",
    [
        "no-such-model",
        "smollm2",
        "nowhere/model.gguf",
        "./org/name",
        "/nowhere/name",
        "a/b/c",
        "org/",
        "org/na me",
        Path("org/name"),
    ],
)
def test_unknown_model_is_refused_with_the_accepted_forms(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"smollm2-135m-instruct.*\.gguf.*org/name") as caught:
        resolve_model(model)
    assert caught.value.value == str(model)


def test_empty_name_is_refused():
    with pytest.raises(ConfigError, match="model=''"):
        resolve_model("")


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "model.bin"
    file.touch()
    with pytest.raises(ConfigError, match=r"isn't a \.gguf file"):
        resolve_model(file)


def test_cache_directory_follows_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ending = Path("fastgen_jax", "models")
    assert default_cache_dir({}) == tmp_path / ".cache" / ending
    assert default_cache_dir({"XDG_CACHE_HOME": "relative"}) == tmp_path / ".cache" / ending
    assert default_cache_dir({"XDG_CACHE_HOME": str(tmp_path / "x")}) == tmp_path / "x" / ending


@pytest.mark.real_model
def test_kept_builtin_is_found_without_downloading(smollm2_gguf, tmp_path, monkeypatch):
    builtin = BUILTIN_MODELS[0]
    shutil.copy(smollm2_gguf, tmp_path / builtin.file_name)
    monkeypatch.setenv("PATH", "")
    found = resolve_model(builtin.name, cache_dir=tmp_path, progress=False)
    assert found == tmp_path / builtin.file_name
    assert (tmp_path / f"{builtin.file_name}.json").exists()
