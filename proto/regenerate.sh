#!/bin/sh
# Write the stubs again, beside their .proto files. Run after every change of a .proto.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=${ESTIBA_PYTHON:-$here/../.venv/bin/python}
out=${1:-$here}
cd "$here"
PATH=$(dirname "$bin"):$PATH "$bin" -m grpc_tools.protoc -I. \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
  estiba/v1/types.proto estiba/v1/control.proto estiba/v1/dispatcher.proto \
  estiba/v1/certificates.proto
PYTHONPATH="$out" "$bin" fields.py > "$out/fields.txt"
