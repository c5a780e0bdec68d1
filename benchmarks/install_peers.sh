#!/bin/sh
# Make a virtual environment with metarun and the peers that benchmarks/ measures it beside.
#   sh benchmarks/install_peers.sh [FOLDER, by default .venv-peers]
# Needs Python 3.11 to 3.13 and a package index. Peers never bring a torch of their own.
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv-peers}
pip="$venv/bin/pip --quiet --disable-pip-version-check"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
$pip install -c constraints.txt torch==2.13.0 -e .
$pip install --no-deps -r benchmarks/requirements.txt

# learn2learn's setup needs numpy, setuptools and an old Cython even to be downloaded. Its python
# sources need nothing compiled, so only MAML and what it imports are unpacked; without the
# packages' own __init__ files, which import the rest, they are namespace packages.
$pip install setuptools wheel 'Cython<3'
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
$pip download --no-deps --no-build-isolation --no-binary :all: -d "$sources" learn2learn==0.2.0
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$site/learn2learn"
tar -xzf "$sources"/learn2learn-0.2.0.tar.gz -C "$site" --strip-components 1 \
  learn2learn-0.2.0/learn2learn/algorithms/maml.py \
  learn2learn-0.2.0/learn2learn/algorithms/base_learner.py \
  learn2learn-0.2.0/learn2learn/utils/__init__.py
"$venv/bin/python" -m benchmarks --list
