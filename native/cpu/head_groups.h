// Heads a group at a time, so that the scratch of attention stays small however many there are.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/backend.h"
#include "cpu/attention.h"

namespace rfn::cpu {

// Heads to process together: `asked`, or as many as keep bytes_per_head * heads within a fixed budget.
int64_t head_group(int64_t asked, int64_t heads, int64_t bytes_per_head);

// The same for the attention op.
int64_t head_group(const rfn_attention& op, const Attention& whole);

// Calls body(heads of the call, scratch) for one group of heads after the other.
template <class Body>
void for_head_groups(const rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t bytes, int32_t pass,
                     const Body& body) {
  const Attention whole = attention_call(op);
  const int64_t group = head_group(op, whole);
  for (int64_t first = 0; first < whole.heads; first += group) {
    Attention call = slice_heads(whole, first, std::min(group, whole.heads - first));
    Arena arena(workspace, bytes);
    const AttentionScratch scratch = attention_layout(arena, call, stream.context->threads, pass);
    take_float_rows(arena, call, pass);
    body(call, scratch);
  }
}

}  // namespace rfn::cpu
