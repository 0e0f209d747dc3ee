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
deb   [ arch=amd64 signed-by=/usr/share/keyrings/a.gpg ]   https://deb.example.org/debian   bookworm-updates main contrib
deb-src [trusted=yes] https://deb.example.org/debian-security bookworm-security main # updates
deb https://deb.example.org/debian bookworm main contrib non-free non-free-firmware

deb https://packages.example.com/debian bookworm stable
deb https://packages.example.com/apt cloud-sdk-bookworm main
deb https://packages.example.com/apt bookworm-pgdg main
deb https://packages.example.com/apt nodistro main
==
# deb https://deb.example.org/debian bookworm main
deb https://deb.example.org/debian bookworm main contrib non-free
deb [ arch=amd64 signed-by=/usr/share/keyrings/a.gpg ] https://deb.example.org/debian bookworm-updates main contrib non-free
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
printf 'Types: deb\nURIs: https://deb.example.org/debian\nSuites: bookworm\nComponents: main' >"$work/apt/sources.list.d/debian.sources"
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
exit "$wrong"
