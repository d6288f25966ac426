# Install Debian packages so that none of their services starts, now or at the next boot.
# To be sourced by a script that runs under `set -eu` and has defined `die`.
# shellcheck shell=sh

policy=/usr/sbin/policy-rc.d
policy_mark='# Holds services back while Estiba installs packages.'

# Print which of the packages named are not installed.
missing_packages() {
  for package in "$@"; do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || printf '%s ' "$package"
  done
}

# Remove the policy if it is ours: an interrupted installation may have left it.
remove_policy() {
  if [ -f "$policy" ] && grep -qxF "$policy_mark" "$policy"; then
    rm -f "$policy"
  fi
}

write_policy() {
  remove_policy
  if [ -e "$policy" ]; then
    code=0
    "$policy" etcd start >/dev/null 2>&1 || code=$?
    [ "$code" = 101 ] || die "$policy exists and lets services start: install $* yourself"
    return
  fi
  printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" >"$policy"
  chmod 755 "$policy"
}

# Install what is missing of the packages named.
install_packages() {
  wanted=$(missing_packages "$@")
  [ -n "$wanted" ] || return 0
  [ "$(id -u)" = 0 ] || die "missing: ${wanted}- run this as root to install them"
  command -v apt-get >/dev/null || die "missing: ${wanted}- this is no Debian: install them yourself"
  echo "installing $wanted" >&2
  trap remove_policy EXIT
  trap 'remove_policy; exit 130' INT
  trap 'remove_policy; exit 143' TERM HUP
  # shellcheck disable=SC2086
  write_policy $wanted
  finish_interrupted >&2
  # shellcheck disable=SC2086
  { get_packages $wanted || { apt-get update && get_packages $wanted; }; } >&2
  # shellcheck disable=SC2086
  disable_services $wanted
  remove_policy
  trap - EXIT INT TERM HUP
}

# Another apt-get, such as one that a killed installation left at work, is waited for.
get_packages() {
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 \
    install -y --no-install-recommends "$@"
}

# What a killed dpkg had begun, apt-get wants to see finished first.
finish_interrupted() {
  [ -z "$(ls -A /var/lib/dpkg/updates)" ] || DEBIAN_FRONTEND=noninteractive dpkg --configure -a
}

# Packages enable their services for the next boot; undo that for those we have just installed.
disable_services() {
  command -v systemctl >/dev/null || return 0
  for package in "$@"; do
    case $package in
      etcd-server) systemctl disable etcd.service ;;
      docker-registry | prometheus) systemctl disable "$package.service" ;;
      # With its sockets, which its unit names.
      libvirt-daemon-system) systemctl disable libvirtd.service libvirt-guests.service ;;
    esac
  done >&2
}
