#!/usr/bin/env bash
# Fetches what a machine without network needs beside CuPy, NumPy and pytest for the first day on a GPU:
#
#     scripts/fetch_wheels.sh [FOLDER]          # "wheels" in this checkout by default; the first day looks there
#
# They are pure Python: the first day puts them on the path as they are, and nothing is installed.
set -euo pipefail
folder=${1:-"$(dirname "${BASH_SOURCE[0]}")/../wheels"}
mkdir -p "$folder"
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary :all: --dest "$folder" \
    "array-api-compat>=1.12,<2" "array-api-strict>=2.3"
ls "$folder"
