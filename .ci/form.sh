#!/usr/bin/env bash
# The form of every source: clang-format for C, C++ and CUDA, dotnet format for C#, 120 columns for all text.
# `.ci/form.sh --fix` formats what the two programs can format.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1
fix=${1:-}
wrong=0

# Debian 12 and Ubuntu 22.04 have version 14 under this name; other versions lay some lines out differently.
clang_format=$(command -v clang-format-14) ||
  { echo "form: expected clang-format-14 (Debian's package of that name), found none"; exit 1; }
# The adapter of ManagedCuda is only built where its package can be had, and cannot be analysed without it.
except=(--exclude managed/ReformerNative.ManagedCuda)
mapfile -t sources < <(git ls-files '*.c' '*.h' '*.cpp' '*.cu' '*.cuh')
if [ "$fix" = --fix ]; then
  "$clang_format" -i "${sources[@]}"
  dotnet format ReformerNative.sln "${except[@]}" || wrong=1
else
  "$clang_format" --dry-run --Werror "${sources[@]}" 2>&1 | grep -E 'error: ' | cut -d: -f1,2 | sort -u |
    sed 's/^/form: clang-format would change /' | head -n 40
  [ "${PIPESTATUS[0]}" -eq 0 ] || wrong=1
  dotnet format ReformerNative.sln --verify-no-changes "${except[@]}" || wrong=1
fi

# Rows of tables in Markdown cannot be broken. The lists of names that tests compare with, and Visual Studio's file of
# the solution, have lines of their own making.
wide=$(git ls-files -z -- ':!tests/vectors' ':!*.sln' ':!*PublicApi.txt' ':!LICENSE' |
  LC_ALL=C.UTF-8 xargs -0 grep -nHIP '^(?!\s*\|).{121,}$' | cut -c 1-200)
if [ -n "$wide" ]; then
  echo "$wide" | sed 's/^/form: over 120 columns: /'
  wrong=1
fi
[ "$wrong" -eq 0 ] && echo "form: ${#sources[@]} files of C, C++ and CUDA, all of C#, no line over 120 columns"
exit "$wrong"
