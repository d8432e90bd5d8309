#!/usr/bin/env bash
# Installs the PostgreSQL server that tests and benchmarks run for themselves, where it is missing. Safe to run again.
set -euo pipefail

if ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "PostgreSQL is not installed, and tests of the store need it: install the package that has initdb" >&2
    echo "(Debian, Ubuntu: run scripts/postgres.sh as root), or those tests fail" >&2
    exit 0
fi
echo "installing PostgreSQL for the tests"
export DEBIAN_FRONTEND=noninteractive
# Tests start servers of their own; the package's would only take memory.
mkdir -p /etc/postgresql-common/createcluster.d
echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/openrl.conf
apt-get update -qq
apt-get install -y -qq --no-install-recommends postgresql >/dev/null
