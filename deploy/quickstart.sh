#!/bin/sh
# Start a cluster of three nodes on this machine and run a service on it. May be run again.
#
#   deploy/quickstart.sh          install what is needed, start, run
#   deploy/quickstart.sh --down   stop everything; packages and .venv stay
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${ESTIBA_DIR:-/var/lib/estiba-dev}
export ESTIBA_DIR="$folder"
estiba=$root/.venv/bin/estiba

die() {
  echo "quickstart: $*" >&2
  exit 1
}

step() {
  printf '\n== %s\n' "$*" >&2
}

# Show a command and run it.
show() {
  printf '$ %s\n' "$(echo "$*" | sed "s#$root/.venv/bin/##")" >&2
  "$@"
}

# shellcheck source=deploy/lib/packages.sh
. "$root/deploy/lib/packages.sh"
# shellcheck source=deploy/lib/venv.sh
. "$root/deploy/lib/venv.sh"

[ "$(id -u)" = 0 ] || die "namespaces, cgroups and mounts need root: type it with sudo"

case ${1:-} in
  --down)
    [ -x "$estiba" ] || die "there is no .venv in $root: nothing was started from here"
    exec "$estiba" dev down
    ;;
  '') ;;
  *) die "unknown argument $1: there is only --down" ;;
esac

step 'Programs'
install_packages python3-venv etcd-server docker-registry slirp4netns nftables iproute2 \
  util-linux busybox-static
# shellcheck disable=SC2119
make_venv

step 'A cluster of three nodes'
show "$estiba" dev up

step "A small image in the cluster's registry"
registry=$(sed -n 's/^  "registry": "\(.*\)",$/\1/p' "$folder/cluster.json")
"$root/.venv/bin/python" -m controlplane.cli.dev.sample \
  --registry "$registry" --ca "$folder/pki/ca.pem" --name hello >&2

step 'A service of three replicas'
if "$estiba" service inspect hello >/dev/null 2>&1; then
  show "$estiba" service scale hello=3
else
  show "$estiba" service create --name hello --replicas 3 registry.estiba:5000/hello
fi
show "$estiba" service ps hello

step 'An answer from each replica, asked on its own node'
"$root/.venv/bin/python" "$root/deploy/lib/replicas.py" "$estiba" "$folder" hello |
  while read -r name agent address; do
    answer=$(nsenter --target "$agent" --net busybox wget -q -O - "http://$address:8080/")
    printf '%s at %s: %s\n' "$name" "$address" "$answer"
  done

elsewhere=
[ "$folder" = /var/lib/estiba-dev ] || elsewhere=" ESTIBA_DIR=\"$folder\""
cat >&2 <<END

What to type next:
  export PATH="$root/.venv/bin:\$PATH"$elsewhere
  estiba service scale hello=10
  estiba service logs --tail 5 hello
  estiba node ls
  estiba dev status
  sudo ./deploy/quickstart.sh --down
END
