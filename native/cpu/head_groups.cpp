#include "cpu/head_groups.h"

namespace rfn::cpu {

int64_t head_group(int64_t asked, int64_t heads, int64_t bytes_per_head) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  if (asked > 0) return std::min(asked, heads);
  int64_t group = std::clamp<int64_t>(kBytes / std::max<int64_t>(bytes_per_head, 1), 1, heads);
  while (heads % group != 0) --group;
  return group;
}

int64_t head_group(const rfn_attention& op, const Attention& whole) {
  const int64_t indices = whole.rounds() * (whole.length + whole.stored()) * static_cast<int64_t>(sizeof(int32_t));
  const int64_t rows = 3 * whole.length * static_cast<int64_t>(sizeof(float));
  // Of take_float_rows: q, k, v, out and their gradients.
  const int64_t floats = is_half(whole.dtype) ? 8 * whole.length * whole.head_size * int64_t{sizeof(float)} : 0;
  return head_group(op.head_group, whole.heads, whole.batch * (indices + rows + floats));
}

}  // namespace rfn::cpu
