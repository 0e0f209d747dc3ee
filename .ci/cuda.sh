# Sourced by .ci/run: installs nvcc from the distribution's own mirror (about 1.7 GB to download, 5.6 GB of disk, 2 to 3
# minutes).

# The part of the archive that holds nvidia-cuda-toolkit, by /etc/os-release's ID.
cuda_components() {
  case $1 in
    debian) echo contrib non-free ;;
    # The toolkit is in multiverse, but depends on packages of universe.
    ubuntu) echo universe multiverse ;;
    *) return 1 ;;
  esac
}

# cuda_add_components CODENAME "COMPONENT..." < sources > sources: the components added wherever the suites of CODENAME
# offer main. Both formats: lines "deb [options] URI SUITE COMPONENT..." and deb822 stanzas. Everything else, other
# vendors' archives and comments too, stays as it is.
cuda_add_components() {
  awk -v codename="$1" -v components="$2" '
    function ours(suite) { return suite ~ ("^" codename "(-updates|-security|-backports)?$") }
    function complete(list,   n, i, wanted) { # list and what it lacks
      n = split(components, wanted, " ")
      for (i = 1; i <= n; ++i) if (index(" " list " ", " " wanted[i] " ") == 0) list = list " " wanted[i]
      return list
    }
    function flush(   i, suites_match, n, suite, list) { # a stanza of deb822
      for (i = 1; i <= lines; ++i) if (tolower(line[i]) ~ /^suites:/) {
        n = split(substr(line[i], 8), suite, " ")
        while (n > 0) if (ours(suite[n--])) suites_match = 1
      }
      for (i = 1; i <= lines; ++i) {
        if (suites_match && tolower(line[i]) ~ /^components:/) {
          list = substr(line[i], 12)
          gsub(/^[ \t]+|[ \t]+$/, "", list)
          if (index(" " list " ", " main ")) line[i] = "Components: " complete(list)
        }
        print line[i]
      }
      lines = 0
    }
    /^[ \t]*deb(-src)?[ \t]/ {
      flush()
      i = 2
      if ($i ~ /^\[/) { while ($i !~ /\]$/) ++i; ++i }  # options
      suite = $(i + 1)
      list = ""
      for (j = i + 2; j <= NF && $j !~ /^#/; ++j) list = list (list == "" ? "" : " ") $j
      if (ours(suite) && index(" " list " ", " main ")) {
        head = $1
        for (k = 2; k <= i + 1; ++k) head = head " " $k
        tail = ""
        for (; j <= NF; ++j) tail = tail " " $j  # a comment
        $0 = head " " complete(list) tail
      }
      print
      next
    }
    /^[ \t]*$/ { flush(); print; next }
    { line[++lines] = $0 }
    END { flush() }'
}

# cuda_edit_sources ETC_APT CODENAME "COMPONENT...": the same for all files of /etc/apt; prints those that changed.
cuda_edit_sources() {
  local file changed
  for file in "$1/sources.list" "$1"/sources.list.d/*.list "$1"/sources.list.d/*.sources; do
    [ -f "$file" ] || continue
    changed=$(mktemp)
    cuda_add_components "$2" "$3" <"$file" >"$changed"
    if ! cmp -s "$file" "$changed"; then
      cat "$changed" >"$file" # keeps owner and mode
      echo "$file"
    fi
    rm -f "$changed"
  done
}

cuda_install() { # cuda_install [ETC_APT]
  command -v nvcc >/dev/null 2>&1 && return 0
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "nvcc is missing, and so is apt-get: install CUDA 11.8 or later by other means" >&2
    return 1
  fi
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n bash -c "source '${BASH_SOURCE[0]}' && cuda_install"
    return
  fi
  local system codename components log
  system=$(source /etc/os-release && echo "$ID")
  codename=$(source /etc/os-release && echo "$VERSION_CODENAME")
  if ! components=$(cuda_components "$system"); then
    echo "nvcc is missing, and this system is $system, not Debian or Ubuntu:" \
      "install CUDA 11.8 or later by other means" >&2
    return 1
  fi
  echo "installing nvcc (components $components of $codename)"
  cuda_edit_sources "${1:-/etc/apt}" "$codename" "$components" | sed 's/^/  changed: /'
  log=$(mktemp)
  if apt-get update -q >"$log" 2>&1 &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
      nvidia-cuda-toolkit nvidia-cuda-toolkit-gcc >>"$log" 2>&1 &&
    command -v nvcc >/dev/null 2>&1; then
    rm -f "$log"
    return 0
  fi
  tail -n 40 "$log" >&2
  rm -f "$log"
  echo "nvcc could not be installed; the last lines of apt-get are above" >&2
  return 1
}
