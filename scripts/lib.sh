#!/usr/bin/env bash
# What the scripts share: find a Python, make .venv in the checkout, keep it at the pinned packages.
# Sourced by scripts/{demo,test,check,lock}; runs on bash 3.2 (macOS) and later.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV="$ROOT/.venv"
STAMP="$VENV/.fastgen-stamp"
LOCK="$ROOT/.venv.lock"

# Many containers set this; every start would then compile jax and pytest's plugins from source.
unset PYTHONDONTWRITEBYTECODE

say() { printf '[fastgen] %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# --- finding a Python --------------------------------------------------------------------------

# Prints "3.12 /path/to/python" where the interpreter $1 can carry the project; fails where not.
probe_python() {
  "$1" -I -c '
import sys, sysconfig
import ensurepip, venv
fits = sys.implementation.name == "cpython" and sys.version_info >= (3, 12)
if not fits or sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise SystemExit(1)
print("%d.%d" % sys.version_info[:2], sys.executable)
' 2>/dev/null </dev/null
}

# Prints the paths worth probing, the likeliest first. Looks only at this machine.
candidate_pythons() {
  local name path prefix
  for name in python3.13 python3.12 python3 python python3.14; do
    type -aP "$name" || true
  done
  for prefix in "${PYENV_ROOT:-}" "${HOME:-}/.pyenv"; do
    for path in "$prefix"/versions/3.*/bin/python; do echo "$path"; done
  done
  echo "${CONDA_PREFIX:-}/bin/python"
  for prefix in "${HOME:-}"/{miniconda3,anaconda3,miniforge3,mambaforge,micromamba,.conda} \
    /opt/{conda,miniconda3,anaconda3,miniforge3}; do
    for path in "$prefix/bin/python" "$prefix"/envs/*/bin/python; do echo "$path"; done
  done
  if command -v uv >/dev/null; then
    uv python find --no-project --no-python-downloads '>=3.12' 2>/dev/null || true
  fi
  for path in "${HOME:-}"/.local/share/uv/python/cpython-3.*/bin/python3; do echo "$path"; done
  for prefix in /opt/homebrew /usr/local /home/linuxbrew/.linuxbrew; do
    for name in 3.13 3.12 3.14; do echo "$prefix/opt/python@$name/bin/python$name"; done
  done
  for name in 3.13 3.12 3.14; do
    echo "/usr/local/bin/python$name"
    echo "/usr/bin/python$name"
    echo "/Library/Frameworks/Python.framework/Versions/$name/bin/python$name"
  done
}

# Prints the path of a Python >= 3.12. 3.12 and 3.13 (which the pins are tested with) come before
# anything newer. $FASTGEN_PYTHON, where set, is the only candidate.
find_python() {
  local candidate found newer=""
  if [ -n "${FASTGEN_PYTHON:-}" ]; then
    found=$(probe_python "$FASTGEN_PYTHON") ||
      die "FASTGEN_PYTHON=$FASTGEN_PYTHON is not a CPython >= 3.12 with the venv module;" \
        "name another, or unset it to search this machine"
    echo "${found#* }"
    return
  fi
  while IFS= read -r candidate; do
    case "$candidate" in "$VENV"/*) continue ;; esac # never build .venv on itself
    [ -x "$candidate" ] || continue
    found=$(probe_python "$candidate") || continue
    case "$found" in
      "3.12 "* | "3.13 "*)
        echo "${found#* }"
        return
        ;;
    esac
    [ -n "$newer" ] || newer=${found#* }
  done < <(candidate_pythons)
  if [ -n "$newer" ]; then
    echo "$newer"
    return
  fi
  say "error: no Python >= 3.12 with the venv module was found."
  say "Looked at \$FASTGEN_PYTHON, the PATH, pyenv, conda, uv, Homebrew and the system."
  say "Install one, then run this again:"
  say "  Debian, Ubuntu   sudo apt install python3.12 python3.12-venv"
  say "  Fedora           sudo dnf install python3.12"
  say "  macOS            brew install python@3.12"
  say "  anywhere         uv python install 3.12   or   pyenv install 3.12"
  say "or name it: FASTGEN_PYTHON=/path/to/python3.12"
  return 1
}

# --- the virtual environment -------------------------------------------------------------------

# Is .venv whole, of this place, new enough, and made by $FASTGEN_PYTHON where that is set?
venv_fits() {
  [ -f "$VENV/pyvenv.cfg" ] && [ -x "$VENV/bin/python" ] || return 1
  local place facts base
  if [ -f "$STAMP" ]; then # a checkout that was moved left the old path all over its .venv
    IFS=' ' read -r _ place <"$STAMP" || return 1
    [ "$place" = "$ROOT" ] || return 1
  fi
  facts=$("$VENV/bin/python" -I -S -c '
import sys
print(sys.version_info >= (3, 12), sys.base_prefix)
' 2>/dev/null </dev/null) || return 1
  [ "${facts%% *}" = True ] || return 1
  if [ -n "${FASTGEN_PYTHON:-}" ]; then
    base=$("$FASTGEN_PYTHON" -I -S -c 'import sys; print(sys.base_prefix)' 2>/dev/null) || return 1
    [ "$base" = "${facts#* }" ] || return 1
  fi
}

ensure_venv() {
  if venv_fits; then return; fi
  local python
  python=$(find_python) || exit 1
  if [ -L "$VENV" ]; then
    die ".venv is a link to another place and holds no Python that fits; remove it and run again"
  elif [ -e "$VENV" ]; then
    say ".venv is broken, of another place or of another Python; making it anew"
    rm -rf "$VENV"
  fi
  say "making .venv with $python"
  "$python" -m venv "$VENV" || die "python -m venv failed; is there space on the disk?"
}

pip_install() { "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$@"; }

# Puts the pinned uv into .venv; fails quietly where it cannot be had.
ensure_uv() {
  local want have
  want=$(sed -n 's/^uv==\([^ ;]*\).*/\1/p' "$ROOT/requirements/uv.txt")
  have=$("$VENV/bin/uv" --version 2>/dev/null) || have=""
  case "$have" in "uv $want" | "uv $want "*) return ;; esac
  pip_install --no-deps --require-hashes -r "$ROOT/requirements/uv.txt" >/dev/null 2>&1
}

# uv_install ARGS: installs into .venv with uv; the bar only where somebody watches.
uv_install() {
  local quiet=--quiet
  if [ -t 2 ]; then quiet=""; fi
  UV_PYTHON_DOWNLOADS=never "$VENV/bin/uv" pip install --compile-bytecode --python "$VENV/bin/python" \
    ${quiet:+"$quiet"} "$@"
}

# What the stamp of an up-to-date environment of kind $1 holds, to the letter.
wanted_stamp() {
  printf '%s %s\n' "$1" "$ROOT"
  cat "$ROOT/requirements/uv.txt" "$ROOT/requirements/$1.txt" "$ROOT/pyproject.toml"
  # The native kernels are compiled when the project is installed. A compiler that comes or goes
  # changes what there is to install too.
  cat "$ROOT"/pallas_kernels/*/*.{cc,h} 2>/dev/null | cksum
  echo "compiler ${CXX:-} $(type -P c++ g++ clang++ || true)"
}

# dev contains base, so an up-to-date dev environment serves base too.
is_current() {
  local kind
  for kind in "$1" dev; do
    if wanted_stamp "$kind" | cmp -s - "$STAMP"; then return; fi
  done
  return 1
}

install_packages() {
  local requirements="$ROOT/requirements/$1.txt"
  rm -f "$STAMP"
  say "installing $(grep -c '^[a-z].*==' "$requirements") pinned packages (requirements/$1.txt);" \
    "this takes a minute the first time"
  # Without build isolation the build backend is the pinned one, and nothing else is fetched.
  if ! ensure_uv || ! uv_install --require-hashes -r "$requirements" ||
    ! uv_install --no-deps --no-build-isolation -e "$ROOT"; then
    say "uv could not do it; trying pip, which is slower"
    if ! pip_install --no-deps --require-hashes -r "$requirements" ||
      ! pip_install --no-deps --no-build-isolation -e "$ROOT"; then
      die "the packages could not be installed; the lines above say why"
    fi
  fi
  wanted_stamp "$1" >"$STAMP"
}

# Two scripts started at once must not build one environment together: the second waits.
with_lock() {
  local owner waited=0
  until mkdir "$LOCK" 2>/dev/null; do
    [ -w "$ROOT" ] || die "cannot write to $ROOT"
    if [ "$waited" -eq 0 ]; then say "another script is setting up .venv; waiting for it"; fi
    sleep 1
    waited=$((waited + 1))
    owner=$(cat "$LOCK/pid" 2>/dev/null || true)
    if [ -d "$LOCK" ] && ! kill -0 "${owner:-none}" 2>/dev/null; then
      say "that set-up was cut off; taking over"
      rm -rf "$LOCK"
    fi
  done
  echo $$ >"$LOCK/pid"
  trap 'rm -rf "$LOCK"' EXIT
  "$@"
  rm -rf "$LOCK"
  trap - EXIT
}

build_environment() {
  ensure_venv
  if is_current "$1"; then return; fi # another script did it while this one waited
  install_packages "$1"
}

# setup base|dev: makes .venv ready, and costs next to nothing where it is.
setup() {
  if is_current "$1" && venv_fits; then return; fi
  with_lock build_environment "$1"
}

# --- the CUDA compiler -------------------------------------------------------------------------

# Puts the pinned CUDA compiler into a folder of .venv of its own, which only compiling processes
# see: in every other one jax would find the plugin, miss the driver and print a traceback. It is
# large (0.7 GB) and not there for every machine, so a failure costs one line and no more.
setup_cuda_compiler() {
  local requirements="$ROOT/requirements/aot.txt" folder="$VENV/cuda-compiler"
  case "$(uname -s) $(uname -m)" in
    "Linux x86_64") ;;
    *)
      say "no CUDA compiler on $(uname -s) $(uname -m); tests that compile for GPUs are skipped"
      return
      ;;
  esac
  if cmp -s "$requirements" "$folder/requirements.txt"; then return; fi
  with_lock build_cuda_compiler "$requirements" "$folder"
}

build_cuda_compiler() {
  if cmp -s "$1" "$2/requirements.txt"; then return; fi # another script did it meanwhile
  say "installing the CUDA compiler (requirements/aot.txt, 0.7 GB; no GPU is needed)"
  rm -rf "$2"
  if { ensure_uv && uv_install --no-deps --require-hashes --target "$2" -r "$1" 2>/dev/null; } ||
    pip_install --no-deps --require-hashes --target "$2" -r "$1" >/dev/null 2>&1; then
    cp "$1" "$2/requirements.txt"
  else
    rm -rf "$2"
    say "the CUDA compiler can't be had here; tests that compile for GPUs are skipped"
  fi
}
