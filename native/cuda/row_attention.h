// Attention of one token of each (example, head) over the keys and values of earlier ones in a cache.
#pragma once
#include <cstdint>

#include "core/decode_call.h"
#include "core/workspace.h"
#include "cuda/state.h"

namespace rfn::cuda {

struct RowAttention {
  const float* query = nullptr;  // [B, H*D], rows query_stride apart
  int64_t query_stride = 0;
  float* result = nullptr;  // [B, H*D]
  // Scratch of take_row_attention.
  int32_t* digits = nullptr;  // LSH [B*H, parts, R, factors]
  float* partial = nullptr;   // [B*H, parts, D]: weighted sums of values
  float2* weights = nullptr;  // [B*H, parts]: largest logit, sum of exp(logit - largest)
};
void take_row_attention(Arena& arena, const rfn_reversible_block_decode& op, const DecodeShape& s, RowAttention* a);

// One launch, two where a token may see more than kPartKeys keys; then, of LSH, the token's position is in the rings.
inline constexpr int kPartKeys = 256;
rfn_status row_attention(rfn_stream& stream, const rfn_reversible_block_decode& op, const DecodeShape& s,
                         const RowAttention& a);

}  // namespace rfn::cuda
