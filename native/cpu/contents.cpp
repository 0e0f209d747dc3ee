#include "cpu/contents.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "core/error.h"
#include "core/tensor.h"
#include "cpu/parallel.h"

namespace rfn::cpu {

rfn_status check_indices(const rfn_tensor& tensor, int64_t limit, const char* what) {
  const int32_t* const values = i32(tensor);
  for (int64_t i = 0, count = elements(tensor); i < count; ++i) {
    if (values[i] < 0 || values[i] >= limit) {
      return fail(RFN_INVALID_ARGUMENT, "%s: expected values from 0 to %lld, got %d at element %lld", what,
                  static_cast<long long>(limit - 1), values[i], static_cast<long long>(i));
    }
  }
  return RFN_OK;
}

rfn_status check_permutations(int32_t threads, const rfn_tensor& tensor, int32_t* scratch, const char* what) {
  const int64_t row = tensor.shape[tensor.rank - 1], none = std::numeric_limits<int64_t>::max();
  const int32_t* const values = i32(tensor);
  std::atomic<int64_t> first_wrong{none};
  parallel_for(threads, elements(tensor) / row, [&](int64_t item, int32_t thread) {
    int32_t* const met = scratch + thread * row;
    std::fill_n(met, row, 0);
    for (int64_t i = item * row; i < (item + 1) * row; ++i) {
      if (values[i] >= 0 && values[i] < row && met[values[i]]++ == 0) continue;
      int64_t first = first_wrong.load(std::memory_order_relaxed);
      while (i < first && !first_wrong.compare_exchange_weak(first, i, std::memory_order_relaxed)) {
      }
      return;
    }
  });
  const int64_t at = first_wrong.load(std::memory_order_relaxed);
  if (at == none) return RFN_OK;
  return fail(RFN_INVALID_ARGUMENT, "%s: expected every value from 0 to %lld once in each row, got %d at element %lld",
              what, static_cast<long long>(row - 1), values[at], static_cast<long long>(at));
}

}  // namespace rfn::cpu
