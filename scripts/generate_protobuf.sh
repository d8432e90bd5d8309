#!/bin/sh
# Generate the *_pb2.py modules and their type stubs from the .proto files.
# grpcio-tools 1.76 on purpose: generated code loads with its own protobuf release (6.31) and later ones only.
set -eu
cd "$(dirname "$0")/.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet "grpcio-tools==1.76.0"
for name in tinker perfetto; do
    "$venv/bin/python" -m grpc_tools.protoc -I src --python_out=src --pyi_out=src "src/openrl/protocol/$name.proto"
    sed -i '1i # pyright: basic' "src/openrl/protocol/${name}_pb2.pyi"
done
