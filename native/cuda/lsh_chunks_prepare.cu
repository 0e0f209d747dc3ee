// What the kernels of lsh_chunks.h read: rows in bf16 with their factors, and the runs of equal buckets. Which calls
// they take and where their scratch lies.
#include <algorithm>

#include "cuda/lsh_chunks.cuh"

namespace rfn::cuda {
namespace {

// ---- rows ---------------------------------------------------------------------------------------

struct PrepareCall {
  ChunkScratch scratch;
  RowSizes sizes;
  CallerRows<const float> q, v, grad_out, out;  // the last two: backward
  const float *log_sum_exp, *grad_log_sum_exp;  // backward
  int32_t key_norm;
  float scale;  // of base-2 logits
};

template <int D, bool backward>
__global__ void __launch_bounds__(kRowThreads) lsh_chunks_prepare_kernel(const PrepareCall c) {
  constexpr int kUnits = D / 8;
  const int d = static_cast<int>(threadIdx.x) % kUnits * 8;
  const bool there = thread_row<D>() < c.sizes.rows;
  const RowOf at = row_of(c.sizes, there ? thread_row<D>() : 0);  // every lane takes part in the sums
  const int64_t place = at.row * D + d;

  float x[8], squares = 0.0f;
  load_unit(c.q, c.sizes, at, d, x);
#pragma unroll
  for (int e = 0; e < 8; ++e) squares = fmaf(x[e], x[e], squares);
  const float inverse = key_scale(group_sum<kUnits>(squares), c.sizes.head_size, c.key_norm);
  const float factor = c.scale / inverse;
#pragma unroll
  for (int e = 0; e < 8; ++e) x[e] *= inverse;
  if (there) {
    *reinterpret_cast<uint4*>(c.scratch.keys + place) = pack_bf16(x);
    if (d == 0) c.scratch.factors[at.row] = factor;
    load_unit(c.v, c.sizes, at, d, x);
    *reinterpret_cast<uint4*>(c.scratch.values + place) = pack_bf16(x);
  }
  if constexpr (backward) {
    float out[8], delta = 0.0f;
    load_unit(c.grad_out, c.sizes, at, d, x);
    load_unit(c.out, c.sizes, at, d, out);
#pragma unroll
    for (int e = 0; e < 8; ++e) delta = fmaf(x[e], out[e], delta);
    delta = group_sum<kUnits>(delta);
    if (!there) return;
    *reinterpret_cast<uint4*>(c.scratch.grad_out + place) = pack_bf16(x);
    if (d != 0) return;
    if (c.grad_log_sum_exp != nullptr) delta -= c.grad_log_sum_exp[at.log_sum_exp];
    // A query that met nobody has an infinite log-sum-exp here, so that its weights are 0.
    const float log_sum_exp = c.log_sum_exp[at.log_sum_exp];
    c.scratch.queries[at.row] = make_float4(factor, log_sum_exp == -INFINITY ? INFINITY : log_sum_exp * kLog2E,
                                            delta * factor, __int_as_float(static_cast<int>(at.position) + 1));
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
constexpr int kRunSlots = 256;           // of a block
constexpr int kRunThreads = kRunSlots + 2 * kReach;

// A block has kRunSlots slots and looks at kReach more on each side: where a bucket begins is a bit.
__global__ void __launch_bounds__(kRunThreads) lsh_chunks_runs_kernel(const RunsCall c) {
  RFN_SHARED(buckets, int32_t[kRunThreads]);
  RFN_SHARED(begins, uint32_t[kRunThreads / 32]);
  const int64_t number = blockIdx.x / static_cast<unsigned>(c.blocks), head = number / c.rounds;
  const int32_t first = static_cast<int32_t>(blockIdx.x % static_cast<unsigned>(c.blocks)) * kRunSlots;
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
  if (at < kReach || at >= kReach + kRunSlots || slot >= c.stored) return;
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

namespace {
int64_t padded_head_size(const Attention& a) { return a.head_size <= 32 ? 32 : 64; }
}  // namespace

ChunkScratch chunk_scratch(Arena& arena, const Attention& a, int32_t pass) {
  const int64_t tokens = a.sequence_heads() * a.length, rounds = a.rounds(), D = padded_head_size(a);
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
  const auto rows = [&](const float* data, int64_t stride) { return caller_rows(data, stride, a.head_size); };
  const PrepareCall c = {s.chunks,
                         row_sizes(a),
                         rows(a.q, a.q_stride),
                         rows(a.v, a.v_stride),
                         rows(a.grad_out, a.grad_out_stride),
                         rows(a.out, a.out_stride),
                         a.log_sum_exp,
                         a.grad_log_sum_exp,
                         a.options.key_norm,
                         logit_scale(a) * kLog2E};
  const bool backward = pass == RFN_PASS_BACKWARD;
  const auto kernel = a.head_size <= 32
                          ? backward ? lsh_chunks_prepare_kernel<32, true> : lsh_chunks_prepare_kernel<32, false>
                      : backward ? lsh_chunks_prepare_kernel<64, true>
                                 : lsh_chunks_prepare_kernel<64, false>;
  RFN_CUDA_TRY(stream, RFN_LAUNCH(kernel, blocks_for(c.sizes.rows * (padded_head_size(a) / 8), kRowThreads),
                                  kRowThreads, 0, native_stream(stream), c));
  if (!a.window().same_bucket) return RFN_OK;
  const bool own = a.buckets != nullptr;
  RunsCall runs = {};
  runs.runs = s.chunks.runs;
  runs.sorted = s.sorted;
  runs.buckets = own ? a.buckets + a.first_head * a.rounds() * a.length : s.buckets;
  runs.heads = a.heads;
  runs.all_heads = own ? a.all_heads : a.heads;
  runs.length = c.sizes.length;
  runs.stored = static_cast<int32_t>(a.stored());
  runs.rounds = a.options.rounds;
  runs.blocks = static_cast<int32_t>(div_up(runs.stored, kRunSlots));
  RFN_CUDA_TRY(stream, RFN_LAUNCH(lsh_chunks_runs_kernel, blocks_for(a.sequence_heads() * runs.rounds * runs.blocks, 1),
                                  kRunThreads, 0, native_stream(stream), runs));
  return RFN_OK;
}

}  // namespace rfn::cuda
