# The users of the system that the control plane's programs run as.
# To be sourced by a script that runs under `set -eu` and has defined `die` and `note`.
# shellcheck shell=sh

system_users='estiba estiba-etcd'
# In the comment of each, and how we know them again.
user_mark='Estiba system user'

is_ours() {
  [ "$(getent passwd "$1" | cut -d: -f5)" = "$user_mark" ]
}

make_users() {
  wants control-plane || return 0
  for user in $system_users; do
    getent passwd "$user" >/dev/null && continue
    useradd --system --user-group --no-create-home --home-dir /nonexistent \
      --shell /usr/sbin/nologin --comment "$user_mark" "$user"
    note "made the user $user"
  done
}

remove_users() {
  for user in $system_users; do
    if is_ours "$user"; then
      userdel "$user"
    fi
  done
}
