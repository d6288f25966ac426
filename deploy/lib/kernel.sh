# Say what the kernel of this machine lacks of what containers and their network need.
# To be sourced by a script that runs under `set -eu` and has defined `die`.
# shellcheck shell=sh

# Tried in namespaces of their own, which take with them what was made there.
try_overlay() {
  unshare --mount sh -euc '
    mount -t tmpfs none /mnt
    mkdir /mnt/lower /mnt/upper /mnt/work /mnt/merged
    mount -t overlay none /mnt/merged \
      -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work'
}

try_user_namespaces() {
  unshare --user true
}

# try_link KIND [OPTION...]
try_link() {
  kind=$1
  shift
  if command -v ip >/dev/null; then
    unshare --net ip link add name try0 type "$kind" "$@"
  else
    modprobe --quiet "$kind"
  fi
}

try_nf_tables() {
  if command -v nft >/dev/null; then
    unshare --net nft add table inet try
  else
    modprobe --quiet nf_tables
  fi
}

# need FEATURE WHAT-FOR TRY...
need() {
  feature=$1
  purpose=$2
  shift 2
  "$@" >/dev/null 2>&1 ||
    die "this kernel has no $feature, which $purpose: load its module or boot a kernel that has it"
}

check_kernel() {
  need overlay "holds the files of containers" try_overlay
  need 'user namespaces' "set containers apart" try_user_namespaces
  need veth "connects containers" try_link veth peer name try1
  need bridge "connects containers" try_link bridge
  need vxlan "connects the containers of different machines" try_link vxlan id 1 dstport 4789
  need nf_tables "says which packets pass" try_nf_tables
}

check_cgroups() {
  controllers=/sys/fs/cgroup/cgroup.controllers
  [ -f "$controllers" ] ||
    die 'cgroup v2 is not mounted at /sys/fs/cgroup: boot without systemd.unified_cgroup_hierarchy=0'
  for controller in cpu memory pids; do
    grep -qw "$controller" "$controllers" ||
      die "cgroup v2 has no controller $controller, which limits containers:" \
        "boot without cgroup_disable=$controller"
  done
}
