#!/bin/sh
# Run what needs machines of its own, in software emulation: all of it, or what is named.
#
#   tests/vm/run.sh [machine|install|cgroup2|cluster...]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
known='machine install cgroup2 cluster'
python=$root/.venv/bin/python

die() {
  echo "vm/run.sh: $*" >&2
  exit 1
}

# shellcheck source=deploy/lib/packages.sh
. "$root/deploy/lib/packages.sh"
# shellcheck source=deploy/lib/venv.sh
. "$root/deploy/lib/venv.sh"

# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $known
for name in "$@"; do
  case " $known " in
    *" $name "*) ;;
    *) die "nothing is named $name: there are $known" ;;
  esac
done
[ "$(id -u)" = 0 ] || die "images and machines need root: type it with sudo"
packages='python3-venv qemu-system-x86 qemu-utils mmdebstrap e2fsprogs openssh-client git'
packages="$packages util-linux iproute2 nftables"
case " $* " in
  *' cluster '*)
    packages="$packages vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients dnsmasq-base"
    packages="$packages iptables dmidecode rsync"
    ;;
esac
# shellcheck disable=SC2086
install_packages $packages
make_venv test

run() {
  case $1 in
    machine | install) "$python" -m pytest -q "tests/vm/test_$1.py" ;;
    *) "$python" -m "tests.vm.$1" ;;
  esac
}

failed=
summary=
for name in "$@"; do
  printf '\n== vm: %s\n' "$name"
  began=$(date +%s)
  outcome=passed
  # In a subshell, so that a cd or an exit in there ends this one alone.
  (run "$name") || {
    outcome=FAILED
    failed="$failed $name"
  }
  summary="$summary$(printf '%-12s %s in %s s' "$name" "$outcome" $(($(date +%s) - began)))
"
done
printf '\n%s' "$summary"
[ -z "$failed" ] || die "failed:$failed"
