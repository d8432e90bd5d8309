#!/usr/bin/env bash
# Installs the browser that tests of pages drive, where it is missing. Safe to run again.
set -euo pipefail

if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "Chromium is not installed, and the tests of pages need it: install the package that has it" >&2
    echo "(Debian: run scripts/chromium.sh as root), or those tests fail" >&2
    exit 0
fi
echo "installing Chromium for the tests"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
