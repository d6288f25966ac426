# Refuse, in one sentence and before anything is installed, a machine that Estiba cannot run on.
# To be sourced by a script that runs under `set -eu`, has defined `die`, and has set `root`, `role`,
# `join`, `token` and `wheels`.
# shellcheck shell=sh

check_machine() {
  check_words
  check_system
  check_python
  check_strangers
  check_ports
  if wants agent; then
    check_cgroups
    check_kernel
  fi
  [ -z "$join" ] || is_joined || check_control_plane
  [ -z "$wheels" ] || wheel_in "$wheels" >/dev/null
}

check_words() {
  case $role in
    control-plane | agent) ;;
    '') [ -n "$(roles_installed)" ] || die 'say what this machine is to be: --role control-plane or --role agent' ;;
    *) die "there is no role $role: say --role control-plane or --role agent" ;;
  esac
  [ -z "$join" ] || [ "$role" = agent ] || die '--join is for agents: say --role agent'
  [ -z "$join" ] || [ -n "$token" ] ||
    die "--join needs a token, from --token, --token-file or ESTIBA_JOIN_TOKEN:" \
      "make one on the control plane with 'estiba cluster token create'"
}

check_system() {
  # In a shell of its own: the file sets what it likes.
  # shellcheck source=/dev/null
  system=$(. /etc/os-release && echo "${ID:-} ${VERSION_ID:-}") || system=
  case $system in
    'debian 12' | 'debian 13' | 'ubuntu 24.04') ;;
    *) die "Estiba installs on Debian 12, Debian 13 and Ubuntu 24.04, and this is ${system:-none of them}" ;;
  esac
  [ -d /run/systemd/system ] || die 'systemd does not run here: Estiba needs it to start its programs'
}

# Where there is none yet, the packages bring it.
check_python() {
  [ -x /usr/bin/python3 ] || return 0
  /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "Estiba needs Python 3.11 or newer, and /usr/bin/python3 is $(/usr/bin/python3 --version)"
}

# What we would take, or remove with an --uninstall, must not be somebody else's.
check_strangers() {
  for user in $system_users; do
    getent passwd "$user" >/dev/null || continue
    is_ours "$user" || die "there is a user $user already, who is not of Estiba: Estiba needs that name"
  done
  is_our_link /usr/local/bin/estiba || [ ! -e /usr/local/bin/estiba ] ||
    die '/usr/local/bin/estiba is there already and is not of this installation: move it away'
}

check_ports() {
  if wants control-plane; then
    check_port 7443 estibad
    check_port 7444 estibad
    check_port 7480 estibad
    check_port 2379 estiba-etcd
    check_port 2380 estiba-etcd
  fi
  ! wants agent || check_port 7490 estiba-agent
}

# check_port PORT UNIT
check_port() {
  ! systemctl --quiet is-active "$2.service" || return 0
  inode=$(listener_of "$1")
  [ -z "$inode" ] || die "port $1 is taken$(by_whom "$inode"), and $2 needs it"
}

# Print the inode of the socket that listens on a TCP port, if there is one.
# Source: proc_net(5), tcp: local_address, st (0A listens), inode.
listener_of() {
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
    awk -v port="$(printf ':%04X' "$1")" \
      '$4 == "0A" && substr($2, length($2) - 4) == port && !found { print $10; found = 1 }'
}

by_whom() {
  descriptor=$(find /proc/[0-9]*/fd -lname "socket:\[$1\]" 2>/dev/null | head -n 1)
  [ -n "$descriptor" ] || return 0
  pid=$(echo "$descriptor" | cut -d/ -f3)
  printf ' by %s, process %s' "$(cat "/proc/$pid/comm")" "$pid"
}

# The control plane must answer, and its clock agree with ours: certificates begin and end.
check_control_plane() {
  [ -x /usr/bin/python3 ] || return 0
  fault=$(/usr/bin/python3 "$root/deploy/lib/clock.py" "$join") || die "$fault"
}

check_programs() {
  check_python
  ! wants control-plane || check_etcd "$(etcd --version)"
}

# check_etcd TEXT: what `etcd --version` prints.
check_etcd() {
  etcd=$(echo "$1" | sed -n 's/^etcd Version: //p')
  case $etcd in
    3.5.0 | 3.5.1 | 3.5.2) die "etcd $etcd can lose data when it is killed: Estiba needs 3.5.3 or newer" ;;
  esac
  oldest=$(printf '%s\n' 3.4.22 "$etcd" | sort -V | head -n 1)
  [ "$oldest" = 3.4.22 ] ||
    die "etcd ${etcd:-of an unknown version} is too old: Estiba needs 3.4.22 or newer"
}
