#!/usr/bin/env bash
# Makes .venv with every pinned package; CPU torch where no NVIDIA GPU is found. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv
torch_version=2.13.0
triton_version=3.6.0

find_python() {
    for candidate in "${PYTHON:-}" python3.12 python3.11 python3; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "OpenRL needs Python 3.11 or 3.12; none was found (set PYTHON=/path/to/python)" >&2
    return 1
}

install_torch() {
    if "$venv/bin/python" -c "import torch, sys; sys.exit(not torch.__version__.startswith('$torch_version'))" 2>/dev/null; then
        return
    fi
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
        "$venv/bin/pip" install -q "torch==$torch_version"
    else
        # A CPU build from the configured sources, or from the PyTorch index; never the CUDA build.
        "$venv/bin/pip" install -q "torch==$torch_version+cpu" 2>/dev/null ||
            "$venv/bin/pip" install -q "torch==$torch_version+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
        # A CPU build of torch comes without Triton; its interpreter runs the GPU kernels' tests.
        "$venv/bin/pip" install -q "triton==$triton_version" 2> >(grep -v "is ignored: it is neither" >&2 || true)
    fi
}

if [ ! -x "$venv/bin/pip" ]; then
    python=$(find_python)
    echo "making $venv with $python"
    "$python" -m venv "$venv"
fi
echo "installing pinned packages (a few minutes the first time)"
install_torch
"$venv/bin/pip" install -q -c constraints.txt -e ".[dev,examples]" 2> >(grep -v "is ignored: it is neither" >&2 || true)
touch "$venv/.ready"
