// Threads over fixed work items. The items, and the order in which their results are combined, never depend on the number of threads:
// that is why results have the same bits for any of them.
#pragma once
#include <omp.h>

#include <cstdint>

namespace rfn::cpu {

// Calls body(item, thread) once for each item in [0, items), thread in [0, threads).
template <class Body>
void parallel_for(int32_t threads, int64_t items, const Body& body) {
  if (items <= 1 || threads <= 1) {
    for (int64_t item = 0; item < items; ++item) body(item, 0);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t item = 0; item < items; ++item) body(item, omp_get_thread_num());
}

}  // namespace rfn::cpu
