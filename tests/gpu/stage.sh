#!/usr/bin/env bash
# Puts the kit for a machine with a GPU into one folder (README.md): programs that are built here, and the sources of
# the plug-in, which run.sh compiles there.
#
#   stage.sh [FOLDER [BUILD]]     FOLDER: build/gpu_kit. BUILD: a build folder with tests and benchmarks; without it,
#                                 build/cpu is configured and built
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:-$root/build/gpu_kit} build=${2:-}
most_mib=40

if [ -e "$folder" ] && [ -n "$(ls -A "$folder")" ] && [ ! -e "$folder/not_for_devices" ]; then
  echo "stage.sh: $folder: expected a kit, an empty folder or none, found other files" >&2
  exit 2
fi
if [ -z "$build" ]; then
  build=$root/build/cpu
  cmake --preset cpu -S "$root" -DRFN_BENCHMARKS=ON >/dev/null
fi
cmake --build "$build" --target gpu_kit

rm -rf "$folder"
mkdir -p "$folder"
cp "$build"/gpu_kit_programs/* "$folder"
# What Debian has as a shared library alone.
ldd "$folder/reformer_native_benchmarks" | awk '$1 ~ /^libbenchmark/ { print $3, $1 }' |
  while read -r file name; do cp -L "$file" "$folder/$name"; done
cp "$here"/{run.sh,report.awk,attention_torch.py,README.md} "$folder"
mkdir -p "$folder/source/native"
cp -R "$root"/{CMakeLists.txt,cmake} "$folder/source"
cp -R "$root"/native/{CMakeLists.txt,core,cuda,include} "$folder/source/native"
git -C "$root" describe --always --dirty >"$folder/commit" 2>/dev/null || echo unknown >"$folder/commit"

# The newest of each kind of version that each program asks for: a machine with an older one cannot start it.
: >"$folder/needs"
for file in "$folder"/*; do
  [ "$(head -c 4 "$file" 2>/dev/null | tail -c 3)" = ELF ] || continue
  versions=$(objdump -T "$file" | grep -oE '\b(GLIBC|GLIBCXX|CXXABI)_[0-9.]+' | sort -uV |
    awk -F_ '{ newest[$1] = $0 } END { for (kind in newest) print newest[kind] }' | sort | tr '\n' ' ')
  echo "$(basename "$file") needs $versions" | tee -a "$folder/needs"
done

kib=$(du -sk --apparent-size "$folder" | cut -f 1)
echo "$folder: $(((kib + 1023) / 1024)) MiB"
if [ "$kib" -gt $((most_mib * 1024)) ]; then
  echo "stage.sh: $folder: expected at most $most_mib MiB, found $kib KiB" >&2
  exit 1
fi
