# Have the units of systemd as this version wants them, and what runs be this version.
# To be sourced by a script that runs under `set -eu`, has defined `die` and `note`, and has set
# `root` and `home`.
# shellcheck shell=sh

units=/etc/systemd/system
# A unit has a file here from before it is changed until it has been restarted, so that an
# installation which is interrupted in between is finished by the next.
stale=$home/stale

units_of() {
  case $1 in
    control-plane) echo estiba-etcd.service estibad.service estiba-renew.service estiba-renew.timer ;;
    agent) echo estiba-containers.service estiba-log-pump.service estiba-launcher.service estiba-agent.service ;;
  esac
}

install_units() {
  for role_wanted in $(roles_wanted); do
    for unit in $(units_of "$role_wanted"); do
      install_unit "$unit"
    done
  done
  if needs_reload; then
    systemctl daemon-reload
  fi
}

install_unit() {
  source=$root/deploy/systemd/$1
  target=$units/$1
  ! cmp -s "$source" "$target" || return 0
  if [ -e "$target" ]; then
    mkdir -p "$stale"
    : >"$stale/$1"
  fi
  install -m 644 "$source" "$units/.$1.new"
  mv "$units/.$1.new" "$target"
  note "installed the unit $1"
}

needs_reload() {
  systemctl show --property NeedDaemonReload --value 'estiba*' | grep -qx yes
}

# Restart what runs and is not as installed, in this order: the log pump and the launcher hand each
# other the output of containers, and the agent looks for both.
refresh_services() {
  for unit in estiba-etcd.service estiba-containers.service estiba-log-pump.service \
    estiba-launcher.service estiba-agent.service estibad.service estiba-renew.timer; do
    refresh "$unit"
  done
  rmdir "$stale" 2>/dev/null || true
}

refresh() {
  if systemctl --quiet is-active "$1"; then
    if is_current "$1"; then
      return
    fi
    case $1 in
      estiba-containers.service) note "$1 stays as it is until this machine starts again" ;;
      *)
        systemctl restart "$1" || die "$1 does not start again: see journalctl -u $1"
        note "restarted $1"
        ;;
    esac
  elif systemctl --quiet is-enabled "$1" 2>/dev/null; then
    systemctl start "$1" || die "$1 does not start: see journalctl -u $1"
    note "started $1"
  fi
  rm -f "$stale/$1"
}

# Whether a unit that runs is as its file says, and a program of ours in it of the current version.
is_current() {
  [ ! -e "$stale/$1" ] || return 1
  case $1 in
    estiba-log-pump.service | estiba-launcher.service | estiba-agent.service | estibad.service) ;;
    *) return 0 ;;
  esac
  pid=$(systemctl show --property MainPID --value "$1")
  # The interpreter is named by the version's folder.
  case $(tr '\0' '\n' <"/proc/$pid/cmdline" | head -n 1) in
    "$(readlink -f "$home/current")"/*) ;;
    *) return 1 ;;
  esac
}

# Stop units and remove them, whatever there is of them.
remove_units() {
  for unit in "$@"; do
    if [ -e "$units/$unit" ]; then
      systemctl --quiet disable --now "$unit"
      rm -f "$units/$unit"
    fi
    # For a timer systemd remembers when it was last due.
    rm -f "$units/.$unit.new" "$stale/$unit" "/var/lib/systemd/timers/stamp-$unit"
  done
  rmdir --ignore-fail-on-non-empty /var/lib/systemd/timers 2>/dev/null || true
  systemctl daemon-reload
  systemctl reset-failed 'estiba*' 2>/dev/null || true
}
