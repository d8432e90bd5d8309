#!/usr/bin/env bash
# Installs promtool, which tests the alert rules, where it is missing. Safe to run again.
set -euo pipefail

if command -v promtool >/dev/null; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "promtool is not installed, and the tests of the alert rules need it: install the package that has it" >&2
    echo "(Debian, Ubuntu: run scripts/promtool.sh as root), or those tests fail" >&2
    exit 0
fi
echo "installing promtool for the tests"
# The package unpacked where it stands, not installed: its server would start and take memory.
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
chmod 755 "$directory"
cd "$directory"
apt-get update -qq
apt-get download -qq -o APT::Sandbox::User=root prometheus >/dev/null
dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool
install -m 755 usr/bin/promtool /usr/local/bin/promtool
