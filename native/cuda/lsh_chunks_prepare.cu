// What the kernels of lsh_chunks.h read: rows in bf16 with their factors, and the runs of equal buckets. Which calls
// they take and where their scratch lies.
#include <algorithm>

#include "cuda/lsh_chunks.cuh"

namespace rfn::cuda {
namespace {

constexpr int kThreads = 256;

// ---- rows ---------------------------------------------------------------------------------------

struct PrepareCall {
  ChunkScratch scratch;
  const float *q, *v, *grad_out, *out, *log_sum_exp, *grad_log_sum_exp;  // the last four: backward
  int64_t q_stride, v_stride, grad_out_stride, out_stride;
  int64_t log_sum_exp_heads, heads, rows;  // rows: S T
  int32_t length, head_size, key_norm;
  float scale;  // of base-2 logits
  bool q_aligned, v_aligned, grad_out_aligned, out_aligned;
};

// D / 8 lanes have a row, all of them of one warp.
template <int D, bool backward>
__global__ void __launch_bounds__(kThreads) lsh_chunks_prepare_kernel(const PrepareCall c) {
  constexpr int kUnits = D / 8;
  const int64_t mine = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kUnits;
  const int unit = static_cast<int>(threadIdx.x) % kUnits, d = unit * 8;
  const bool there = mine < c.rows;
  const int64_t row = there ? mine : 0;  // every lane takes part in the sums
  const int64_t sequence_head = row / c.length, example = sequence_head / c.heads, head = sequence_head % c.heads;
  const int64_t position = row - sequence_head * c.length, token = example * c.length + position;
  const int64_t column = head * c.head_size, place = row * D + d;

  float x[8], squares = 0.0f;
  load_unit(c.q + token * c.q_stride + column, d, c.head_size, c.q_aligned, x);
#pragma unroll
  for (int e = 0; e < 8; ++e) squares = fmaf(x[e], x[e], squares);
  const float inverse = key_scale(group_sum<kUnits>(squares), c.head_size, c.key_norm);
  const float factor = c.scale / inverse;
#pragma unroll
  for (int e = 0; e < 8; ++e) x[e] *= inverse;
  if (there) {
    *reinterpret_cast<uint4*>(c.scratch.keys + place) = pack_bf16(x);
    if (unit == 0) c.scratch.factors[row] = factor;
    load_unit(c.v + token * c.v_stride + column, d, c.head_size, c.v_aligned, x);
    *reinterpret_cast<uint4*>(c.scratch.values + place) = pack_bf16(x);
  }
  if constexpr (backward) {
    float out[8], delta = 0.0f;
    load_unit(c.grad_out + token * c.grad_out_stride + column, d, c.head_size, c.grad_out_aligned, x);
    load_unit(c.out + token * c.out_stride + column, d, c.head_size, c.out_aligned, out);
#pragma unroll
    for (int e = 0; e < 8; ++e) delta = fmaf(x[e], out[e], delta);
    delta = group_sum<kUnits>(delta);
    if (!there) return;
    *reinterpret_cast<uint4*>(c.scratch.grad_out + place) = pack_bf16(x);
    if (unit != 0) return;
    const int64_t statistic = (example * c.log_sum_exp_heads + head) * c.length + position;
    if (c.grad_log_sum_exp != nullptr) delta -= c.grad_log_sum_exp[statistic];
    // A query that met nobody has an infinite log-sum-exp here, so that its weights are 0.
    const float log_sum_exp = c.log_sum_exp[statistic];
    c.scratch.queries[row] = make_float4(factor, log_sum_exp == -INFINITY ? INFINITY : log_sum_exp * kLog2E,
                                         delta * factor, __int_as_float(static_cast<int>(position) + 1));
  }
}

// ---- runs of equal buckets ----------------------------------------------------------------------

struct RunsCall {
  uint32_t* runs;
  const int32_t *sorted, *buckets;
  int64_t heads, all_heads;  // of `sorted` and of `buckets`, [B,all_heads,R,T] from the call's first head on
  int32_t length, stored, rounds, blocks;  // blocks of a round
};
constexpr int kReach = 2 * kChunkSlots;  // of any window, in slots to each side
constexpr int kRunThreads = kThreads + 2 * kReach;

// A block has kThreads slots and looks at kReach more on each side: where a bucket begins is a bit.
__global__ void __launch_bounds__(kRunThreads) lsh_chunks_runs_kernel(const RunsCall c) {
  RFN_SHARED(buckets, int32_t[kRunThreads]);
  RFN_SHARED(begins, uint32_t[kRunThreads / 32]);
  const int64_t number = blockIdx.x / static_cast<unsigned>(c.blocks), head = number / c.rounds;
  const int32_t first = static_cast<int32_t>(blockIdx.x % static_cast<unsigned>(c.blocks)) * kThreads;
  const int at = static_cast<int>(threadIdx.x);
  const int32_t slot = first - kReach + at;
  int32_t bucket = kOtherRound;
  if (slot >= 0 && slot < c.stored) {
    const int32_t position = c.sorted[number * c.stored + slot];
    const int64_t row = (head / c.heads * c.all_heads + head % c.heads) * c.rounds + number % c.rounds;
    if (position >= 0 && position < c.length) bucket = c.buckets[row * c.length + position];
  }
  buckets[at] = bucket;
  __syncthreads();
  const uint32_t word = __ballot_sync(kFullWarp, at == 0 || buckets[at - 1] != bucket);
  if (at % 32 == 0) begins[at / 32] = word;
  __syncthreads();
  if (at < kReach || at >= kReach + kThreads || slot >= c.stored) return;
  int word_of = at / 32;
  uint32_t bits = begins[word_of] & (0xffffffffu >> (31 - at % 32));
  while (bits == 0 && word_of > 0) bits = begins[--word_of];
  const int begin = bits == 0 ? 0 : word_of * 32 + 31 - __clz(static_cast<int>(bits));
  word_of = at / 32;
  bits = at % 32 == 31 ? 0 : begins[word_of] & (0xffffffffu << (at % 32 + 1));
  while (bits == 0 && word_of + 1 < kRunThreads / 32) bits = begins[++word_of];
  const int end = bits == 0 ? kRunThreads : word_of * 32 + __ffs(static_cast<int>(bits)) - 1;
  c.runs[number * c.stored + slot] = static_cast<uint32_t>(at - begin) | static_cast<uint32_t>(end - at) << 16;
}

}  // namespace

// ---- which calls --------------------------------------------------------------------------------

bool takes_chunks(const rfn_context& context, const Attention& a) {
  const AttentionWindow<> window = a.window();
  if (context.precision != RFN_PRECISION_BF16 || !window.lsh || a.given_slots || a.options.shared_qk == 0) return false;
  if (window.chunk != kChunkSlots || window.before != 1 || window.after != 0) return false;
  if (window.log_counts || a.options.dropout != 0.0f || a.head_size > 64) return false;
  // On a ring of one chunk a chunk is its own neighbour; on a ring of one round the last chunk may have the first
  // one's bucket.
  return !window.ring || (window.total > 1 && !(window.same_bucket && window.rounds == 1));
}

ChunkWindow chunk_window(const Attention& a) {
  const AttentionWindow<> window = a.window();
  if (window.strict) return ChunkWindow::kStrict;
  if (window.same_bucket) return window.causal ? ChunkWindow::kBucketCausal : ChunkWindow::kBucket;
  return window.causal ? ChunkWindow::kSlotsCausal : ChunkWindow::kSlots;
}

ChunkScratch chunk_scratch(Arena& arena, const Attention& a, int32_t pass) {
  const int64_t tokens = a.sequence_heads() * a.length, rounds = a.rounds(), D = a.head_size <= 32 ? 32 : 64;
  ChunkScratch s = {};
  s.keys = arena.take<uint16_t>(tokens * D);
  s.values = arena.take<uint16_t>(tokens * D);
  s.factors = arena.take<float>(tokens);
  if (a.window().same_bucket) s.runs = arena.take<uint32_t>(a.sequence_heads() * rounds * a.stored());
  s.round_out = arena.take<uint16_t>(tokens * rounds * D);
  s.round_sums = arena.take<float2>(tokens * rounds);
  if (pass == RFN_PASS_BACKWARD) {
    s.grad_out = arena.take<uint16_t>(tokens * D);
    s.queries = arena.take<float4>(tokens);
    s.round_grad_v = arena.take<uint16_t>(tokens * rounds * D);
  }
  return s;
}

ChunkCall chunk_call(const Attention& a, const AttentionScratch& s) {
  // A block begins by loading the chunk before its first, so segments are long where there are chunks for many blocks.
  // An even number: a step may have two chunks.
  constexpr int64_t kShortest = 2, kLongest = 16, kEnough = 4096;
  ChunkCall c = {};
  const AttentionWindow<> window = a.window();
  c.scratch = s.chunks;
  c.sorted = s.sorted;
  c.mask = a.mask;
  c.heads = a.heads;
  c.length = static_cast<int32_t>(a.length);
  c.stored = static_cast<int32_t>(a.stored());
  c.chunks = static_cast<int32_t>(window.per_round);
  c.rounds = static_cast<int32_t>(window.rounds);
  const int64_t chunks = a.sequence_heads() * window.total;
  c.segment = static_cast<int32_t>(std::clamp(chunks / kEnough / 2 * 2, kShortest, kLongest));
  c.segments = static_cast<int32_t>(div_up(c.chunks, c.segment));
  c.largest_square = a.options.key_norm == RFN_KEY_NORM_RMS  ? static_cast<float>(a.head_size)
                     : a.options.key_norm == RFN_KEY_NORM_L2 ? 1.0f
                                                             : INFINITY;
  c.ring = window.ring && !window.same_bucket;  // buckets of other rounds are never the same
  return c;
}

rfn_status chunks_prepare(rfn_stream& stream, const Attention& a, const AttentionScratch& s, int32_t pass) {
  PrepareCall c = {};
  c.scratch = s.chunks;
  c.q = a.q;
  c.v = a.v;
  c.grad_out = a.grad_out;
  c.out = a.out;
  c.log_sum_exp = a.log_sum_exp;
  c.grad_log_sum_exp = a.grad_log_sum_exp;
  c.q_stride = a.q_stride;
  c.v_stride = a.v_stride;
  c.grad_out_stride = a.grad_out_stride;
  c.out_stride = a.out_stride;
  c.log_sum_exp_heads = a.log_sum_exp_heads;
  c.heads = a.heads;
  c.rows = a.sequence_heads() * a.length;
  c.length = static_cast<int32_t>(a.length);
  c.head_size = static_cast<int32_t>(a.head_size);
  c.key_norm = a.options.key_norm;
  c.scale = logit_scale(a) * kLog2E;
  c.q_aligned = units_aligned(a.q, a.q_stride, a.head_size);
  c.v_aligned = units_aligned(a.v, a.v_stride, a.head_size);
  c.grad_out_aligned = units_aligned(a.grad_out, a.grad_out_stride, a.head_size);
  c.out_aligned = units_aligned(a.out, a.out_stride, a.head_size);
  const bool backward = pass == RFN_PASS_BACKWARD;
  const auto kernel = a.head_size <= 32
                          ? backward ? lsh_chunks_prepare_kernel<32, true> : lsh_chunks_prepare_kernel<32, false>
                      : backward ? lsh_chunks_prepare_kernel<64, true>
                                 : lsh_chunks_prepare_kernel<64, false>;
  const int64_t units = a.head_size <= 32 ? 4 : 8;
  RFN_CUDA_TRY(stream, RFN_LAUNCH(kernel, blocks_for(c.rows * units, kThreads), kThreads, 0, native_stream(stream), c));
  if (!a.window().same_bucket) return RFN_OK;
  const bool own = a.buckets != nullptr;
  RunsCall runs = {};
  runs.runs = s.chunks.runs;
  runs.sorted = s.sorted;
  runs.buckets = own ? a.buckets + a.first_head * a.rounds() * a.length : s.buckets;
  runs.heads = a.heads;
  runs.all_heads = own ? a.all_heads : a.heads;
  runs.length = c.length;
  runs.stored = static_cast<int32_t>(a.stored());
  runs.rounds = a.options.rounds;
  runs.blocks = static_cast<int32_t>(div_up(runs.stored, kThreads));
  RFN_CUDA_TRY(stream, RFN_LAUNCH(lsh_chunks_runs_kernel, blocks_for(a.sequence_heads() * runs.rounds * runs.blocks, 1),
                                  kRunThreads, 0, native_stream(stream), runs));
  return RFN_OK;
}

}  // namespace rfn::cuda
