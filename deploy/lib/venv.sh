# Make the virtual environment .venv in the clone, with Estiba in it as it stands there.
# To be sourced by a script that runs under `set -eu` and has defined `root`.
# shellcheck shell=sh

# make_venv [EXTRA]: does nothing when the environment already has what pyproject.toml asks for.
make_venv() {
  extra=${1:-}
  stamp=$root/.venv/.installed
  sum=$(cksum <"$root/pyproject.toml")
  if [ -f "$stamp" ] && [ -x "$root/.venv/bin/estiba" ]; then
    case $(cat "$stamp") in
      "$sum $extra" | "$sum test") return 0 ;;
    esac
  fi
  [ -x "$root/.venv/bin/python" ] || /usr/bin/python3 -m venv "$root/.venv"
  echo "installing Estiba into .venv" >&2
  "$root/.venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check \
    --editable "$root${extra:+[$extra]}" >&2
  echo "$sum $extra" >"$stamp"
}
