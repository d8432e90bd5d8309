#!/usr/bin/env bash
# Makes .venv-cookbook with the official SDK and tinker-cookbook 0.6.1, apart from the server's packages, and
# .cookbook-0.5.5 with the sources of an older one and of the SDK of its days. The cookbook asks for a newer
# tml-renderers than PyPI has, so its needs are named here.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-cookbook
older=.cookbook-0.5.5
install() { "$venv/bin/pip" install -q "$@" 2> >(grep -v "is ignored: it is neither" >&2 || true); }
if [ ! -e "$venv/.ready" ]; then
    .venv/bin/python -m venv "$venv"
    version=$(.venv/bin/python -c 'import torch; print(torch.__version__)')
    install "torch==$version"
    install --no-deps tinker-cookbook==0.6.1
    install -c constraints.txt tinker==0.38.0 transformers aiohttp anyio blobfile chz cloudpickle datasets \
        huggingface_hub numpy pillow pydantic rich safetensors termcolor tiktoken tml-renderers tqdm math-verify \
        pylatexenc textarena pyrage
    touch "$venv/.ready"
fi
if [ ! -e "$older/.ready" ]; then
    install --no-deps --target "$older" tinker-cookbook==0.5.5
    touch "$older/.ready"
fi
if [ ! -e "$older/sdk/.ready" ]; then
    install --no-deps --target "$older/sdk" tinker==0.25.0
    touch "$older/sdk/.ready"
fi
