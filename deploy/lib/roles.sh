# What this machine is: control plane, agent, or both; the last step of becoming it, and the way back.
# To be sourced by a script that runs under `set -eu`, has defined `die` and `note`, and has set
# `home`, `role`, `join`, `token` and `advertise`.
# shellcheck shell=sh

# A file for each role whose installation was finished once.
roles=$home/roles

roles_installed() {
  for each in control-plane agent; do
    [ ! -e "$roles/$each" ] || echo "$each"
  done
}

roles_wanted() {
  { roles_installed && echo "$role"; } | sort -u
}

wants() {
  roles_wanted | grep -qx "$1"
}

is_joined() {
  [ -e /etc/estiba/agent.toml ]
}

packages_of_roles() {
  echo python3-venv
  ! wants control-plane || echo etcd-server
  ! wants agent || echo nftables iproute2 kmod
}

complete_roles() {
  case $role in
    control-plane) step 'Control plane' && begin_cluster ;;
    agent) step 'Agent' && join_cluster ;;
    *) return 0 ;;
  esac
  if [ ! -e "$roles/$role" ]; then
    mkdir -p "$roles"
    : >"$roles/$role"
    note "this machine is installed: $role"
  fi
}

begin_cluster() {
  "$home/current/bin/estiba" cluster init ${advertise:+--advertise-addr "$advertise"}
}

join_cluster() {
  if [ -n "$join" ]; then
    ESTIBA_JOIN_TOKEN=$token "$home/current/bin/estiba" node join \
      ${advertise:+--advertise-addr "$advertise"} "$join"
  elif ! is_joined; then
    echo "to join a cluster, type what 'estiba cluster init' printed there" >&2
  fi
}

# Called when the installation ends before it is done: a role that was not here before is not left
# half-installed. $1 is the exit code.
give_up() {
  trap - EXIT INT TERM HUP
  if [ -z "$(roles_installed)" ]; then
    echo 'install: nothing is left of this attempt but Debian packages' >&2
    remove_all
  elif [ -n "$role" ] && [ ! -e "$roles/$role" ]; then
    echo "install: nothing is left of this attempt at the role $role" >&2
    remove_role "$role"
  fi
  exit "$1"
}
