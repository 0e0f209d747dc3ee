#!/usr/bin/env bash
# check_needed.sh LIBRARY: it loads on a machine without CUDA, because it needs the C and C++ run-time libraries alone.
set -euo pipefail
needed=$(LC_ALL=C readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
echo "$1 needs:" $needed
! grep -vE '^(lib(c|m|dl|pthread|rt|stdc\+\+|gcc_s)|ld-linux[^/]*)\.so\.[0-9]+$' <<<"$needed"
