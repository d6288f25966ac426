#!/bin/sh
# Fill a folder with the wheels of Estiba and of what it needs, for machines that reach no index:
# install.sh --wheels FOLDER. Folders for several versions of Python may be one.
#
#   wheels.sh DIR [PYTHON-VERSION]    PYTHON-VERSION is this machine's, if not given
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
# What Debian 12 has, the oldest that Estiba installs on.
glibc=36

die() {
  echo "wheels: $*" >&2
  exit 1
}

# shellcheck source=deploy/lib/wheel.sh
. "$root/deploy/lib/wheel.sh"

[ $# = 1 ] || [ $# = 2 ] || die "say where the wheels go: $0 DIR [PYTHON-VERSION]"
case ${2:-3.11} in
  3.*) ;;
  *) die "$2 is no version of Python: say one such as 3.11" ;;
esac
mkdir -p "$1"
folder=$(cd "$1" && pwd)
python=${2:-$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

build_wheel "$work" "$work/venv"
wheel=$(wheel_in "$work")
platforms=
for minor in $(seq 5 "$glibc"); do
  platforms="$platforms --platform manylinux_2_${minor}_$(uname -m)"
done
# shellcheck disable=SC2086
"$work/venv/bin/python" -m pip download --quiet --quiet --disable-pip-version-check --dest "$folder" \
  --only-binary :all: --implementation cp --python-version "$python" $platforms \
  --platform "manylinux2014_$(uname -m)" "$wheel" >&2
for old in "$folder"/estiba-*.whl; do
  [ "$(basename "$old")" = "$(basename "$wheel")" ] || rm -f "$old"
done
cp "$wheel" "$folder/"
echo "$folder has Estiba and what it needs for Python $python"
