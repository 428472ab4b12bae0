#!/bin/sh
# Starts the backend from any working directory; the folder may have any name and place.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)

# libgomp reads these once, when the engine is imported: waiting threads must not spin, and an
# abort must not start a debugger for its backtrace.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
export GGML_NO_BACKTRACE="${GGML_NO_BACKTRACE:-1}"

if [ -x "$here/.venv/bin/python" ]; then # an environment of its own
    python="$here/.venv/bin/python"
elif [ -n "${CORRAL_PYTHON:-}" ]; then # the interpreter the loader runs on
    python="$CORRAL_PYTHON"
elif [ -f "$here/../../../../pyvenv.cfg" ]; then # <venv>/share/corral/backends/llama_cpp
    python="$here/../../../../bin/python3"
else
    python=python3
fi

# exec: the loader is the parent of the backend itself, so signals and parent death reach it.
# -P: nothing in this folder or the working directory may shadow a module of the library.
exec "$python" -P "$here/__main__.py" "$@"
