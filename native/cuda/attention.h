// Attention over a range of heads on a CUDA device; shared by the attention op, its stages and the reversible block.
// Everything is enqueued on the stream; nothing waits or allocates.
#pragma once
#include <cstdint>

#include "core/attention_call.h"
#include "core/workspace.h"
#include "cuda/lsh_chunks.h"
#include "cuda/state.h"

namespace rfn::cuda {

inline constexpr int64_t kMaxHeadSize = 128;
inline constexpr int kMaxCountedRounds = 255;  // with duplicate correction

// Scratch of one call, in device memory. For the same shapes the layout is the same, so that a hash and sort may be
// followed by forward and backward.
struct AttentionScratch {
  int32_t* buckets = nullptr;  // [sequence-heads, R, T]; unused where the call has its own
  int32_t* sorted = nullptr;   // [sequence-heads, R, stored]: position at a slot
  int32_t* slot_of = nullptr;  // [sequence-heads, R, T]; duplicate correction only
  void* sort = nullptr;        // of the counting sort
  float* maximum = nullptr;    // [sequence-heads, T]: running maximum (base 2) between rounds; R > 1
  float* sum = nullptr;        // [sequence-heads, T]: running sum; R > 1
  float* delta = nullptr;      // backward [sequence-heads, T]: dO . O - grad_log_sum_exp
  ChunkScratch chunks = {};    // of calls that takes_chunks has
};
AttentionScratch attention_layout(Arena& arena, const rfn_context& context, const Attention& a, int32_t pass);

// Head sizes and the like that the kernels have no code for: RFN_UNSUPPORTED.
rfn_status attention_supported(const rfn_context& context, const Attention& a);

// lsh_hash.cu. buckets: a.buckets when given (at example 0, head 0 of the model), else the scratch's.
rfn_status attention_hash(rfn_stream& stream, const Attention& a, const AttentionScratch& scratch);

// lsh_sort.cu. Bytes of AttentionScratch::sort; sorted (and slot_of) from buckets; slot_of from a given `sorted`.
// Values out of range are clamped.
int64_t sort_scratch_bytes(const Attention& a);
rfn_status attention_sort(rfn_stream& stream, const Attention& a, const AttentionScratch& scratch);
rfn_status attention_index_slots(rfn_stream& stream, const Attention& a, const AttentionScratch& scratch);

// attention_forward.cu, attention_backward.cu: rounds [first, last).
rfn_status attention_forward_rounds(rfn_stream& stream, const Attention& a, const AttentionScratch& scratch,
                                    int64_t first, int64_t last);
// grad_q, grad_k, grad_v are overwritten when `overwrite`, else added to.
rfn_status attention_backward_rounds(rfn_stream& stream, const Attention& a, const AttentionScratch& scratch,
                                     int64_t first, int64_t last, bool overwrite);

}  // namespace rfn::cuda
