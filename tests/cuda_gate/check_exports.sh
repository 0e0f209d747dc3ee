#!/usr/bin/env bash
# check_exports.sh LIBRARY SYMBOL: it defines that dynamic symbol and no other.
set -euo pipefail
exported=$(nm -D --defined-only "$1" | awk '{ print $3 }')
echo "$1 exports:" $exported
[ "$exported" = "$2" ]
