#!/usr/bin/env bash
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

# Does what README.md says, with the commands as it prints them: installs the headers of a clean clone into a scratch
# prefix, builds its program with its CMakeLists.txt, runs it and compares what it prints.
#   first_page.sh REPOSITORY FIRST_PAGE WORK     FIRST_PAGE: what snippets.py wrote; WORK: a folder that is emptied

set -euo pipefail
repository=${1:?the repository}
first_page=$(realpath "${2:?the folder first_page}")
work=${3:?a folder to work in}
rm -rf "$work"
mkdir -p "$work/clone" "$work/program" "$work/bin"

# The files of a clone as they are now, without what git ignores; of an unpacked archive all but the builds.
files=$(git -C "$repository" ls-files --cached --others --exclude-standard 2>/dev/null || (cd "$repository" && echo *))
(cd "$repository" && tar -c --ignore-failed-read --anchored --exclude='build*' -T - <<<"$files") |
  tar -x -C "$work/clone"

# Nothing is installed on this machine: /usr/local lies below DESTDIR, and sudo only checks that what `apt install` names
# is what the build needs.
cat >"$work/bin/sudo" <<'SUDO'
#!/usr/bin/env bash
set -euo pipefail
if [ "$1 $2" != "apt install" ]; then exec "$@"; fi
shift 2
if ! command -v dpkg-query >/dev/null; then exit 0; fi
dpkg-query -W -f='found: ${Package} ${Version}\n' "$@"
SUDO
chmod +x "$work/bin/sudo"
export PATH="$work/bin:$PATH" DESTDIR="$work/prefix" CMAKE_PREFIX_PATH="$work/prefix/usr/local"

(cd "$work/clone" && bash -euxo pipefail "$first_page/in_clone.sh")

cp "$first_page/CMakeLists.txt" "$first_page/engine.cpp" "$work/program"
(cd "$work/program" && bash -euxo pipefail "$first_page/in_program.sh") >"$work/log"
cat "$work/log"
# The last lines are the program's.
tail -n "$(wc -l <"$first_page/expected_output")" "$work/log" | diff - "$first_page/expected_output"
