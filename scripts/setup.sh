#!/usr/bin/env bash
# Prepares a machine for the Makefile's targets.
#
#   scripts/setup.sh packages        install the Debian packages that are missing, with apt-get
#   scripts/setup.sh python EXTRAS   create .venv and install sentei[EXTRAS] into it, in the versions of constraints.txt
#
# What is there already and works is left alone. PYTHON=/path/to/python3 chooses the interpreter (3.10 to 3.13).
set -euo pipefail
cd "$(dirname "$0")/.."

PIP_LOG=.venv/pip.log

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

# Programs are tested by using them: a minimal Debian has a perl without the modules that Verilator's script needs.

works_cxx() { echo 'int main() { return 0; }' | g++ -x c++ -shared -fPIC -o /dev/null - 2>/dev/null; }
works_make() { make --version >/dev/null 2>&1; }
works_perl() { perl -MFindBin -MGetopt::Long -MIO::File -MPod::Usage -e 1 2>/dev/null; }
works_riscv() {
    echo 'int main() { return 0; }' |
        riscv64-unknown-elf-gcc -xc -march=rv32i -mabi=ilp32 -nostdlib -ffreestanding -c -o /dev/null - 2>/dev/null &&
        riscv64-unknown-elf-objcopy --version >/dev/null 2>&1
}
works_python() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3}; do
        if works_python "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

missing_packages() {
    local python
    works_cxx || echo g++
    works_make || echo make
    works_perl || echo perl
    works_riscv || echo gcc-riscv64-unknown-elf
    [[ -n ${SENTEI_FASHION_MNIST:-} || -e /usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz ]] ||
        echo dataset-fashion-mnist
    if python=$(find_python); then
        [[ -e .venv/bin/pip ]] || "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    else
        [[ -n ${PYTHON:-} ]] || echo python3 python3-venv
    fi
}

install_packages() {
    local packages=() runner=() command
    mapfile -t packages < <(missing_packages | tr ' ' '\n')
    [[ ${#packages[@]} -gt 0 ]] || return 0
    command="apt-get update && apt-get install --yes --no-install-recommends ${packages[*]}"
    command -v apt-get >/dev/null ||
        fail "these Debian packages are missing, and there is no apt-get to install them: ${packages[*]}" \
            "install what corresponds to them on this system (on Debian, as root: $command)"
    if [[ $(id -u) -ne 0 ]]; then
        # sudo may ask for a password only where somebody can answer.
        command -v sudo >/dev/null && { [[ -t 0 ]] || sudo -n true 2>/dev/null; } ||
            fail "these Debian packages are missing: ${packages[*]}" \
                "have an administrator run this command as root, then try again: $command"
        runner=(sudo)
    fi
    echo "Installing Debian packages: ${packages[*]}"
    {
        "${runner[@]}" apt-get update &&
            "${runner[@]}" env DEBIAN_FRONTEND=noninteractive \
                apt-get install --yes --no-install-recommends "${packages[@]}"
    } || fail "apt-get failed; run this command as root, then try again: $command"
}

# Runs pip with its output in a log, and shows how far it is.
run_pip() {
    local pip elapsed=0 shown=0 found
    .venv/bin/python -m pip --disable-pip-version-check install --progress-bar off "$@" >>"$PIP_LOG" 2>&1 &
    pip=$!
    while kill -0 "$pip" 2>/dev/null; do
        sleep 1
        elapsed=$((elapsed + 1))
        found=$(grep -cE '^ *(Downloading|Using cached|Obtaining|Processing) ' "$PIP_LOG" || true)
        if [[ -t 1 ]]; then
            printf '\r  %s packages fetched, %s s ' "$found" "$elapsed"
        elif ((elapsed - shown >= 20)); then
            shown=$elapsed
            echo "  $found packages fetched, $elapsed s"
        fi
    done
    [[ ! -t 1 ]] || printf '\r\033[K'
    if ! wait "$pip"; then
        grep -E '^ *(ERROR|error)' "$PIP_LOG" | tail -n 5 >&2 || tail -n 5 "$PIP_LOG" >&2
        fail "pip failed after $elapsed s; all that it said is in $PIP_LOG"
    fi
}

install_python() {
    local python
    if [[ ! -e .venv/bin/pip ]]; then
        python=$(find_python) ||
            fail "Python 3.10 to 3.13 must be installed, not ${PYTHON:-$(python3 --version 2>&1 || true)}" \
                "make PYTHON=/path/to/python3.12 chooses another one"
        echo "Creating .venv with $("$python" --version)"
        "$python" -m venv .venv ||
            fail "python3-venv must be installed: sudo apt-get install --yes python3-venv (then: rm -rf .venv)"
    fi
    echo "Installing Python packages into .venv: sentei[$1]"
    : >"$PIP_LOG"
    run_pip --constraint constraints.txt --editable ".[$1]"
    if .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then
        # The real pynq, without its pin of NumPy: pyproject.toml says why.
        run_pip --constraint constraints.txt --no-deps pynq pynqutils
    fi
}

case ${1:-} in
    packages) install_packages ;;
    python) install_python "${2:?which extras?}" ;;
    *) fail "usage: scripts/setup.sh packages | python EXTRAS" ;;
esac
