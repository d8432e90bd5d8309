#!/usr/bin/env bash
# Makes .venv-cookbook with the official SDK and tinker-cookbook 0.6.1, apart from the server's packages.
# The cookbook asks for a newer tml-renderers than PyPI has, so its needs are named here.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-cookbook
[ -e "$venv/.ready" ] && exit 0
.venv/bin/python -m venv "$venv"
version=$(.venv/bin/python -c 'import torch; print(torch.__version__)')
"$venv/bin/pip" install -q "torch==$version" 2> >(grep -v "is ignored: it is neither" >&2 || true)
"$venv/bin/pip" install -q --no-deps tinker-cookbook==0.6.1 2> >(grep -v "is ignored: it is neither" >&2 || true)
"$venv/bin/pip" install -q -c constraints.txt tinker==0.38.0 transformers aiohttp anyio blobfile chz cloudpickle datasets \
    huggingface_hub numpy pillow pydantic rich safetensors termcolor tiktoken tml-renderers tqdm math-verify pylatexenc \
    textarena pyrage 2> >(grep -v "is ignored: it is neither" >&2 || true)
touch "$venv/.ready"
