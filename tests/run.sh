#!/bin/sh
# Install what the tests need and run them: all layers but vm, or those named.
#
#   tests/run.sh [LAYER...]    lint unit scenarios simulation integration kernel e2e vm
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
usual='lint unit scenarios simulation integration kernel e2e'
layers="$usual vm"
bin=$root/.venv/bin

die() {
  echo "run.sh: $*" >&2
  exit 1
}

# shellcheck source=deploy/lib/packages.sh
. "$root/deploy/lib/packages.sh"
# shellcheck source=deploy/lib/venv.sh
. "$root/deploy/lib/venv.sh"

# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $usual
for layer in "$@"; do
  case " $layers " in
    *" $layer "*) ;;
    *) die "no layer $layer: there are $layers" ;;
  esac
done
[ "$(id -u)" = 0 ] || die "namespaces, cgroups and mounts need root: type it with sudo"
packages='python3-venv etcd-server docker-registry prometheus slirp4netns nftables iproute2'
packages="$packages util-linux busybox-static"
case " $* " in
  *' lint '*) packages="$packages shellcheck" ;;
esac
# shellcheck disable=SC2086
install_packages $packages
make_venv test

stubs_are_fresh() {
  fresh=$(mktemp -d)
  code=0
  proto/regenerate.sh "$fresh" || code=1
  for file in $(cd "$fresh" && find . -type f -not -name '*.pyc'); do
    diff -u "proto/$file" "$fresh/$file" || code=1
  done
  rm -rf "$fresh"
  [ $code = 0 ] || echo 'the stubs are stale: run proto/regenerate.sh' >&2
  return $code
}

lint() {
  code=0
  "$bin/ruff" check . || code=1
  "$bin/ruff" format --check . || code=1
  stubs_are_fresh || code=1
  "$bin/mypy" || code=1
  "$bin/lint-imports" || code=1
  # shellcheck disable=SC2046
  shellcheck -x $(git ls-files '*.sh' | grep -v '^deploy/lib/') || code=1
  return $code
}

run_layer() {
  case $1 in
    lint) lint ;;
    # Some are of one version of cgroups or of the kernel, and chosen when they are found.
    kernel) "$bin/python" -m pytest -q --at-least 250 tests/kernel ;;
    # Installing machines and having three of them takes longer than all layers: by tests/vm/run.sh.
    vm) tests/vm/run.sh cgroup2 ;;
    *) "$bin/python" -m pytest -q "tests/$1" ;;
  esac
}

failed=
summary=
for layer in "$@"; do
  printf '\n== %s\n' "$layer"
  began=$(date +%s)
  outcome=passed
  # In a subshell, so that a cd or an exit in there ends the layer alone.
  (run_layer "$layer") || {
    outcome=FAILED
    failed="$failed $layer"
  }
  summary="$summary$(printf '%-12s %s in %s s' "$layer" "$outcome" $(($(date +%s) - began)))
"
done
printf '\n%s' "$summary"
[ -z "$failed" ] || die "failed:$failed"
