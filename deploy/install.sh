#!/bin/sh
# Install Estiba on this machine, bring it to the version of this folder, or remove it.
#
#   install.sh --role control-plane [--advertise-addr ADDRESS] [--wheels DIR]
#   install.sh --role agent [--join ADDRESS] [--advertise-addr ADDRESS] [--wheels DIR]
#   install.sh --uninstall
#
#   --join ADDRESS          join the cluster whose control plane is at ADDRESS, by the token in the
#                           environment variable ESTIBA_JOIN_TOKEN, or given by one of
#   --token-file FILE       a file that holds the token
#   --token TOKEN           the token itself, which your shell will remember
#   --advertise-addr ADDRESS  where other machines reach this one
#   --wheels DIR            take the Python packages from a folder that deploy/wheels.sh filled
#
# May be run again at any time: it does what is missing, and restarts only what has changed. No
# container is touched.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)

action=install
role=
join=
token=
advertise=
wheels=

die() {
  echo "install: $*" >&2
  exit 1
}

step() {
  printf '== %s\n' "$*" >&2
}

# Say what was changed, for the last line tells whether anything was.
note() {
  echo "$*" >&2
  changed=yes
}
changed=

# shellcheck source=deploy/lib/packages.sh
. "$root/deploy/lib/packages.sh"
# shellcheck source=deploy/lib/kernel.sh
. "$root/deploy/lib/kernel.sh"
# shellcheck source=deploy/lib/preflight.sh
. "$root/deploy/lib/preflight.sh"
# shellcheck source=deploy/lib/users.sh
. "$root/deploy/lib/users.sh"
# shellcheck source=deploy/lib/wheel.sh
. "$root/deploy/lib/wheel.sh"
# shellcheck source=deploy/lib/programs.sh
. "$root/deploy/lib/programs.sh"
# shellcheck source=deploy/lib/units.sh
. "$root/deploy/lib/units.sh"
# shellcheck source=deploy/lib/roles.sh
. "$root/deploy/lib/roles.sh"
# shellcheck source=deploy/lib/uninstall.sh
. "$root/deploy/lib/uninstall.sh"

usage() {
  sed -n '2,/^set -eu/{/^#/s/^# \{0,1\}//p}' "$0"
}

# Everybody may read the arguments of a program, and only root its environment.
hide_token() {
  hidden=
  left=$#
  while [ "$left" -gt 0 ]; do
    if [ "$1" = --token ] && [ "$left" -gt 1 ]; then
      hidden=$2
      shift 2
      left=$((left - 2))
    else
      set -- "$@" "$1"
      shift
      left=$((left - 1))
    fi
  done
  [ -z "$hidden" ] || ESTIBA_JOIN_TOKEN=$hidden exec /bin/sh "$0" "$@"
}

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --help)
        usage
        exit 0
        ;;
      --uninstall)
        action=uninstall
        shift
        continue
        ;;
      --role | --join | --token | --token-file | --advertise-addr | --wheels) ;;
      *) die "unknown argument $1: see $0 --help" ;;
    esac
    [ -n "${2:-}" ] || die "$1 needs a value: see $0 --help"
    case $1 in
      --role) role=$2 ;;
      --join) join=$2 ;;
      --token-file) token=$(cat "$2" 2>/dev/null) || die "the file of the token cannot be read: $2" ;;
      --advertise-addr) advertise=$2 ;;
      --wheels) wheels=$(cd "$2" 2>/dev/null && pwd) || die "there is no folder $2 to take wheels from" ;;
    esac
    shift 2
  done
}

# One installation at a time: the lock is held by whatever an interrupted one has left running, too.
# The folder itself is locked, so that no file of ours remains.
lock() {
  exec 9</opt
  flock --nonblock 9 || {
    echo 'waiting until another installation ends' >&2
    flock --timeout 900 9 || die 'another installation still runs after a quarter of an hour'
  }
}

bring_up() {
  step 'Checks'
  check_machine
  lock
  trap 'give_up $?' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  step 'Debian packages'
  # In a shell of its own: it has traps of its own.
  # shellcheck disable=SC2046
  (install_packages $(packages_of_roles))
  check_programs
  step 'System users'
  make_users
  step 'Programs'
  install_version
  step 'Units'
  install_units
  switch_version
  step 'Services'
  refresh_services
  complete_roles
  remove_old_versions
  trap - EXIT INT TERM HUP
  [ -n "$changed" ] || echo "nothing to change: Estiba $(version_now) is installed" >&2
}

hide_token "$@"
parse "$@"
token=${token:-${ESTIBA_JOIN_TOKEN:-}}
# Nothing but the program that joins is given it.
unset ESTIBA_JOIN_TOKEN
[ "$(id -u)" = 0 ] || die 'users, units and folders of the system need root: type it with sudo'
case $action in
  install) bring_up ;;
  uninstall)
    lock
    uninstall
    ;;
esac
