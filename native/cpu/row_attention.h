// Attention of one query over listed rows of keys and values, in no order and as often as they are listed.
#pragma once
#include <cstdint>

namespace rfn::cpu {

struct RowAttention {
  int64_t head_size;
  const float* query;   // [head_size]
  float scale;          // of the logits
  const float* keys;    // row r at keys + r * stride, before the key norm
  const float* values;  // the same
  int64_t stride;
  int32_t key_norm;     // RFN_KEY_NORM_*
  const int32_t* rows;  // [count], count >= 1
  int64_t count;
  float* scores;  // scratch [count]
  float* out;     // [head_size]
};

void row_attention(const RowAttention& a);

}  // namespace rfn::cpu
