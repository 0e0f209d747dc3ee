#!/usr/bin/env bash
# The editing of package sources in cuda.sh, on copies. Part of ctest in a build with CUDA.
set -uo pipefail
source "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/cuda.sh" || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
wrong=0

same() { # same WHAT: work/wanted and work/got
  diff "$work/wanted" "$work/got" && return
  echo "different: $1 (< wanted, > got)"
  wrong=1
}

# edited WHAT: standard input is the sources, a line of ==, and what they become; what they become stays what it is.
edited() {
  awk -v work="$work" '/^==$/ { after = 1; next } { print > (work (after ? "/wanted" : "/before")) }'
  cuda_add_components bookworm "contrib non-free" <"$work/before" >"$work/got"
  same "$1"
  cuda_add_components bookworm "contrib non-free" <"$work/wanted" >"$work/got"
  same "$1, again"
}

edited "lines" <<'END'
# deb https://deb.example.org/debian bookworm main
deb https://deb.example.org/debian bookworm main
deb   [ arch=amd64 signed-by=/usr/share/keyrings/a.gpg ]   https://a.example.org/d   bookworm-updates main contrib
deb-src [trusted=yes] https://deb.example.org/debian-security bookworm-security main # updates
deb https://deb.example.org/debian bookworm main contrib non-free non-free-firmware

deb https://packages.example.com/debian bookworm stable
deb https://packages.example.com/apt cloud-sdk-bookworm main
deb https://packages.example.com/apt bookworm-pgdg main
deb https://packages.example.com/apt nodistro main
==
# deb https://deb.example.org/debian bookworm main
deb https://deb.example.org/debian bookworm main contrib non-free
deb [ arch=amd64 signed-by=/usr/share/keyrings/a.gpg ] https://a.example.org/d bookworm-updates main contrib non-free
deb-src [trusted=yes] https://deb.example.org/debian-security bookworm-security main contrib non-free # updates
deb https://deb.example.org/debian bookworm main contrib non-free non-free-firmware

deb https://packages.example.com/debian bookworm stable
deb https://packages.example.com/apt cloud-sdk-bookworm main
deb https://packages.example.com/apt bookworm-pgdg main
deb https://packages.example.com/apt nodistro main
END

edited "stanzas" <<'END'
Types: deb
# a comment
URIs: https://deb.example.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

types: deb
components: non-free main
suites: bookworm-security
uris: https://deb.example.org/debian-security

Types: deb
URIs: https://packages.example.com/apt
Suites: nodistro
Components: main
==
Types: deb
# a comment
URIs: https://deb.example.org/debian
Suites: bookworm bookworm-updates
Components: main contrib non-free
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

types: deb
Components: non-free main contrib
suites: bookworm-security
uris: https://deb.example.org/debian-security

Types: deb
URIs: https://packages.example.com/apt
Suites: nodistro
Components: main
END

# A whole folder: only what changes is written and named.
mkdir -p "$work/apt/sources.list.d"
echo 'deb https://deb.example.org/debian bookworm main' >"$work/apt/sources.list"
printf 'Types: deb\nURIs: https://deb.example.org/debian\nSuites: bookworm\nComponents: main' \
  >"$work/apt/sources.list.d/debian.sources"
echo 'deb https://packages.example.com/apt nodistro main' >"$work/apt/sources.list.d/other.list"
printf '%s\n' "$work/apt/sources.list" "$work/apt/sources.list.d/debian.sources" >"$work/wanted"
cuda_edit_sources "$work/apt" bookworm "$(cuda_components debian)" >"$work/got"
same "the files that change"
: >"$work/wanted"
cuda_edit_sources "$work/apt" bookworm "$(cuda_components debian)" >"$work/got"
same "nothing the second time"
cat "$work/apt/sources.list" "$work/apt/sources.list.d/"* >"$work/got"
cat >"$work/wanted" <<'END'
deb https://deb.example.org/debian bookworm main contrib non-free
Types: deb
URIs: https://deb.example.org/debian
Suites: bookworm
Components: main contrib non-free
deb https://packages.example.com/apt nodistro main
END
same "their contents"
cuda_components gentoo && wrong=1

# The whole of it, with an apt-get that installs a file: on a PATH without nvcc.
mkdir "$work/bin"
for tool in awk cat chmod cmp id mktemp rm sed tail touch; do ln -s "$(command -v "$tool")" "$work/bin/$tool"; done
installing() { # installing APT_GET EXPECTED_STATUS: cuda_install's output becomes work/got
  rm -f "$work/bin/apt-get" "$work/bin/nvcc" "$work/calls"
  if [ -n "$1" ]; then
    printf '#!/bin/sh\necho "$*" >>"%s/calls"\n%s\n' "$work" "$1" >"$work/bin/apt-get" && chmod +x "$work/bin/apt-get"
  fi
  (PATH=$work/bin && hash -r && cuda_install "$work/apt") >"$work/got" 2>&1
  [ $? -eq "$2" ] || { echo "cuda_install: expected exit status $2"; cat "$work/got"; wrong=1; }
}
if [ "$(id -u)" -eq 0 ] && cuda_components "$(source /etc/os-release && echo "$ID")" >/dev/null; then
  installing "[ \$1 = update ] || { cat </dev/null >$work/bin/nvcc && chmod +x $work/bin/nvcc; }" 0
  printf '%s\n' 'update -q' \
    'install -y -q --no-install-recommends nvidia-cuda-toolkit nvidia-cuda-toolkit-gcc' >"$work/wanted"
  cp "$work/calls" "$work/got"
  same "what apt-get is asked for"
  installing 'echo "no such package"; exit 100' 1
  grep -q 'no such package' "$work/got" && grep -q 'nvcc could not be installed' "$work/got" || wrong=1
  installing 'exit 0' 1 # installs, but no nvcc
fi
installing '' 1
grep -q 'nvcc is missing, and so is apt-get' "$work/got" || wrong=1
ln -sf /bin/true "$work/bin/nvcc"
(PATH=$work/bin && cuda_install "$work/apt") >"$work/got" 2>&1 || wrong=1
: >"$work/wanted"
same "nothing to do"
exit "$wrong"
