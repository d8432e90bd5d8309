#!/usr/bin/env bash
# Installs what tests make network namespaces and their firewalls with, where it is missing. Safe to run again.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
if command -v nft >/dev/null && command -v ip >/dev/null; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    exit 0 # only root makes namespaces: those tests say so
fi
if ! command -v apt-get >/dev/null; then
    echo "nft or ip is not installed, and tests of openrl up --netns need both: install nftables and iproute2," >&2
    echo "or those tests fail" >&2
    exit 0
fi
echo "installing nftables and iproute2 for the tests"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends nftables iproute2 >/dev/null
