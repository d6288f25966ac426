# Find or build the wheel of Estiba itself.
# To be sourced by a script that runs under `set -eu`, has defined `die`, and has set `root`.
# shellcheck shell=sh

# Print the path of the wheel of Estiba in a folder.
wheel_in() {
  found=$(find "$1" -maxdepth 1 -name 'estiba-*.whl')
  case $(printf '%s' "$found" | grep -c '') in
    0) die "there is no wheel of Estiba in $1: fill the folder with deploy/wheels.sh" ;;
    1) echo "$found" ;;
    *) die "there are several wheels of Estiba in $1: leave one there" ;;
  esac
}

# Build the wheel from this folder. $1: where it goes; $2: a folder for what that needs.
build_wheel() {
  [ -x "$2/bin/python" ] || /usr/bin/python3 -m venv "$2"
  "$2/bin/python" -m pip wheel --quiet --quiet --disable-pip-version-check --no-deps \
    --wheel-dir "$1" "$root" >&2
}
