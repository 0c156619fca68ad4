#!/usr/bin/env bash
# The Pythons of this machine, newest first: one line "3.13 /its/real/bin/python3.13" per minor version.
#
# Every candidate is run before it is named. A pyenv shim answers "command not found" for a version that is not selected,
# so the folders that pyenv installs into are looked at as well; and Debian's python3 cannot make a venv without python3-venv.
set -u

describe='import sys, ensurepip, venv
assert sys.version_info[0] == 3 and sys.version_info[1] == int(sys.argv[1])
print(getattr(sys, "_base_executable", sys.executable))'

for minor in 15 14 13 12 11 10 9; do
    while read -r candidate; do
        if path=$("$candidate" -c "$describe" "$minor" 2>/dev/null); then
            echo "3.$minor $path"
            break
        fi
    done < <(
        type -aP "python3.$minor" python3
        compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$minor.*/bin/python3.$minor"
    )
done
