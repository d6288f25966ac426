#!/bin/sh
# Run one benchmark of tests/benchmarks: a table with the machine, and last one line of JSON.
#
#   tests/bench.sh NAME
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

die() {
  echo "bench.sh: $*" >&2
  exit 1
}

# shellcheck source=deploy/lib/packages.sh
. "$root/deploy/lib/packages.sh"
# shellcheck source=deploy/lib/venv.sh
. "$root/deploy/lib/venv.sh"

name=${1:-}
if [ -z "$name" ] || [ ! -f "tests/benchmarks/$name.py" ]; then
  known=$(find tests/benchmarks -name '*.py' -not -name '__init__.py' -exec basename {} .py \; | sort)
  # shellcheck disable=SC2086
  die "no benchmark ${name:-is named}: there are" $known
fi
shift
install_packages python3-venv etcd-server docker-registry slirp4netns nftables iproute2 util-linux \
  busybox-static crun
make_venv test
exec "$root/.venv/bin/python" -m "tests.benchmarks.$name" "$@"
