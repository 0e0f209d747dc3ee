#!/usr/bin/env bash
# What nvcc made of every kernel, against budgets.txt: the compile gate.
#
#   check.sh BINARY BUDGETS [ARCHITECTURE...]
#
# BINARY is a plug-in, an object file or a fatbin, ARCHITECTURE one of CMAKE_CUDA_ARCHITECTURES that must be in it (80,
# 80-real, 90-virtual). Prints a table and every failure; exit 1 when there is one. CUOBJDUMP names the tool, when it is
# not on PATH. SLACK is how many registers more than its budget a kernel may have.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=$1 budgets=$2
shift 2
cuobjdump=${CUOBJDUMP:-cuobjdump}

binaries='' virtual=''
for architecture in "$@"; do
  number=${architecture%-*}
  case $number in '' | *[!0-9]*) echo "check.sh: $architecture: expected a number" >&2; exit 2 ;; esac
  case $architecture in
    *-real) binaries+=" $number" ;;
    *-virtual) virtual+=" $number" ;;
    *) binaries+=" $number" virtual+=" $number" ;;
  esac
done

ptx=$("$cuobjdump" --list-ptx "$binary" 2>&1 || true)
without_ptx=''
for number in $virtual; do
  grep -q "\.sm_$number\.ptx" <<<"$ptx" || without_ptx+=" $number"
done

# Both listings are large: they are read as they come, and a line per kernel remains.
{
  "$cuobjdump" --dump-resource-usage "$binary"
  "$cuobjdump" --dump-sass "$binary" | grep -E 'code for sm_|Function :|^ +/[*][0-9a-f]+[*]/ +[@A-Z]' || true
} | awk -v looped=lsh_chunks_ -f "$here/measure.awk" | c++filt | sed 's/ void rfn::/ rfn::/' |
  LC_ALL=C sort -k11 -k1,1n |
  awk -v budgets="$budgets" -v expected="$binaries" -v without_ptx="$without_ptx" -v slack="${SLACK:-0}" \
    -f "$here/judge.awk"
