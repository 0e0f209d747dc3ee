# results.md out of the lines of results.jsonl.

function value(line, key,   rest) { # of "key": in a line of JSON, without its quotes; "" where it is absent
  if (!match(line, "\"" key "\": ")) return ""
  rest = substr(line, RSTART + RLENGTH)
  if (substr(rest, 1, 1) == "\"") {
    match(rest, /^"([^"\\]|\\.)*"/)
    rest = substr(rest, 2, RLENGTH - 2)
    gsub(/\\"/, "\"", rest)
    return rest
  }
  match(rest, /^[^,}]*/)
  return substr(rest, 1, RLENGTH)
}

function rate(number, unit) { return number == "" ? "" : sprintf("%.3f %s", number / 1e12, unit) }

{ stage = value($0, "stage") }
stage == "machine" { machine = machine "- " value($0, "text") "\n" }
value($0, "outcome") != "" {
  text = value($0, "text")
  gsub(/\|/, "\\|", text)
  stages = stages sprintf("| %s | %s | %.1f | %s |\n", stage, value($0, "outcome"), value($0, "stage_seconds"), text)
  ++outcomes[value($0, "outcome")]
}
value($0, "seconds") != "" {
  share = value($0, "of_ceiling")
  name = value($0, "name")
  if (name ~ /ceiling/) share = 1
  times = times sprintf("| %s | %s | %.4f | %s | %s | %s |\n", name, value($0, "precision"),
    1000 * value($0, "seconds"), rate(value($0, "FLOP/s"), "TFLOP/s"), rate(value($0, "bytes_per_second"), "TB/s"),
    share == "" ? "not measured" : sprintf("%.1f %%", 100 * share))
}

END {
  print "# Results of the kit for a GPU\n"
  print machine
  printf "%d passed, %d failed, %d left out\n\n", outcomes["passed"], outcomes["failed"], outcomes["left out"]
  print "| stage | outcome | s | |\n| --- | --- | --- | --- |\n" stages
  print "A time's share of the ceiling: the time in which the device's copy and products of the same precision,"
  print "measured just before, would do the work, over the time taken.\n"
  print "| what | precision | ms | products | memory | of the ceiling |"
  print "| --- | --- | --- | --- | --- | --- |\n" times
}
