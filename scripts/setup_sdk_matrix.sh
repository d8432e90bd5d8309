#!/usr/bin/env bash
# Makes .venvs-sdk/<version> for each SDK version of tests/sdk_matrix/versions.txt, and for the newest one on PyPI.
# All these versions ask for the same packages, which are installed once, without tinker, in .venvs-sdk/needs; a venv
# holds its own SDK and a path to them. transformers and torch are left out: only tokenizers and custom losses use them.
set -euo pipefail
cd "$(dirname "$0")/.."
root=.venvs-sdk
python=.venv/bin/python
quiet() { "$@" 2> >(grep -v -e "is ignored: it is neither" -e "experimental command" >&2 || true); }

make_venv() {
    local venv=$root/$1
    [ -e "$venv/.ready" ] && return
    echo "making $venv"
    "$python" -m venv --without-pip --clear "$venv"
    quiet "$python" -m pip --python "$venv/bin/python" install -q --no-deps --no-compile "tinker==$1"
    realpath "$root/needs" > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/needs.pth"
    touch "$venv/.ready"
}

mkdir -p "$root"
if [ ! -e "$root/needs/.ready" ]; then
    echo "installing what every SDK version needs"
    quiet "$python" -m pip install -q --target "$root/needs" --upgrade -c constraints.txt "anyio<5" click "distro<2" \
        "httpx[http2]<1" numpy orjson protobuf "pydantic<3" pyqwest rich sniffio "typing-extensions<5" zstandard
    touch "$root/needs/.ready"
fi
while read -r version; do
    make_venv "$version"
done < tests/sdk_matrix/versions.txt

# Offline, the newest version that is known is the newest there is.
newest=$(quiet "$python" -m pip index versions tinker | sed -n 's/^tinker (\(.*\))$/\1/p' || true)
newest=${newest:-$(tail -n 1 tests/sdk_matrix/versions.txt)}
make_venv "$newest"
echo "$newest" > "$root/newest"
