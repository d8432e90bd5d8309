#!/bin/sh
# Generate tinker_pb2.py and its type stub from tinker.proto.
# grpcio-tools 1.76 on purpose: generated code loads with its own protobuf release (6.31) and later ones only.
set -eu
cd "$(dirname "$0")/.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet "grpcio-tools==1.76.0"
"$venv/bin/python" -m grpc_tools.protoc -I src --python_out=src --pyi_out=src src/openrl/protocol/tinker.proto
sed -i '1i # pyright: basic' src/openrl/protocol/tinker_pb2.pyi
