#!/usr/bin/env bash
# Prepares a machine for the Makefile's targets.
#
#   scripts/setup.sh packages        install the Debian packages that are missing, with apt-get
#   scripts/setup.sh python EXTRAS   create .venv and install sentei[EXTRAS] into it, in the versions of constraints.txt
#
# What is there already is left alone. PYTHON=/path/to/python3 chooses the interpreter (3.10 to 3.12).
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10 /usr/bin/python3}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

missing_packages() {
    local python
    command -v g++ >/dev/null || echo g++
    command -v make >/dev/null || echo make
    command -v perl >/dev/null || echo perl
    command -v riscv64-unknown-elf-gcc >/dev/null || echo gcc-riscv64-unknown-elf
    [[ -n ${SENTEI_FASHION_MNIST:-} || -e /usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz ]] ||
        echo dataset-fashion-mnist
    if python=$(find_python); then
        [[ -e .venv/bin/pip ]] || "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    else
        [[ -n ${PYTHON:-} ]] || echo python3 python3-venv
    fi
}

install_packages() {
    local packages=() runner=() remedy
    mapfile -t packages < <(missing_packages | tr ' ' '\n')
    [[ ${#packages[@]} -gt 0 ]] || return 0
    remedy="sudo apt-get update && sudo apt-get install --yes --no-install-recommends ${packages[*]}"
    command -v apt-get >/dev/null ||
        fail "these Debian packages are missing, and there is no apt-get to install them: ${packages[*]}" \
            "install what corresponds to them on this system (on Debian: $remedy)"
    if [[ $(id -u) -ne 0 ]]; then
        # sudo may ask for a password only where somebody can answer.
        command -v sudo >/dev/null && { [[ -t 0 ]] || sudo -n true 2>/dev/null; } ||
            fail "these Debian packages are missing: ${packages[*]}" "run this command, then try again: $remedy"
        runner=(sudo)
    fi
    echo "Installing Debian packages: ${packages[*]}"
    {
        "${runner[@]}" apt-get update &&
            "${runner[@]}" env DEBIAN_FRONTEND=noninteractive \
                apt-get install --yes --no-install-recommends "${packages[@]}"
    } || fail "apt-get failed; run this command, then try again: $remedy"
}

install_python() {
    local python
    if [[ ! -e .venv/bin/pip ]]; then
        python=$(find_python) ||
            fail "Python 3.10 to 3.12 must be installed, not ${PYTHON:-$(python3 --version 2>&1 || true)}" \
                "make PYTHON=/path/to/python3.11 chooses another one"
        echo "Creating .venv with $("$python" --version)"
        "$python" -m venv .venv ||
            fail "python3-venv must be installed: sudo apt-get install --yes python3-venv (then: rm -rf .venv)"
    fi
    echo "Installing Python packages into .venv: sentei[$1]"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$1]"
}

case ${1:-} in
    packages) install_packages ;;
    python) install_python "${2:?which extras?}" ;;
    *) fail "usage: scripts/setup.sh packages | python EXTRAS" ;;
esac
