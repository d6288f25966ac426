# Remove Estiba from this machine, whatever there is of it, but the Debian packages.
# To be sourced by a script that runs under `set -eu` and has sourced the parts beside this one.
# shellcheck shell=sh

uninstall() {
  if nothing_is_here; then
    echo 'nothing of Estiba is installed here' >&2
    return
  fi
  remove_all
  echo 'Estiba is removed; the Debian packages that it needed stay' >&2
}

nothing_is_here() {
  for path in "$home" /etc/estiba /var/lib/estiba /run/estiba "$units"/estiba*; do
    [ ! -e "$path" ] || return 1
  done
  for user in $system_users; do
    ! is_ours "$user" || return 1
  done
  [ ! -L "$command_link" ]
}

remove_all() {
  remove_policy
  remove_role agent
  remove_role control-plane
  systemctl stop estiba.slice 2>/dev/null || true
  remove_users
  ! is_our_link "$command_link" || rm -f "$command_link"
  rm -rf /etc/estiba /var/lib/estiba /run/estiba "$command_link.new"
  # Last: until then a removal that was interrupted can be done again.
  rm -rf "$home"
}

remove_role() {
  [ "$1" != agent ] || leave_cluster
  # shellcheck disable=SC2046
  remove_units $(units_of "$1")
  [ "$1" != agent ] || remove_network
}

# The programs know best what there is of the node. Where they are broken, stopping the units ends the
# containers all the same.
leave_cluster() {
  if is_joined && [ -x "$home/current/bin/estiba" ]; then
    "$home/current/bin/estiba" node leave ||
      echo 'install: the node is taken down without its programs, which fail' >&2
  fi
}

# Group 0x657374 is of all links that the agent makes.
remove_network() {
  if command -v ip >/dev/null; then
    ip -brief link show group 0x657374 | while read -r link _; do
      ip link delete "${link%@*}"
    done
  fi
  if command -v nft >/dev/null && nft list table ip estiba >/dev/null 2>&1; then
    nft delete table ip estiba
  fi
}
