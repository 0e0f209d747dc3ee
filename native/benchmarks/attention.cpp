// Attention and its stages: 8 heads of 64, chunks of 64, one example.
#include "harness.h"

namespace rfn::benchmarks {

rfn_attention_options lsh_options(int64_t length, int32_t rounds, bool causal, int64_t chunk) {
  auto options = make_op<rfn_attention_options>();
  options.kind = RFN_ATTENTION_LSH;
  options.shared_qk = 1;
  options.causal = causal ? 1 : 0;
  options.window = RFN_WINDOW_SLOTS;
  options.wrap = 1;
  options.repeat_chunks = 1;
  options.key_norm = RFN_KEY_NORM_RMS;
  options.rounds = rounds;
  options.pad_bucket = 1;
  options.chunks_before = 1;
  options.chunk_length = chunk;
  const int64_t padded = (length + chunk - 1) / chunk * chunk;
  check(rfn_lsh_automatic_buckets(RFN_BUCKETS_TRAX, padded, chunk, padded, options.factors, &options.factor_count));
  return options;
}

int64_t rotation_columns(const rfn_attention_options& options) {
  int64_t sum = 0;
  for (int32_t i = 0; i < options.factor_count; ++i) sum += options.factors[i] / 2;
  return sum;
}

namespace {

constexpr int64_t kHeads = 8, kHeadSize = 64, kChunk = 64;
constexpr int64_t kLongest[] = {65536, 1048576};  // of all attention; of LSH attention on a GPU
constexpr int64_t kBackwardDense = 16384;         // longer backward passes of dense attention take minutes

// FLOPs of the mathematics for each pair of query and key: two products of the head size forward, five backward.
constexpr double kForward = 4 * kHeadSize, kBackward = 10 * kHeadSize;

rfn_attention_options dense_options(bool causal) {
  auto options = make_op<rfn_attention_options>();
  options.kind = RFN_ATTENTION_FULL;
  options.causal = causal ? 1 : 0;
  return options;
}

rfn_attention_options lsh(int64_t length, int32_t rounds) { return lsh_options(length, rounds, true, kChunk); }

// The tensors of one attention.
struct Problem {
  Problem(const Device& device, const rfn_attention_options& options, int64_t length)
      : shared(options.shared_qk != 0),
        q(device, {1, length, kHeads, kHeadSize}),
        k(device, {shared ? 0 : 1, length, kHeads, kHeadSize}),
        v(device, {1, length, kHeads, kHeadSize}),
        rotations(device, {kHeads, kHeadSize, options.rounds, rotation_columns(options)}),
        out(device, {1, length, kHeads, kHeadSize}),
        log_sum_exp(device, {1, kHeads, length}),
        grad_out(device, {1, length, kHeads, kHeadSize}),
        grad_q(device, {1, length, kHeads, kHeadSize}),
        grad_k(device, {shared ? 0 : 1, length, kHeads, kHeadSize}),
        grad_v(device, {1, length, kHeads, kHeadSize}),
        op(make_op<rfn_attention>()) {
    op.options = options;
    op.q = q;
    op.v = v;
    op.out = out;
    op.log_sum_exp = log_sum_exp;
    op.grad_out = grad_out;
    op.grad_q = grad_q;
    op.grad_v = grad_v;
    if (shared) {
      op.rotations = rotations;
    } else {
      op.k = k;
      op.grad_k = grad_k;
    }
  }

  bool shared;
  Tensor q, k, v, rotations, out, log_sum_exp, grad_out, grad_q, grad_k, grad_v;
  rfn_attention op;
};

// pairs: of query and key, in one head.
void attention(benchmark::State& state, const rfn_attention_options& options, int64_t length, double pairs,
               bool with_backward) {
  const Device device;
  const Problem p(device, options, length);
  Work work{kForward * kHeads * pairs, bytes({p.q, p.k, p.v, p.out, p.log_sum_exp})};
  const Call forward(device, p.op, rfn_attention_workspace, RFN_PASS_FORWARD, rfn_attention_forward);
  if (!with_backward) {
    measure(state, device, work, [&] { forward(); });
    return;
  }
  const Call backward(device, p.op, rfn_attention_workspace, RFN_PASS_BACKWARD, rfn_attention_backward);
  work.flops += kBackward * kHeads * pairs;
  work.bytes += bytes({p.q, p.k, p.v, p.out, p.log_sum_exp, p.grad_out, p.grad_q, p.grad_k, p.grad_v});
  measure(state, device, work, [&] {
    forward();
    backward();
  });
}

void hash(benchmark::State& state, int64_t length, int32_t rounds) {
  const Device device;
  const rfn_attention_options options = lsh(length, rounds);
  Problem p(device, options, length);
  const Tensor buckets(device, {1, kHeads, rounds, length}, RFN_I32);
  p.op.buckets = buckets;
  const Call call(device, p.op, rfn_attention_workspace, RFN_PASS_FORWARD, rfn_lsh_hash);
  const double products = 2.0 * static_cast<double>(length * kHeads * kHeadSize * rounds * rotation_columns(options));
  measure(state, device, {products, bytes({p.q, p.rotations, buckets})}, [&] { call(); });
}

void sort(benchmark::State& state, int64_t length, int32_t rounds) {
  const Device device;
  const int64_t padded = (length + kChunk - 1) / kChunk * kChunk;
  Problem p(device, lsh(length, rounds), length);
  const Tensor buckets(device, {1, kHeads, rounds, length}, RFN_I32),
      sorted(device, {1, kHeads, rounds, padded}, RFN_I32);
  p.op.buckets = buckets;
  p.op.sorted = sorted;
  const Call hashing(device, p.op, rfn_attention_workspace, RFN_PASS_FORWARD, rfn_lsh_hash);
  hashing();
  const Call call(device, p.op, rfn_attention_workspace, RFN_PASS_FORWARD, rfn_lsh_sort);
  measure(state, device, {0, bytes({buckets, sorted})}, [&] { call(); });
}

}  // namespace

void add_attention() {
  for (const bool with_backward : {false, true}) {
    const std::string pass = with_backward ? "forward_backward" : "forward";
    for (const int64_t length :
         lengths({1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576})) {
      if (length > kLongest[settings.device_type == RFN_DEVICE_CUDA]) continue;
      const std::string of_length = "/length:" + std::to_string(length);
      for (const int32_t rounds : {1, 2, 4, 8}) {
        add("lsh_attention/" + pass + "/causal" + of_length + "/rounds:" + std::to_string(rounds),
            [=](benchmark::State& state) {
              const double pairs = static_cast<double>(rounds * length * 2 * kChunk);
              attention(state, lsh(length, rounds), length, pairs, with_backward);
            });
      }
      if (length > kLongest[0] || (with_backward && length > kBackwardDense)) continue;
      for (const bool causal : {true, false}) {
        add("dense_attention/" + pass + (causal ? "/causal" : "/all") + of_length, [=](benchmark::State& state) {
          const double all = static_cast<double>(length) * static_cast<double>(length);
          attention(state, dense_options(causal), length, causal ? (all + static_cast<double>(length)) / 2 : all,
                    with_backward);
        });
      }
    }
  }
  for (const int64_t length : lengths({4096, 65536})) {
    for (const int32_t rounds : {1, 4}) {
      const std::string sizes = "/length:" + std::to_string(length) + "/rounds:" + std::to_string(rounds);
      add("lsh_hash" + sizes, [=](benchmark::State& state) { hash(state, length, rounds); });
      add("lsh_sort" + sizes, [=](benchmark::State& state) { sort(state, length, rounds); });
    }
  }
}

}  // namespace rfn::benchmarks
