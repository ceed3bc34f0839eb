# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash

# Sourced by the run scripts: what they install on Debian and Ubuntu.

# What every build needs: tests, examples and benchmarks share one configuration.
build_packages=(cmake ninja-build g++ libeigen3-dev libxsimd-dev catch2 libbenchmark-dev libicu-dev
                pkg-config python3)

# As root, or through sudo, which may ask for a password only where there is someone to ask.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif [ -t 0 ]; then
    sudo "$@"
  else
    sudo -n "$@"
  fi
}

# Installs those of the named packages that are missing, and says which. Never asks a question.
install_missing() {
  local package missing=()
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "No apt-get here: taking it that these are installed in some other way: $*"
    return
  fi
  for package in "$@"; do
    case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) in
      *' installed') ;;
      *) missing+=("$package") ;;
    esac
  done
  if [ ${#missing[@]} -eq 0 ]; then return; fi

  echo "Installing with apt-get: ${missing[*]}"
  if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
    echo "Neither root nor sudo: install these packages and start again: ${missing[*]}" >&2
    return 1
  fi
  as_root apt-get update -qq &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      "${missing[@]}" </dev/null >/dev/null
}
