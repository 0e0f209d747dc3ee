# Sourced by ./reformer and ./test.sh: installs what a Debian or Ubuntu machine lacks to build the project. Needs the
# repository's root in $root.

# rfn_need PACKAGE TEST...: notes the package when the test fails.
rfn_missing=()
rfn_need() {
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || rfn_missing+=("$package")
}

# What building the library takes.
rfn_need_library() {
  rfn_need g++ command -v g++
  rfn_need cmake command -v cmake
  rfn_need ninja-build command -v ninja
  rfn_need libopenblas-pthread-dev sh -c 'ls /usr/lib/*/openblas-pthread/libopenblas.a'
  rfn_need libhwy-dev sh -c 'ls /usr/include/hwy/highway.h'
}

# What the tests take besides.
rfn_need_tests() {
  rfn_need binutils command -v nm
  rfn_need clang sh -c 'command -v clang || ls /usr/bin/clang-[0-9]*'
  rfn_need libgtest-dev sh -c 'ls /usr/include/gtest/gtest.h'
  rfn_need libboost-context-dev sh -c 'ls /usr/lib/*/libboost_context.a'
  rfn_need libbenchmark-dev sh -c 'ls /usr/include/benchmark/benchmark.h'
}

rfn_check_sdk() {
  if ! command -v dotnet >/dev/null 2>&1; then
    echo "reformer: the .NET SDK 10 is needed and 'dotnet' was not found on PATH;" \
      "see https://dotnet.microsoft.com/download" >&2
    return 1
  fi
  local sdk
  sdk=$(cd "$root" && dotnet --version 2>/dev/null) || sdk=none
  case $sdk in
    1[0-9].*) ;;
    *) echo "reformer: expected the .NET SDK 10 or later, found $sdk" >&2; return 1 ;;
  esac
}

# Installs what rfn_need noted. The command is shown before it runs; at a terminal it waits for consent.
rfn_install() {
  [ ${#rfn_missing[@]} -eq 0 ] && return 0
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "reformer: these Debian packages, or your system's equivalents, are needed: ${rfn_missing[*]}" >&2
    return 1
  fi
  local sudo=() terminal=
  [ -t 0 ] && [ -t 2 ] && terminal=yes
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 ||
      { echo "reformer: install as root: apt-get install ${rfn_missing[*]}" >&2; return 1; }
    sudo=(sudo)
    [ -n "$terminal" ] || sudo+=(-n) # nobody is there to give a password
  fi
  local install=(
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${rfn_missing[@]}")
  echo "reformer: these packages are needed to build and are not installed: ${rfn_missing[*]}" >&2
  if [ -n "$terminal" ]; then
    local answer
    read -r -p "reformer: run '${install[*]}'? [Y/n] " answer || answer=n
    case $answer in
      '' | [yY] | [yY][eE][sS]) ;;
      *) echo "reformer: nothing was installed; run that command yourself, then try again" >&2; return 1 ;;
    esac
  else
    echo "reformer: running '${install[*]}'" >&2
  fi
  # An old package list may name versions that are gone: fetch a new one when the first try fails.
  "${install[@]}" >/dev/null 2>&1 ||
    { "${sudo[@]}" apt-get update -q >/dev/null && "${install[@]}" >/dev/null; } ||
    { echo "reformer: '${install[*]}' failed" >&2; return 1; }
}
