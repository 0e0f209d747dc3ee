#!/usr/bin/env bash
# Every way in which check.sh can fail does fail it, and nothing else does.
#
#   self_test.sh KEEPERS OFFENDERS     keepers.cu and offenders.cu compiled for 75 and 80, without PTX
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
keepers=$1 offenders=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
wrong=0

# The real tool's listings, once; check.sh gets them again and again.
for binary in "$keepers" "$offenders" /bin/true; do
  for listing in --dump-resource-usage --dump-sass --list-ptx; do
    "${CUOBJDUMP:-cuobjdump}" "$listing" "$binary" >"$work/$(basename "$binary")$listing" 2>/dev/null
  done
done
cat >"$work/replay" <<'END'
#!/bin/sh
cat "$(dirname "$0")/$(basename "$2")$1"
END
chmod +x "$work/replay"
export CUOBJDUMP=$work/replay

# expect BINARY ARCHITECTURES MESSAGE...: check.sh on the binary with the budgets of standard input gives exactly these
# failures, in any order.
expect() {
  local binary=$1 architectures=$2 status
  shift 2
  cat >"$work/budgets"
  # shellcheck disable=SC2086 # a list
  "$here/check.sh" "$binary" "$work/budgets" $architectures >"$work/output" 2>"$work/errors"
  status=$?
  sed -n 's/^FAIL //p' "$work/output" | sed "s|$work/||" | sort >"$work/got"
  printf '%s\n' "$@" | sed '/^$/d' | sort >"$work/wanted"
  if ! diff "$work/wanted" "$work/got" >"$work/difference" || [ "$status" -ne $(($# > 0)) ]; then
    echo "exit status $status, and failures differ (< expected, > got):" "line ${BASH_LINENO[0]}"
    cat "$work/difference" "$work/errors"
    wrong=1
  fi
}

good='fine_kernel<*> * 16 256 f32
tensor_kernel * 32 0 tensor  # a comment'
offending='spill_kernel * 255 0 f32
stack_kernel * 255 0 f32'

expect "$keepers" '75-real 80-real' <<<"$good"
expect "$keepers" '' <<<"$good"

# Budgets: too low, for all architectures or one; the first line that fits is the one that counts.
expect "$keepers" '75-real 80-real' 'fine_kernel<64> sm_75: 256 bytes of static shared memory, budget 255' \
  'fine_kernel<64> sm_80: 256 bytes of static shared memory, budget 255' <<<"${good/256/255}"
expect "$keepers" '75-real 80-real' 'tensor_kernel sm_80: 16 registers, budget 15' <<<"tensor_kernel 80 15 0 tensor
$good"
SLACK=1 expect "$keepers" '75-real 80-real' <<<"tensor_kernel 80 15 0 tensor
$good"
expect "$keepers" '75-real 80-real' 'budgets:3: tensor_kernel: no kernel left for it' <<<"$good
tensor_kernel 80 15 0 tensor"

# Kernels and lines without each other. A pattern is a whole name, in which < . ( are only themselves.
expect "$keepers" '75-real 80-real' 'fine_kernel<32> sm_75: no line in budgets' \
  'fine_kernel<32> sm_80: no line in budgets' <<<"${good/<*>/<64>}"
expect "$keepers" '75-real 80-real' 'budgets:3: gone_kernel: no kernel left for it' <<<"$good
gone_kernel * 32 0 f32"
expect "$keepers" '75-real 80-real' 'budgets:1: tensor_kerne: no kernel left for it' \
  'budgets:2: ensor_kernel: no kernel left for it' \
  'budgets:3: tensor.kernel: no kernel left for it' <<<"tensor_kerne * 9 0 f32
ensor_kernel * 9 0 f32
tensor.kernel * 9 0 f32
$good"

# Tensor cores: missing, where they exist; and where they should not be.
expect "$keepers" '75-real 80-real' 'fine_kernel<32> sm_80: a tensor-core kernel without a tensor-core instruction' \
  'fine_kernel<64> sm_80: a tensor-core kernel without a tensor-core instruction' <<<"${good/f32/tensor}"
expect "$keepers" '75-real 80-real' \
  'tensor_kernel sm_80: 1 tensor-core instructions in a float32 kernel' <<<"${good/tensor  #/f32 #}"

# Architectures.
expect "$keepers" '75-real 80-real 90-real' 'fine_kernel<32>: not compiled for sm_90' \
  'fine_kernel<64>: not compiled for sm_90' \
  'tensor_kernel: not compiled for sm_90' <<<"$good"
expect "$keepers" '75-real 80' 'no PTX of compute_80' <<<"$good"

# Stack frames and spills.
sed_numbers='s/sm_\([0-9]*\): [0-9]* bytes of stack, [0-9]* of local memory, [0-9]* accesses/sm_\1/'
"$here/check.sh" "$offenders" <(echo "$offending") 75-real 80-real >"$work/output"
[ $? -eq 1 ] && diff <(sed -n 's/^FAIL //p' "$work/output" | sed "$sed_numbers") - <<'END' || wrong=1
spill_kernel sm_75: spills or a local array
spill_kernel sm_80: spills or a local array
stack_kernel sm_75: spills or a local array
stack_kernel sm_80: spills or a local array
END

expected='expected KERNEL ARCHITECTURE REGISTERS SHARED tensor|f32, and TILE OUTSIDE for a tile loop'
# Lines and files that can't be read, no kernels, a tool that fails.
expect "$keepers" '75-real 80-real' "budgets:3: $expected" "budgets:4: $expected" \
  "budgets:5: $expected" "budgets:6: $expected" <<<"$good
other * 32 0
other * many 0 f32
other * 32 0 tensor 300
other * 32 0 f32 300 200"
expect /bin/true '75-real' 'no kernels' </dev/null
"$here/check.sh" "$keepers" "$work/none" >"$work/output" 2>&1 && wrong=1
grep -q "^FAIL .*none: can't be read" "$work/output" || { echo "a missing file of budgets was not reported"; wrong=1; }
CUOBJDUMP=false "$here/check.sh" "$keepers" /dev/null >"$work/output" 2>&1 &&
  { echo "a tool that fails was not reported"; wrong=1; }

# Listings of a format that is not known: a field is missing, a kernel is in one of them only.
doctored() { # doctored USAGE SASS MESSAGE
  cat >"$work/cuobjdump" <<END
#!/bin/sh
[ "\$1" = --dump-resource-usage ] && printf 'arch = sm_80\n $1\n'
[ "\$1" = --dump-sass ] && printf 'code for sm_80\n $2\n'
exit 0
END
  chmod +x "$work/cuobjdump"
  CUOBJDUMP=$work/cuobjdump "$here/check.sh" none <(echo 'k * 9 9 f32') >"$work/output" 2>&1
  [ $? -eq $((${#3} > 0)) ] && [ "$(sed -n 's/^FAIL //p' "$work/output")" = "$3" ] ||
    { echo "doctored listing, wanted: $3"; cat "$work/output"; wrong=1; }
}
kernel='Function k:\n  REG:9 STACK:0 SHARED:9 LOCAL:0'
unreadable="k sm_80: cuobjdump's output can't be read"
doctored "$kernel" 'Function : k' ''
doctored "${kernel/STACK:0 /}" 'Function : k' "$unreadable"
doctored "$kernel" '' "$unreadable"
doctored '' 'Function : k' "$unreadable"
doctored "${kernel/LOCAL:0/LOCAL:4}" 'Function : k' \
  'k sm_80: 0 bytes of stack, 4 of local memory, 0 accesses: spills or a local array'
doctored "$kernel" 'Function : k\n /*0000*/ @P0 LDL R1, [R2] ;' \
  'k sm_80: 0 bytes of stack, 0 of local memory, 1 accesses: spills or a local array'
doctored "$kernel" 'Function : k\n /*0000*/ @P0 HGMMA.64x8x8.F32 R1 ;' \
  'k sm_80: 1 tensor-core instructions in a float32 kernel'

# Tile loops: three instructions in a loop of six, a barrier around, a pass of its own for maxima.
looped() { # looped SASS TILE OUTSIDE MESSAGE
  cat >"$work/cuobjdump" <<END
#!/bin/sh
[ "\$1" = --dump-resource-usage ] && printf 'arch = sm_80\n Function lsh_chunks_k:\n  REG:9 STACK:0 SHARED:9 LOCAL:0\n'
[ "\$1" = --dump-sass ] && printf 'code for sm_80\n Function : lsh_chunks_k\n$1'
exit 0
END
  chmod +x "$work/cuobjdump"
  CUOBJDUMP=$work/cuobjdump "$here/check.sh" none <(echo "lsh_chunks_k * 9 9 tensor $2 $3") >"$work/output" 2>&1
  [ $? -eq $((${#4} > 0)) ] && [ "$(sed -n 's/^FAIL //p' "$work/output")" = "$4" ] ||
    { echo "tile loop, wanted: $4"; cat "$work/output"; wrong=1; }
}
line() { printf ' /*%04x*/ %s ;\\n' "$@"; }
loops=$(line 0 'BAR.SYNC 0x0' 16 'HMMA.16816.F32 R1' 32 '@!P0 BRA 0x10' 48 'HMMA.16816.F32 R1' 64 'MUFU.EX2 R1' \
  80 '@P0 BRA 0x30' 96 'IADD3 R1' 112 'BRA 0x0' 128 'BRA 0x80')
looped "$loops" 3 3 ''
looped "$loops" 2 3 'lsh_chunks_k sm_80: 3 instructions for a tile, budget 2'
looped "$loops" 3 2 'lsh_chunks_k sm_80: 3 instructions outside of a tile, budget 2'
looped "${loops/'@!P0 BRA 0x10'/NOP}" 3 4 'lsh_chunks_k sm_80: 5 instructions outside of a tile, budget 4'
looped "${loops/MUFU/MOV}" 3 3 'lsh_chunks_k sm_80: no tile loop with a loop around it'
looped "${loops/BAR.SYNC/NOP}" 9 9 'lsh_chunks_k sm_80: no tile loop with a loop around it'
looped "${loops/'IADD3 R1'/'@P0 BRA 0x10'}" 6 2 'lsh_chunks_k sm_80: 2 loops inside the tile loop'

[ "$wrong" -eq 0 ] && echo "every failure is seen"
exit "$wrong"
