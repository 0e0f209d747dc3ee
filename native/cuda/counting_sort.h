// Stable sorting of positions by key on a CUDA device; shared by LSH attention (positions by bucket) and the
// embedding's gradient (tokens by id).
#pragma once
#include <cstdint>

#include "cuda/state.h"

namespace rfn::cuda {

// `segments` sorts of `length` keys each. Keys are 0 .. values - 1; any other key counts as values - 1.
struct CountingSort {
  int64_t segments, length, values;
  // Keys of segment s begin at keys + ((s / group) * group_stride + s % group) * length.
  const int32_t* keys;
  int64_t group, group_stride;
  int32_t*
      sorted;  // [segments, sorted_length]: position at a slot; slots length .. sorted_length - 1 hold their own number
  int64_t sorted_length;
  int32_t* slot_of;  // [segments, length]: slot of a position; null: not wanted
};

// Bytes of `scratch`, which depend on the first three sizes alone. It is a multiple of 256 and the scratch has to be
// aligned as much.
int64_t counting_sort_bytes(int64_t segments, int64_t length, int64_t values);
rfn_status counting_sort(rfn_stream& stream, const CountingSort& sort, void* scratch);

}  // namespace rfn::cuda
