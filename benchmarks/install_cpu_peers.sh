#!/bin/sh
# Environments with the libraries that benchmarks/cpu_peers.py measures: sh benchmarks/install_cpu_peers.sh [FOLDER]
#
# Each borrows torch and all else that it can from .venv (PYTHON names another interpreter), so that all libraries run on
# the same torch. Nothing is compiled. A library that cannot be had is named, and the others are installed.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv/bin/python}
folder=${1:-build/peers}
missing=""

install() { # NAME REQUIREMENTS STATEMENT: the statement tells whether it works
    echo "Installing $1 into $folder/$1 …"
    rm -rf "${folder:?}/$1"
    "$python" -m venv --without-pip "$folder/$1" &&
        "$python" -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
            > "$("$folder/$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth" &&
        "$python" -m pip --disable-pip-version-check -q --python "$folder/$1/bin/python" install --no-deps -r "$2" &&
        PYTHONPATH="$PWD" "$folder/$1/bin/python" -c "$3" || missing="$missing $1"
}

install open3d_ml benchmarks/pointpillars_peers/requirements_open3d_ml.txt \
    'import open3d.ml.torch; from open3d.ml.torch.ops import nms, voxelize'
install mmdetection3d tests/plugins/mmdet3d.txt \
    'from pcdet_ext.plugins.mmdet3d import prepare; prepare(); import mmdet3d.models'
for name in $missing; do
    echo "$name cannot be used here, see above; benchmarks/cpu_peers.py leaves it out" >&2
done
test -z "$missing"
