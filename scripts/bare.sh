#!/usr/bin/env bash
# Runs `make demo` as a new user would: on a Debian of which there is nothing but git and make.
#
#   scripts/bare.sh REPORT RELEASE...      RELEASE is bookworm (Debian 12), trixie (Debian 13), ...
#
# For each release a minimal Debian is made in build/bare with debootstrap, the last commit is cloned into it, and `make
# demo` runs there in a chroot. Times and the logs' last lines go to REPORT (JSON). That needs root and debootstrap;
# where either is missing, this says so and leaves the report alone.
#
# How this machine reaches Debian's and Python's packages is passed on: name servers, certificates, proxies, pip's
# settings, and the local folders that they name.
set -euo pipefail
cd "$(dirname "$0")/.."

report=${1:?which report?}
shift
[[ $(id -u) -eq 0 ]] || { echo "skipped: a chroot can be made by root only"; exit 0; }
command -v debootstrap >/dev/null || { echo "skipped: debootstrap is not installed"; exit 0; }

mounted=()
leave() {
    local index
    for ((index = ${#mounted[@]} - 1; index >= 0; index--)); do umount "${mounted[index]}" || true; done
    mounted=()
}
trap leave EXIT

bind() { # SOURCE ROOT; to read only
    mkdir -p "$2$1"
    mount --bind "$1" "$2$1"
    mounted+=("$2$1")
    mount -o remount,bind,ro "$2$1"
}

remove() { # ROOT, but never what is mounted there
    if grep -qF " $1/" /proc/mounts; then
        echo "error: something is still mounted in $1; unmount it" >&2
        exit 1
    fi
    rm -rf "$1"
}

pip_settings() { env | grep -E '^PIP_' || true; python3 -m pip config list 2>/dev/null || true; }

passed_on() { # names of variables
    compgen -e | grep -iE '^(PIP_.*|(https?|ftp|no|all)_proxy|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE)$' || true
}

prepare() { # ROOT
    local root=$1 file folder
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf ~/.pip/pip.conf ~/.config/pip/pip.conf; do
        [[ -f $file ]] || continue
        mkdir -p "$root$(dirname "$file")"
        cp "$file" "$root$file"
    done
    while read -r folder; do
        [[ -d $folder ]] && bind "$folder" "$root"
    done < <(pip_settings | grep -oE "(file://)?/[^ '\",]+" | sed -E 's#^file://##; s#/simple/?$##' | sort -u)
    mount -t proc proc "$root/proc"
    mounted+=("$root/proc")
    mount --bind /dev "$root/dev"
    mounted+=("$root/dev")
}

demonstrate() { # RELEASE
    local root=$PWD/build/bare/$1 log=$PWD/build/bare/$1.log variables=() name began code=0
    remove "$root"
    mkdir -p "$root"
    echo "$1: debootstrap"
    debootstrap --variant=minbase --include=git,make,ca-certificates "$1" "$root" >"$log" 2>&1 ||
        { tail -n 5 "$log"; echo "error: debootstrap failed; see $log" >&2; return 1; }
    prepare "$root"
    git clone --quiet --no-hardlinks . "$root/sentei"
    while read -r name; do variables+=("$name=${!name}"); done < <(passed_on)
    echo "$1: make demo"
    began=$(date +%s)
    env -i HOME="$HOME" PATH=/usr/sbin:/usr/bin:/sbin:/bin "${variables[@]}" \
        chroot "$root" sh -c 'cd /sentei && make demo' >"$log" 2>&1 || code=$?
    seconds=$(($(date +%s) - began))
    python=$(chroot "$root" /sentei/.venv/bin/python --version 2>/dev/null || true)
    leave
    tail -n 3 "$log"
    RELEASE=$1 CODE=$code SECONDS_TAKEN=$seconds PYTHON_VERSION=$python LOG=$log REPORT=$report python3 - <<'PYTHON'
import json, os, subprocess
from pathlib import Path

path = Path(os.environ["REPORT"])
rows = json.loads(path.read_text()) if path.exists() else {}
rows[os.environ["RELEASE"]] = {
    "command": "make bare",
    "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
    "python": os.environ["PYTHON_VERSION"],
    "exit_code": int(os.environ["CODE"]),
    "seconds": int(os.environ["SECONDS_TAKEN"]),
    "last_lines": Path(os.environ["LOG"]).read_text().splitlines()[-8:],
}
path.write_text(json.dumps(dict(sorted(rows.items())), indent=2, ensure_ascii=False) + "\n")
PYTHON
    [[ $code -eq 0 ]] || { echo "error: make demo failed on $1; see $log" >&2; return 1; }
    remove "$root"
}

for release in "$@"; do demonstrate "$release"; done
