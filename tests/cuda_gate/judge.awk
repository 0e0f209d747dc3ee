# The lines of measure.awk, demangled and sorted by name, against the budgets. Variables: budgets (file), expected
# (architectures), without_ptx (architectures), slack.
function fail(text) { failure[++failures] = "FAIL " text }

# rfn::cuda::(anonymous namespace)::k<64, (rfn::cuda::Mode)1>(float*) becomes k<64,(Mode)1>
function short(name,   i, depth, c) {
  gsub(/rfn::cuda::|\(anonymous namespace\)::/, "", name)
  gsub(/ /, "", name)
  for (i = 1; i <= length(name); ++i) {
    c = substr(name, i, 1)
    if (c == "<") ++depth
    if (c == ">") --depth
    if (c == "(" && depth == 0) return substr(name, 1, i - 1)
  }
  return name
}

function expression(pattern) { # of a pattern in which only * is special
  gsub(/[][(){}.+?^$|\\]/, "[&]", pattern)
  gsub(/\[\^\]/, "\\^", pattern)
  gsub(/\[\\\]/, "\\\\", pattern)
  gsub(/\*/, ".*", pattern)
  return "^" pattern "$"
}

function number(text) { return text ~ /^[0-9]+$/ }

BEGIN {
  wanted = split(expected, architectures, " ")
  for (i in architectures) chosen[architectures[i]] = 1
  while ((status = (getline line < budgets)) > 0) {
    ++line_number
    sub(/#.*/, "", line)
    if (split(line, field, " ") == 0) continue
    where = budgets ":" line_number
    fields = split(line, field, " ")
    if ((fields != 5 && fields != 7) || (field[2] != "*" && !number(field[2])) ||
        !number(field[3]) || !number(field[4]) || (field[5] != "tensor" && field[5] != "f32") ||
        (fields == 7 && (field[5] != "tensor" || !number(field[6]) || !number(field[7])))) {
      fail(where ": expected KERNEL ARCHITECTURE REGISTERS SHARED tensor|f32, and TILE OUTSIDE for a tile loop")
      continue
    }
    ++rules
    rule_place[rules] = where ": " field[1]
    rule_name[rules] = expression(field[1]); rule_architecture[rules] = field[2]
    rule_registers[rules] = field[3]; rule_shared[rules] = field[4]; rule_kind[rules] = field[5]
    rule_tile[rules] = fields == 7 ? field[6] : ""; rule_outside[rules] = field[7]
  }
  if (status < 0) fail(budgets ": can't be read")
  n = split(without_ptx, architectures_without, " ")
  for (i = 1; i <= n; ++i) fail("no PTX of compute_" architectures_without[i])
  format = "%-60s %5s %10s %14s %6s %6s %6s %6s %9s %9s\n"
  printf format, "kernel", "sm", "registers", "shared", "stack", "local", "mma", "kind", "tile", "outside"
}

{
  architecture = $1; registers = $2; stack = $3; shared = $4; local = $5; accesses = $6; instructions = $7
  tile = $8; outside = $9; rolled = $10
  full = $0
  if (architecture >= 90 && shared >= 1024) shared -= 1024  # of the system, in every block from 9.0 on
  for (i = 1; i <= 10; ++i) sub(/^[^ ]+ /, "", full)
  name = short(full)
  ++kernels
  here[full, architecture] = 1
  if (!(full in names)) { names[full] = name; ++distinct }
  what = name " sm_" architecture ": "
  rule = 0
  for (i = 1; i <= rules && !rule; ++i) {
    if (name ~ rule_name[i] && (rule_architecture[i] == "*" || rule_architecture[i] == architecture)) rule = i
  }
  if (rule) ++matched[rule]
  if (!number(registers)) { fail(what "cuobjdump's output can't be read"); next }
  printf format, name, architecture, registers "/" (rule ? rule_registers[rule] : "?"),
    shared "/" (rule ? rule_shared[rule] : "?"), stack,
    accesses, instructions, rule ? rule_kind[rule] : "?",
    rule && rule_tile[rule] != "" ? tile "/" rule_tile[rule] : tile,
    rule && rule_tile[rule] != "" ? outside "/" rule_outside[rule] : outside
  if (stack + local > 0 || accesses > 0)
    fail(what stack " bytes of stack, " local " of local memory, " accesses " accesses: spills or a local array")
  if (!rule) { fail(what "no line in " budgets); next }
  if (registers > rule_registers[rule] + slack) fail(what registers " registers, budget " rule_registers[rule])
  if (shared > rule_shared[rule] + 0) fail(what shared " bytes of static shared memory, budget " rule_shared[rule])
  if (rule_kind[rule] == "tensor" && architecture >= 80 && instructions == 0)
    fail(what "a tensor-core kernel without a tensor-core instruction")
  if (rule_tile[rule] != "" && architecture >= 80) {
    if (!number(tile) || !number(outside)) fail(what "no tile loop with a loop around it")
    if (tile > rule_tile[rule] + 0) fail(what tile " instructions for a tile, budget " rule_tile[rule])
    if (outside > rule_outside[rule] + 0)
      fail(what outside " instructions outside of a tile, budget " rule_outside[rule])
    if (rolled > 0) fail(what rolled " loops inside the tile loop")
  }
  if (rule_kind[rule] == "f32" && instructions > 0)
    fail(what instructions " tensor-core instructions in a float32 kernel")
}

END {
  if (kernels == 0) fail("no kernels")
  for (full in names) for (i = 1; i <= wanted; ++i) {
    if (!((full, architectures[i]) in here)) fail(names[full] ": not compiled for sm_" architectures[i])
  }
  for (i = 1; i <= rules; ++i) {
    if (!matched[i] && (rule_architecture[i] == "*" || wanted == 0 || rule_architecture[i] in chosen))
      fail(rule_place[i] ": no kernel left for it")
  }
  for (i = 1; i <= failures; ++i) print failure[i]
  print distinct + 0 " kernels, " kernels + 0 " binaries of them, " failures + 0 " failures"
  exit failures > 0
}
