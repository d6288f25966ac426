# Have Estiba's programs under /opt/estiba, a folder for each version, and one of them current.
# To be sourced by a script that runs under `set -eu`, has defined `die` and `note`, and has set
# `root` and `wheels`.
# shellcheck shell=sh

home=/opt/estiba
command_link=/usr/local/bin/estiba

is_our_link() {
  [ -L "$1" ] && [ "$(readlink "$1")" = "$home/current/bin/estiba" ]
}

version_now() {
  basename "$(readlink "$home/current")"
}

# A version is in a virtual environment of its own, made where it stays, for its scripts name it. One
# without the mark is of an installation that was interrupted.
install_version() {
  mkdir -p "$home/versions"
  wheel=$(chosen_wheel)
  version=$(version_of "$wheel")
  folder=$home/versions/$version
  if [ ! -f "$folder/.complete" ]; then
    rm -rf "$folder"
    fill_version "$folder" "$wheel"
    sync --file-system "$folder"
    : >"$folder/.complete"
    note "installed Estiba $version"
  fi
  rm -rf "$home/build"
}

chosen_wheel() {
  if [ -n "$wheels" ]; then
    wheel_in "$wheels"
  else
    rm -rf "$home/build"
    build_wheel "$home/build" "$home/build/venv"
    wheel_in "$home/build"
  fi
}

# Print VERSION-DIGEST of a wheel.
version_of() {
  number=$(basename "$1" | cut -d- -f2)
  echo "$number-$(sha256sum <"$1" | cut -c-12)"
}

fill_version() {
  /usr/bin/python3 -m venv "$1"
  if [ -n "$wheels" ]; then
    set -- "$1" "$2" --no-index --find-links "$wheels"
  fi
  folder=$1
  wheel=$2
  shift 2
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" "$wheel" >&2 ||
    die "the Python packages that Estiba needs cannot be had:" \
      "${wheels:+fill $wheels with deploy/wheels.sh for $(/usr/bin/python3 --version)}${wheels:-see above}"
}

switch_version() {
  now=$(readlink "$home/current" || true)
  if [ "$now" != "versions/$version" ]; then
    [ -z "$now" ] || point "$home/previous" "$now"
    point "$home/current" "versions/$version"
    note "Estiba $version is current"
  fi
  is_our_link "$command_link" || point "$command_link" "$home/current/bin/estiba"
}

# Have a link lead elsewhere at once: whoever follows it finds the one or the other.
point() {
  ln -sfn "$2" "$1.new"
  mv -T "$1.new" "$1"
}

# All but the current version and the one before it.
remove_old_versions() {
  for folder in "$home"/versions/*; do
    case versions/$(basename "$folder") in
      "$(readlink "$home/current")" | "$(readlink "$home/previous" || true)") ;;
      *)
        rm -rf "$folder"
        note "removed Estiba $(basename "$folder")"
        ;;
    esac
  done
}
