// Sizes that 32 bits cannot count, and a sequence of a million tokens. Only a GPU has the memory and the speed for
// them: elsewhere the same checks run small, so that they are known to work before they are needed.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "harness.h"

namespace rfn::test {
namespace {

bool large() { return device_type() == RFN_DEVICE_CUDA; }

class Large : public OpTest {
 protected:
  // A tensor of normal numbers that nothing of the host's mirrors. GuardedMemory would copy gigabytes to and fro.
  rfn_tensor tensor(const std::vector<int64_t>& sizes, int32_t dtype = RFN_F32) {
    rfn_tensor view = shape(sizes, dtype);
    view.bytes = std::accumulate(sizes.begin(), sizes.end(), int64_t{4}, std::multiplies<int64_t>());
    view.data = buffer(view.bytes);
    if (dtype != RFN_F32) return view;
    auto op = make_op<rfn_random_normal>();
    op.site = RFN_SITE_DATA;
    op.layer = layer_++;
    op.standard_deviation = 1;
    op.destination = view;
    EXPECT_TRUE(Ok(rfn_random_normal_forward(stream, &op)));
    return view;
  }

  void* buffer(int64_t bytes) {
    void* memory = nullptr;
    EXPECT_TRUE(Ok(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, bytes, &memory)));
    buffers_.push_back(memory);
    return memory;
  }

  void TearDown() override {
    for (void* const memory : buffers_) EXPECT_TRUE(Ok(rfn_buffer_free(context, RFN_MEMORY_DEVICE, memory)));
  }

  template <class Op>
  void run(const Op& op, int32_t pass, rfn_status (*workspace)(const rfn_context*, const Op*, int32_t, int64_t*),
           rfn_status (*call)(rfn_stream*, const Op*, void*, int64_t)) {
    int64_t bytes = 0;
    ASSERT_TRUE(Ok(workspace(context, &op, pass, &bytes)));
    ASSERT_TRUE(Ok(call(stream, &op, bytes == 0 ? nullptr : buffer(bytes), bytes)));
    ASSERT_TRUE(Ok(rfn_stream_synchronize(stream)));
  }

  // Elements [first, first + count).
  template <class T = float>
  std::vector<T> read(const rfn_tensor& from, int64_t first, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    EXPECT_TRUE(Ok(rfn_copy(stream, values.data(), static_cast<char*>(from.data) + 4 * first, 4 * count,
                            RFN_COPY_DEVICE_TO_HOST)));
    EXPECT_TRUE(Ok(rfn_stream_synchronize(stream)));
    return values;
  }

  bool has_memory(int64_t bytes) {
    int64_t free_bytes = 0, total_bytes = 0;
    EXPECT_TRUE(Ok(rfn_memory_info(context, &free_bytes, &total_bytes)));
    return free_bytes >= bytes;
  }

 private:
  std::vector<void*> buffers_;
  int32_t layer_ = 0;
};

// The last `count` entries along the first axis.
rfn_tensor last(const rfn_tensor& all, int64_t count) {
  rfn_tensor part = all;
  const int64_t entry = std::accumulate(all.shape + 1, all.shape + all.rank, int64_t{4}, std::multiplies<int64_t>());
  part.shape[0] = count;
  part.bytes = count * entry;
  part.data = static_cast<char*>(all.data) + (all.shape[0] - count) * entry;
  return part;
}

constexpr int32_t kRounds = 2;
// Ten times the largest error of the CPU backend at a million tokens (8e-7), and of the simulated device at 512.
constexpr double kLimit = 8e-6;

// The caller chooses the buckets.
rfn_attention_options lsh_options(int64_t chunk) {
  auto o = make_op<rfn_attention_options>();
  o.kind = RFN_ATTENTION_LSH;
  o.shared_qk = o.causal = o.wrap = o.repeat_chunks = 1;
  o.key_norm = RFN_KEY_NORM_RMS;
  o.rounds = kRounds;
  o.chunks_before = 1;
  o.chunk_length = chunk;
  return o;
}

constexpr int64_t kGiB = int64_t{1} << 30;

// Every row is computed as if it were alone, also where its elements have numbers past 2^31.
TEST_F(Large, RowsPast31Bits_SameBitsAsAlone) {
  if (large() && !has_memory(28 * kGiB)) GTEST_SKIP() << "layer norm of 2^31 elements takes 28 GiB of memory";
  const int64_t width = large() ? 512 : 16, rows = large() ? (int64_t{1} << 22) + 5 : 37, few = 3;
  const rfn_tensor x = tensor({rows, width}), y = tensor({rows, width}), grad_x = tensor({rows, width});
  const rfn_tensor weight = tensor({width}), bias = tensor({width});
  auto op = make_op<rfn_layer_norm>();
  op.epsilon = 1e-5f;
  op.x = x;
  op.weight = weight;
  op.bias = bias;
  op.y = y;
  op.grad_y = y;
  op.grad_x = grad_x;
  op.grad_weight = tensor({width});
  op.grad_bias = tensor({width});
  run(op, RFN_PASS_FORWARD, rfn_layer_norm_workspace, rfn_layer_norm_forward);
  run(op, RFN_PASS_BACKWARD, rfn_layer_norm_workspace, rfn_layer_norm_backward);
  const auto end = (rows - few) * width;
  const auto got_y = read(y, end, few * width), got_grad = read(grad_x, end, few * width);
  op.x = last(x, few);
  op.y = op.grad_y = last(y, few);
  op.grad_x = tensor({few, width});
  run(op, RFN_PASS_BACKWARD, rfn_layer_norm_workspace, rfn_layer_norm_backward);
  EXPECT_TRUE(SameBits(got_grad, read(op.grad_x, 0, few * width)));
  op.y = tensor({few, width});
  run(op, RFN_PASS_FORWARD, rfn_layer_norm_workspace, rfn_layer_norm_forward);
  EXPECT_TRUE(SameBits(got_y, read(op.y, 0, few * width)));
  // The generator counts on past 2^31 instead of beginning again.
  const auto first = read(x, 0, few * width), later = read(x, end, few * width);
  EXPECT_FALSE(SameBits(first, later));
}

// The same of attention, over examples.
TEST_F(Large, AttentionPast31Bits_SameBitsAsAlone) {
  if (large() && !has_memory(32 * kGiB)) GTEST_SKIP() << "attention over 2^31 elements takes 32 GiB of memory";
  const int64_t length = large() ? 1024 : 40, heads = large() ? 8 : 2, size = large() ? 64 : 8;
  const int64_t batch = large() ? (int64_t{1} << 31) / (length * heads * size) + 1 : 3;
  auto op = make_op<rfn_attention>();
  auto& o = op.options = lsh_options(large() ? 64 : 8);
  o.factor_count = 1;
  o.factors[0] = large() ? 32 : 6;
  const rfn_tensor q = tensor({batch, length, heads, size}), v = tensor({batch, length, heads, size});
  const rfn_tensor out = tensor({batch, length, heads, size}), log_sum_exp = tensor({batch, heads, length});
  op.rotations = tensor({heads, size, kRounds, o.factors[0] / 2});
  op.q = q;
  op.v = v;
  op.out = out;
  op.log_sum_exp = log_sum_exp;
  run(op, RFN_PASS_FORWARD, rfn_attention_workspace, rfn_attention_forward);
  const int64_t one = length * heads * size;
  const auto got = read(out, (batch - 1) * one, one);
  const auto got_sum = read(log_sum_exp, (batch - 1) * length * heads, length * heads);
  op.q = last(q, 1);
  op.v = last(v, 1);
  op.out = tensor({1, length, heads, size});
  op.log_sum_exp = tensor({1, heads, length});
  run(op, RFN_PASS_FORWARD, rfn_attention_workspace, rfn_attention_forward);
  EXPECT_TRUE(SameBits(got, read(op.out, 0, one)));
  EXPECT_TRUE(SameBits(got_sum, read(op.log_sum_exp, 0, length * heads)));
}

// LSH attention over a million tokens: queries here and there against float64, and what all weights together must give.
TEST_F(Large, MillionTokens_MatchFloat64) {
  const int64_t length = large() ? 1 << 20 : 512, size = 64, chunk = large() ? 64 : 16, rounds = kRounds;
  auto op = make_op<rfn_attention>();
  auto& o = op.options = lsh_options(chunk);
  ASSERT_TRUE(Ok(rfn_lsh_automatic_buckets(RFN_BUCKETS_TRAX, length, chunk, length, o.factors, &o.factor_count)));
  int64_t columns = 0;
  for (int32_t i = 0; i < o.factor_count; ++i) columns += o.factors[i] / 2;
  const std::vector<int64_t> all = {1, length, 1, size};
  op.q = tensor(all);
  op.v = tensor(all);
  op.out = tensor(all);
  op.log_sum_exp = tensor({1, 1, length});
  op.rotations = tensor({1, size, rounds, columns});
  op.buckets = tensor({1, 1, rounds, length}, RFN_I32);
  op.grad_out = tensor(all);
  op.grad_q = tensor(all);
  op.grad_v = tensor(all);
  run(op, RFN_PASS_FORWARD, rfn_attention_workspace, rfn_attention_forward);
  run(op, RFN_PASS_BACKWARD, rfn_attention_workspace, rfn_attention_backward);

  const auto q = read(op.q, 0, length * size), v = read(op.v, 0, length * size), out = read(op.out, 0, length * size);
  const auto log_sum_exp = read(op.log_sum_exp, 0, length), rotations = read(op.rotations, 0, size * rounds * columns);
  const auto buckets = read<int32_t>(op.buckets, 0, rounds * length);

  // Slots of all rounds, one ring of chunks.
  std::vector<int64_t> ring(static_cast<size_t>(rounds * length)), place(ring.size());
  for (int64_t r = 0; r < rounds; ++r) {
    const auto begin = ring.begin() + r * length;
    std::iota(begin, begin + length, 0);
    std::stable_sort(begin, begin + length,
                     [&](int64_t a, int64_t b) { return buckets[r * length + a] < buckets[r * length + b]; });
    for (int64_t slot = 0; slot < length; ++slot) place[r * length + begin[slot]] = r * length + slot;
  }
  Random random(20);
  int hashed = 0;
  for (int sample = 0; sample < 200; ++sample) {
    const int64_t t = sample == 0 ? 0 : sample == 1 ? length - 1 : random.below(length);
    SCOPED_TRACE("token " + std::to_string(t));
    const auto row = [&](const std::vector<float>& values, int64_t i) { return values.data() + i * size; };
    std::vector<double> scores, sum(static_cast<size_t>(size), 0.0);
    std::vector<int64_t> keys;
    for (int64_t r = 0; r < rounds; ++r) {
      int64_t bucket = 0, stride = 1, column = 0;
      double margin = INFINITY;
      for (int32_t f = 0; f < o.factor_count; ++f) {
        const int64_t half = o.factors[f] / 2;
        std::vector<double> z(static_cast<size_t>(2 * half), 0.0);
        for (int64_t j = 0; j < half; ++j) {
          for (int64_t d = 0; d < size; ++d)
            z[j] += static_cast<double>(row(q, t)[d]) * rotations[(d * rounds + r) * columns + column + j];
          z[half + j] = -z[j];
        }
        const auto best = std::max_element(z.begin(), z.end());
        bucket += stride * (best - z.begin());
        const double largest = *best;
        *best = -INFINITY;
        margin = std::min(margin, largest - *std::max_element(z.begin(), z.end()));
        stride *= o.factors[f];
        column += half;
      }
      if (margin > 1e-3) {  // more than float32 can lose
        EXPECT_EQ(buckets[r * length + t], bucket);
        ++hashed;
      }
      const int64_t own = place[r * length + t] / chunk, chunks = rounds * length / chunk;
      for (const int64_t c : {(own + chunks - 1) % chunks, own}) {
        for (int64_t slot = c * chunk; slot < (c + 1) * chunk; ++slot) {
          const int64_t key = ring[slot];
          if (key >= t) continue;  // causal, and itself only as a last resort
          double dot = 0, square = 0;
          for (int64_t d = 0; d < size; ++d) {
            const double k = row(q, key)[d];
            dot += row(q, t)[d] * k;
            square += k * k;
          }
          const auto width = static_cast<double>(size);
          scores.push_back(dot / std::sqrt(square / width + 1e-6) / std::sqrt(width));
          keys.push_back(key);
        }
      }
    }
    if (keys.empty()) {
      EXPECT_TRUE(std::equal(row(v, t), row(v, t) + size, row(out, t)));
      EXPECT_EQ(log_sum_exp[t], -INFINITY);
      continue;
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
      const double weight = std::exp(scores[i] - largest);
      total += weight;
      for (int64_t d = 0; d < size; ++d) sum[d] += weight * row(v, keys[i])[d];
    }
    EXPECT_NEAR(log_sum_exp[t], largest + std::log(total), kLimit);
    for (int64_t d = 0; d < size; ++d) EXPECT_NEAR(row(out, t)[d], sum[d] / total, kLimit);
  }
  EXPECT_GT(hashed, 100);

  // The weights of each query sum to 1, so the gradients of all values together are those of all outputs.
  const auto grad_out = read(op.grad_out, 0, length * size), grad_v = read(op.grad_v, 0, length * size),
             grad_q = read(op.grad_q, 0, length * size);
  for (int64_t d = 0; d < size; ++d) {
    double expected = 0, got = 0;
    for (int64_t t = 0; t < length; ++t) expected += grad_out[t * size + d], got += grad_v[t * size + d];
    EXPECT_NEAR(got, expected, kLimit * std::sqrt(static_cast<double>(length))) << "channel " << d;
  }
  EXPECT_TRUE(std::all_of(grad_q.begin(), grad_q.end(), [](float g) { return std::isfinite(g); }));
}

}  // namespace
}  // namespace rfn::test
