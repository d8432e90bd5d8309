#!/usr/bin/env bash
# Fetches checks of custom resources that are generated from their definitions (MIT), where they are missing. Safe to
# run again. LeaderWorkerSet has no such package.
set -euo pipefail
cd "$(dirname "$0")/.."
target=.venv/crds
packages=(@kubernetes-models/gateway-api@2.0.0 @kubernetes-models/keda@2.0.0 @kubernetes-models/prometheus-operator@6.0.0)

if [ "$(cat "$target/.ready" 2>/dev/null)" = "${packages[*]}" ]; then
    exit 0
fi
if ! command -v npm >/dev/null; then
    echo "npm is not installed: custom resources of the chart are not checked against their definitions" >&2
    exit 0
fi
echo "fetching checks of custom resources for the tests"
mkdir -p "$target"
npm install --prefix "$target" --silent --no-save --no-audit --no-fund --ignore-scripts "${packages[@]}" 2>/dev/null
echo "${packages[*]}" >"$target/.ready"
