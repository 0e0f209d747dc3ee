// Attention of all kinds against float64, at sizes that fit nothing, with poisoned outputs and exact workspaces.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <string>
#include <vector>

#include "half.h"
#include "harness.h"
#include "reference_attention.h"

namespace rfn::test {
namespace {

constexpr double kForwardLimit = 1e-5;
constexpr double kGradientLimit = 2e-5;
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

struct Case {
  std::string name;
  int32_t kind = RFN_ATTENTION_LSH;
  int64_t batch = 1, length = 64, heads = 2, head_size = 16;
  int64_t chunk = 16, padded = 0;
  int32_t shared = 1, causal = 0, window = RFN_WINDOW_SLOTS, wrap = 1, repeat = 0, duplicates = 0,
          key_norm = RFN_KEY_NORM_RMS, rounds = 1;
  int32_t before = 1, after = 0, pad_bucket = 0;
  std::vector<int32_t> factors = {8};
  int64_t rotation_sets = 1;
  float logit_scale = 0, dropout = 0;
  bool masked = false;
  int64_t head_group = 0;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](std::string name, auto change) {
    Case c;
    change(c);
    c.name = std::move(name);
    all.push_back(c);
  };
  add("LshOneRound", [](Case&) {});
  add("LshCausal", [](Case& c) {
    c.causal = 1;
    c.rounds = 2;
    c.batch = 2;
  });
  add("LshFourRounds", [](Case& c) {
    c.rounds = 4;
    c.length = 96;
    c.factors = {6, 4};
    c.rotation_sets = 2;
  });
  add("LshBeforeAndAfter", [](Case& c) {
    c.before = 2;
    c.after = 1;
    c.rounds = 2;
    c.length = 112;
  });
  add("LshOddLength", [](Case& c) {
    c.length = 75;
    c.rounds = 2;
    c.causal = 1;
    c.masked = true;
    c.pad_bucket = 1;
  });
  add("LshLengthOne", [](Case& c) {
    c.length = 1;
    c.rounds = 2;
    c.causal = 1;
  });
  add("LshLength31", [](Case& c) {
    c.length = 31;
    c.rounds = 3;
  });
  add("LshLength33Chunk32", [](Case& c) {
    c.length = 33;
    c.chunk = 32;
    c.rounds = 2;
  });
  add("LshMaskBucket", [](Case& c) {
    c.masked = true;
    c.pad_bucket = 1;
    c.rounds = 2;
    c.batch = 3;
  });
  add("LshMaskHashed", [](Case& c) {
    c.masked = true;
    c.rounds = 2;
    c.batch = 2;
    c.key_norm = RFN_KEY_NORM_L2;
  });
  add("LshPaddedFurther", [](Case& c) {
    c.length = 50;
    c.padded = 96;
    c.rounds = 2;
    c.pad_bucket = 1;
  });
  add("LshSameBucket", [](Case& c) {
    c.window = RFN_WINDOW_SAME_BUCKET;
    c.rounds = 3;
    c.causal = 1;
  });
  add("LshSameBucketDuplicates", [](Case& c) {
    c.window = RFN_WINDOW_SAME_BUCKET;
    c.duplicates = 1;
    c.rounds = 4;
    c.wrap = 0;
    c.before = 1;
    c.after = 1;
  });
  add("LshDuplicates", [](Case& c) {
    c.duplicates = 1;
    c.rounds = 4;
    c.causal = 1;
    c.key_norm = RFN_KEY_NORM_L2;
  });
  add("LshDuplicatesShortRing", [](Case& c) {
    c.duplicates = 1;
    c.rounds = 1;
    c.before = 2;
    c.after = 2;
    c.length = 48;
    c.repeat = 1;
  });
  add("LshDuplicatesRing", [](Case& c) {
    c.duplicates = 1;
    c.rounds = 1;
    c.before = 1;
    c.after = 1;
    c.length = 96;
  });
  add("LshDuplicatesTwiceRound", [](Case& c) {
    c.duplicates = 1;
    c.rounds = 1;
    c.before = 0;
    c.after = 3;
    c.length = 32;
  });
  add("LshStrict", [](Case& c) {
    c.window = RFN_WINDOW_STRICT;
    c.causal = 1;
    c.rounds = 4;
    c.factors = {4};
    c.length = 90;
  });
  add("LshStrictDuplicates", [](Case& c) {
    c.window = RFN_WINDOW_STRICT;
    c.causal = 1;
    c.rounds = 3;
    c.factors = {2};
    c.duplicates = 1;
    c.before = 2;
    c.repeat = 1;
  });
  add("LshNoWrap", [](Case& c) {
    c.wrap = 0;
    c.rounds = 2;
    c.before = 1;
    c.after = 1;
  });
  add("LshRepeatOneChunk", [](Case& c) {
    c.length = 16;
    c.repeat = 1;
    c.rounds = 1;
  });
  add("LshOnceOneChunk", [](Case& c) {
    c.length = 16;
    c.rounds = 2;
    c.before = 3;
    c.after = 2;
  });
  add("LshDropout", [](Case& c) {
    c.dropout = 0.3f;
    c.rounds = 2;
    c.causal = 1;
    c.length = 70;
  });
  add("LshStrictDropout", [](Case& c) {
    c.window = RFN_WINDOW_STRICT;
    c.causal = 1;
    c.rounds = 3;
    c.factors = {4};
    c.length = 90;
    c.dropout = 0.3f;
  });
  add("LshLargeChunk", [](Case& c) {
    c.chunk = 100;
    c.length = 250;
    c.factors = {4};
    c.rounds = 2;
    c.causal = 1;
  });
  add("LshHeadSizeOdd", [](Case& c) {
    c.head_size = 7;
    c.heads = 3;
    c.rounds = 2;
    c.rotation_sets = 3;
  });
  add("LshHeadSize80", [](Case& c) {
    c.head_size = 80;
    c.rounds = 2;
    c.key_norm = RFN_KEY_NORM_L2;
    c.logit_scale = 0.3f;
  });
  add("LshNoKeyNorm", [](Case& c) {
    c.key_norm = RFN_KEY_NORM_NONE;
    c.rounds = 2;
  });
  add("LshRotationsPerExample", [](Case& c) {
    c.batch = 2;
    c.heads = 3;
    c.rotation_sets = 6;
    c.rounds = 2;
    c.head_group = 2;
  });
  add("LshManyBuckets", [](Case& c) {
    c.factors = {300, 300};
    c.rounds = 2;
  });
  add("LshManyItems", [](Case& c) {
    c.head_size = 4;
    c.length = 2100;
    c.chunk = 8;
    c.heads = 1;
    c.rounds = 2;
    c.factors = {64};
    c.before = 1;
    c.after = 1;
  });
  // Windows of more keys than a thread keeps packed, and of many small blocks.
  add("LshWideWindow", [](Case& c) {
    c.chunk = 130;
    c.length = 400;
    c.before = 2;
    c.after = 1;
    c.rounds = 2;
    c.heads = 1;
    c.head_size = 8;
    c.dropout = 0.1f;
  });
  add("LshSmallChunks", [](Case& c) {
    c.chunk = 4;
    c.length = 150;
    c.before = 9;
    c.after = 4;
    c.rounds = 2;
    c.duplicates = 1;
  });
  // Whole tiles, of which the masks leave staircases.
  add("LshCausalChunk64", [](Case& c) {
    c.chunk = 64;
    c.length = 300;
    c.causal = 1;
    c.rounds = 2;
    c.heads = 1;
    c.factors = {12};
    c.masked = true;
  });
  add("LshStrictChunk64", [](Case& c) {
    c.window = RFN_WINDOW_STRICT;
    c.causal = 1;
    c.chunk = 64;
    c.length = 300;
    c.rounds = 2;
    c.heads = 1;
    c.factors = {4};
    c.duplicates = 1;
  });
  add("LshSameBucketChunk64", [](Case& c) {
    c.window = RFN_WINDOW_SAME_BUCKET;
    c.chunk = 64;
    c.length = 300;
    c.rounds = 3;
    c.heads = 1;
    c.factors = {12};
    c.duplicates = 1;
    c.after = 1;
  });
  add("LocalWideWindow", [](Case& c) {
    c.kind = RFN_ATTENTION_LOCAL;
    c.shared = 0;
    c.key_norm = 0;
    c.chunk = 130;
    c.length = 530;
    c.before = 3;
    c.heads = 1;
    c.head_size = 8;
  });
  add("LocalCausal", [](Case& c) {
    c.kind = RFN_ATTENTION_LOCAL;
    c.shared = 0;
    c.causal = 1;
    c.key_norm = 0;
    c.batch = 2;
  });
  add("LocalBothSides", [](Case& c) {
    c.kind = RFN_ATTENTION_LOCAL;
    c.shared = 0;
    c.after = 1;
    c.key_norm = 0;
    c.masked = true;
    c.length = 75;
  });
  add("LocalShortRing", [](Case& c) {
    c.kind = RFN_ATTENTION_LOCAL;
    c.shared = 0;
    c.before = 1;
    c.after = 1;
    c.key_norm = 0;
    c.length = 32;
    c.repeat = 1;
  });
  add("LocalNoWrapDropout", [](Case& c) {
    c.kind = RFN_ATTENTION_LOCAL;
    c.shared = 0;
    c.wrap = 0;
    c.after = 1;
    c.key_norm = 0;
    c.dropout = 0.5f;
  });
  add("LocalManyEmptyBlocks", [](Case& c) {
    c.kind = RFN_ATTENTION_LOCAL;
    c.length = 193;
    c.chunk = 129;
    c.padded = 774;
    c.before = 3;
  });
  add("LocalShared", [](Case& c) {
    c.kind = RFN_ATTENTION_LOCAL;
    c.causal = 1;
    c.length = 33;
  });
  add("FullOrdinary", [](Case& c) {
    c.kind = RFN_ATTENTION_FULL;
    c.shared = 0;
    c.key_norm = 0;
    c.length = 130;
    c.batch = 2;
  });
  add("FullCausal", [](Case& c) {
    c.kind = RFN_ATTENTION_FULL;
    c.shared = 0;
    c.key_norm = 0;
    c.causal = 1;
    c.length = 201;
  });
  add("FullShared", [](Case& c) {
    c.kind = RFN_ATTENTION_FULL;
    c.causal = 1;
    c.length = 65;
    c.masked = true;
  });
  add("FullSharedManyStripes", [](Case& c) {
    c.kind = RFN_ATTENTION_FULL;
    c.causal = 1;
    c.length = 1050;
    c.heads = 1;
    c.head_size = 8;
  });
  add("FullSharedOddStripes", [](Case& c) {
    c.kind = RFN_ATTENTION_FULL;
    c.length = 300;
    c.heads = 1;
    c.head_size = 8;
    c.masked = true;
  });
  add("FullDropout", [](Case& c) {
    c.kind = RFN_ATTENTION_FULL;
    c.shared = 0;
    c.key_norm = 0;
    c.dropout = 0.2f;
    c.length = 100;
    c.masked = true;
  });
  add("FullOne", [](Case& c) {
    c.kind = RFN_ATTENTION_FULL;
    c.length = 1;
  });
  add("FullManyStripes", [](Case& c) {
    c.kind = RFN_ATTENTION_FULL;
    c.shared = 0;
    c.key_norm = 0;
    c.length = 1200;
    c.heads = 1;
    c.head_size = 8;
  });
  return all;
}

rfn_attention_options options_of(const Case& c) {
  rfn_attention_options o = {};
  o.struct_size = sizeof(o);
  o.kind = c.kind;
  o.shared_qk = c.shared;
  o.causal = c.causal;
  o.window = c.window;
  o.wrap = c.wrap;
  o.repeat_chunks = c.repeat;
  o.duplicates = c.duplicates;
  o.key_norm = c.key_norm;
  o.rounds = c.rounds;
  o.factor_count = static_cast<int32_t>(c.factors.size());
  std::copy(c.factors.begin(), c.factors.end(), o.factors);
  o.pad_bucket = c.pad_bucket;
  o.chunks_before = c.before;
  o.chunks_after = c.after;
  o.logit_scale = c.logit_scale;
  o.dropout = c.dropout;
  o.chunk_length = c.chunk;
  o.padded_length = c.padded;
  if (c.kind == RFN_ATTENTION_FULL) {
    o.chunk_length = 0;
    o.chunks_before = 0;
  }
  if (c.kind != RFN_ATTENTION_LSH) {
    o.rounds = 0;
    o.factor_count = 0;
    o.pad_bucket = 0;
  }
  return o;
}

std::vector<double> widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }

// Inputs of a case, and the same for the reference. Draws again until float32 can't disagree about a bucket.
struct Problem {
  Case c;
  ReferenceAttention reference;
  std::vector<float> q, k, v, rotations, grad_out;
  std::vector<uint8_t> mask;

  // Of numbers that `dtype` holds.
  Problem(const Case& test, uint64_t seed, int32_t dtype = RFN_F32) : c(test) {
    Random random(seed);
    const int64_t n = c.batch * c.length * c.heads * c.head_size;
    reference.options = options_of(c);
    reference.batch = c.batch;
    reference.length = c.length;
    reference.heads = c.heads;
    reference.head_size = c.head_size;
    reference.seed = 77;
    reference.step = 5;
    reference.layer = 3;
    reference.rotation_sets = c.rotation_sets;
    v = exact(dtype, random.floats(n));
    grad_out = exact(dtype, random.floats(n));
    if (c.shared == 0) k = exact(dtype, random.floats(n, -2, 2));
    if (c.masked) {
      mask.assign(c.batch * c.length, 1);
      for (auto& m : mask) m = random.below(4) != 0;
      mask[0] = 0, mask[mask.size() - 1] = 0;
    }
    int64_t columns = 0;
    for (const int32_t f : c.factors) columns += f / 2;
    for (int attempt = 0;; ++attempt) {
      q = exact(dtype, random.floats(n, -2, 2));
      rotations = random.floats(c.rotation_sets * c.head_size * c.rounds * columns);
      reference.q = widen(q);
      reference.k = widen(k);
      reference.v = widen(v);
      reference.rotations = widen(rotations);
      reference.mask = mask;
      if (!reference.lsh()) break;
      reference.smallest_margin = std::numeric_limits<double>::infinity();
      reference.hash();
      if (reference.smallest_margin > 2e-6) break;
      if (attempt == 200) throw std::runtime_error("no inputs without a near tie");
    }
    if (reference.lsh()) reference.sort();
  }

  std::vector<int64_t> shape() const { return {c.batch, c.length, c.heads, c.head_size}; }
};

// Device copies, q and its like as T, and the op over them.
template <class T>
struct BoundAs {
  Tensor<T> q, k, v, out, grad_out, grad_q, grad_k, grad_v;
  Tensor<float> rotations, log_sum_exp;
  Tensor<uint8_t> mask;
  rfn_attention op = make_op<rfn_attention>();

  explicit BoundAs(const Problem& p)
      : q(p.shape(), stored<T>(p.q)),
        k(p.shape(), stored<T>(p.k.empty() ? p.q : p.k)),
        v(p.shape(), stored<T>(p.v)),
        out(p.shape()),
        grad_out(p.shape(), stored<T>(p.grad_out)),
        grad_q(p.shape()),
        grad_k(p.shape()),
        grad_v(p.shape()),
        rotations(rotation_shape(p), p.rotations),
        log_sum_exp({p.c.batch, p.c.heads, p.c.length}),
        mask({p.c.batch, p.c.length}, p.mask.empty() ? std::vector<uint8_t>(p.c.batch * p.c.length, 1) : p.mask) {
    op.options = p.reference.options;
    op.seed = p.reference.seed;
    op.step = p.reference.step;
    op.layer = p.reference.layer;
    op.q = q;
    op.v = v;
    op.out = out;
    op.log_sum_exp = log_sum_exp;
    op.grad_out = grad_out;
    op.grad_q = grad_q;
    op.grad_v = grad_v;
    if (p.c.shared == 0) {
      op.k = k;
      op.grad_k = grad_k;
    }
    if (!p.mask.empty()) op.mask = mask;
    if (p.reference.lsh()) op.rotations = rotations;
    op.head_group = p.c.head_group;
  }

  static std::vector<int64_t> rotation_shape(const Problem& p) {
    int64_t columns = 0;
    for (const int32_t f : p.c.factors) columns += f / 2;
    return {p.c.rotation_sets, p.c.head_size, p.c.rounds, columns};
  }
};
using Bound = BoundAs<float>;

class AttentionTest : public testing::TestWithParam<Case> {
 protected:
  Context context{2};
  Stream stream{context};
};

void expect_float64(const Case& c, const std::vector<int32_t>& in_precisions) {
  const Context context{2};
  const Stream stream{context};
  Problem p(c, 11);
  p.reference.backward(widen(p.grad_out));
  const Zeros zeros = p.c.length == 1 ? Zeros::kAllowed : Zeros::kRefused;
  std::vector<float> unrounded;
  for (const int32_t precision : in_precisions) {
    SCOPED_TRACE(precision_name(precision));
    const double limit = forward_limit(precision, kForwardLimit), gradients = gradient_limit(precision, kGradientLimit);
    ASSERT_TRUE(Ok(rfn_context_set_precision(context, precision)));
    Bound b(p);
    ASSERT_TRUE(Ok(forward(stream, b.op)));
    EXPECT_TRUE(Close(widen(b.out.values()), p.reference.out, limit));
    if (p.c.length > 1) {
      EXPECT_TRUE(Close(widen(b.log_sum_exp.values()), p.reference.log_sum_exp, limit));
      if (precision == RFN_PRECISION_F32) unrounded = b.out.values();
      EXPECT_TRUE(unrounded.empty() ||
                  static_cast<bool>(SameBits(b.out.values(), unrounded)) == (precision == RFN_PRECISION_F32));
    }
    ASSERT_TRUE(Ok(backward(stream, b.op)));
    EXPECT_TRUE(Close(widen(b.grad_q.values()), p.reference.grad_q, gradients, zeros));
    EXPECT_TRUE(Close(widen(b.grad_v.values()), p.reference.grad_v, gradients));
    if (p.c.shared == 0) {
      EXPECT_TRUE(Close(widen(b.grad_k.values()), p.reference.grad_k, gradients, zeros));
    }
  }
}

void expect_same_bits(const Case& c, const std::vector<int32_t>& in_precisions) {
  const Problem p(c, 12);
  for (const int32_t precision : in_precisions) {
    SCOPED_TRACE(precision_name(precision));
    std::vector<std::vector<float>> first;
    for_each_schedule(
        [&](int32_t threads) {
          for (const int64_t group : on_cpu() || first.empty() ? std::vector<int64_t>{0, 1} : std::vector<int64_t>{0}) {
            Context other(threads, precision);
            Stream lane(other);
            Bound b(p);
            b.op.head_group = group;
            ASSERT_TRUE(Ok(forward(lane, b.op)));
            ASSERT_TRUE(Ok(backward(lane, b.op)));
            const std::vector<std::vector<float>> now = {b.out.values(), b.log_sum_exp.values(), b.grad_q.values(),
                                                         b.grad_v.values()};
            if (first.empty()) first = now;
            for (size_t i = 0; i < now.size(); ++i)
              EXPECT_TRUE(SameBits(now[i], first[i])) << "threads " << threads << ", head group " << group;
          }
        },
        precision == RFN_PRECISION_F32 ? 10 : 4);
  }
}

TEST_P(AttentionTest, ForwardAndBackwardMatchFloat64) { expect_float64(GetParam(), precisions()); }
TEST_P(AttentionTest, SameBitsForEveryScheduleAndHeadGroup) { expect_same_bits(GetParam(), precisions()); }

// Cases for the kernels that CUDA has for bf16, shared projections and chunks of 64 with one before.
std::vector<Case> chunk_cases() {
  std::vector<Case> all;
  const auto add = [&](std::string name, auto change) {
    Case c;
    c.chunk = 64;
    c.heads = 1;
    c.rounds = 2;
    c.head_size = 64;
    c.factors = {6};
    change(c);
    c.name = std::move(name);
    all.push_back(c);
  };
  add("SlotsCausal", [](Case& c) {
    c.causal = 1;
    c.length = 200;
    c.masked = true;
    c.pad_bucket = 1;
  });
  // More chunks than a block has, and several heads and examples.
  add("SlotsCausalSegments", [](Case& c) {
    c.causal = 1;
    c.length = 64 * 5 + 1;
    c.batch = 2;
    c.heads = 2;
    c.rounds = 1;
    c.head_size = 32;
    c.head_group = 1;
  });
  add("SlotsBothWays", [](Case& c) { c.length = 129; });
  add("SlotsBothWaysMasked", [](Case& c) {
    c.length = 150;
    c.masked = true;
    c.key_norm = RFN_KEY_NORM_L2;
    c.head_size = 7;
  });
  add("SlotsWithoutRing", [](Case& c) {
    c.length = 127;
    c.wrap = 0;
    c.rounds = 3;
  });
  add("SlotsShortestRing", [](Case& c) {
    c.length = 64;
    c.causal = 1;
  });
  add("SlotsPaddedFurther", [](Case& c) {
    c.length = 70;
    c.padded = 64 * 6;
  });
  add("OneToken", [](Case& c) { c.length = 1; });
  add("Strict", [](Case& c) {
    c.window = RFN_WINDOW_STRICT;
    c.causal = 1;
    c.length = 190;
    c.factors = {2};
    c.head_size = 20;
    c.masked = true;
  });
  add("BucketCausal", [](Case& c) {
    c.window = RFN_WINDOW_SAME_BUCKET;
    c.causal = 1;
    c.length = 200;
    c.factors = {4};
    c.masked = true;
  });
  add("BucketBothWays", [](Case& c) {
    c.window = RFN_WINDOW_SAME_BUCKET;
    c.length = 193;
    c.masked = true;
    c.factors = {2};
    c.rounds = 3;
  });
  // Keys that are not normalised have no bound: the largest logits are found first.
  add("NoKeyNorm", [](Case& c) {
    c.key_norm = RFN_KEY_NORM_NONE;
    c.causal = 1;
    c.length = 130;
    c.head_size = 16;
  });
  add("NoKeyNormBothWays", [](Case& c) {
    c.key_norm = RFN_KEY_NORM_NONE;
    c.length = 100;
    c.masked = true;
    c.head_size = 16;
  });
  add("NoKeyNormBucket", [](Case& c) {
    c.key_norm = RFN_KEY_NORM_NONE;
    c.window = RFN_WINDOW_SAME_BUCKET;
    c.length = 100;
    c.masked = true;
    c.head_size = 16;
  });
  return all;
}

// BF16 where the device has it.
std::vector<int32_t> chunk_precision() {
  const std::vector<int32_t> have = precisions();
  const bool bf16 = std::find(have.begin(), have.end(), RFN_PRECISION_BF16) != have.end();
  return {bf16 ? RFN_PRECISION_BF16 : RFN_PRECISION_F32};
}

class ChunkAttentionTest : public testing::TestWithParam<Case> {};
TEST_P(ChunkAttentionTest, ForwardAndBackwardMatchFloat64) { expect_float64(GetParam(), chunk_precision()); }
TEST_P(ChunkAttentionTest, SameBitsForEverySchedule) { expect_same_bits(GetParam(), chunk_precision()); }
INSTANTIATE_TEST_SUITE_P(All, ChunkAttentionTest, testing::ValuesIn(chunk_cases()),
                         [](const auto& info) { return info.param.name; });

// The only logit of a query may be far below 0, where the keys that are not there have 0: they weigh nothing all the
// same.
TEST(ChunkAttention, LogitFarBelowZero_AbsentKeysWeighNothing) {
  for (const int32_t window : {RFN_WINDOW_SLOTS, RFN_WINDOW_SAME_BUCKET}) {
    Case c;
    c.chunk = 64;
    c.heads = 1;
    c.length = 40;
    c.rounds = 2;
    c.head_size = 8;
    c.factors = {2};
    c.key_norm = RFN_KEY_NORM_NONE;
    c.logit_scale = 20.0f;
    c.window = window;
    c.masked = true;
    Problem p(c, 21);
    // Two tokens that look away from each other, the only ones of their bucket and round.
    for (int64_t i = 0; i < c.length; ++i) p.mask[i] = i == 10 || i == 11;
    for (int64_t d = 0; d < c.head_size; ++d) {
      p.q[c.head_size * 10 + d] = 4.0f;
      p.q[c.head_size * 11 + d] = -4.0f;
    }
    p.reference.q = widen(p.q);
    p.reference.mask = p.mask;
    p.reference.buckets.assign(p.reference.buckets.size(), 0);
    p.reference.sort();
    p.reference.backward(widen(p.grad_out));
    Context context(2, chunk_precision().front());
    Stream stream(context);
    Bound b(p);
    Tensor<float> rotations(Bound::rotation_shape(p), std::vector<float>(p.rotations.size()));  // bucket 0 for all
    b.op.rotations = rotations;
    ASSERT_TRUE(Ok(forward(stream, b.op)));
    EXPECT_TRUE(Close(widen(b.out.values()), p.reference.out, 2e-2));
    EXPECT_NEAR(b.log_sum_exp.values()[10], p.reference.log_sum_exp[10], 1e-2);
    EXPECT_LT(b.log_sum_exp.values()[10], -2000);
    ASSERT_TRUE(Ok(backward(stream, b.op)));
    EXPECT_TRUE(Close(widen(b.grad_v.values()), p.reference.grad_v, 4e-2));
    for (const float x : b.grad_q.values()) ASSERT_TRUE(std::isfinite(x));
  }
}

// A value that is no number reaches every row that sees it, and no other.
TEST(ChunkAttention, NotANumber_IsNotHidden) {
  Case c;
  c.chunk = 64;
  c.heads = 1;
  c.length = 64 * 4;
  c.rounds = 1;
  c.head_size = 8;
  c.factors = {2};
  c.causal = 1;
  Problem p(c, 22);
  p.q[8 * 100] = std::numeric_limits<float>::quiet_NaN();
  Context context(2, chunk_precision().front());
  Stream stream(context);
  Bound b(p);
  ASSERT_TRUE(Ok(forward(stream, b.op)));
  EXPECT_TRUE(std::isnan(b.out.values()[8 * 100]));
  EXPECT_TRUE(std::isnan(b.log_sum_exp.values()[100]));
  EXPECT_TRUE(std::isfinite(b.out.values()[8 * 20]));  // it comes before
}

// What lies between the stages of LSH attention.
struct StageTensors {
  Tensor<int32_t> buckets, sorted;
  Tensor<float> round_out, round_log_sum_exp, grad_round_out, grad_round_log_sum_exp;

  explicit StageTensors(const Problem& p)
      : buckets({p.c.batch, p.c.heads, p.c.rounds, p.c.length}),
        sorted({p.c.batch, p.c.heads, p.c.rounds, p.reference.padded()}),
        round_out({p.c.rounds * p.c.batch, p.c.length, p.c.heads, p.c.head_size}),
        round_log_sum_exp({p.c.rounds, p.c.batch, p.c.heads, p.c.length}),
        grad_round_out({p.c.rounds * p.c.batch, p.c.length, p.c.heads, p.c.head_size}),
        grad_round_log_sum_exp({p.c.rounds, p.c.batch, p.c.heads, p.c.length}) {}

  void put_into(rfn_attention& op) const {
    op.buckets = buckets;
    op.sorted = sorted;
    op.round_out = round_out;
    op.round_log_sum_exp = round_log_sum_exp;
    op.grad_round_out = grad_round_out;
    op.grad_round_log_sum_exp = grad_round_log_sum_exp;
  }
};

void forward_by_stages(const Stream& stream, const Problem& p, const StageTensors& stages, rfn_attention& op) {
  stages.put_into(op);
  ASSERT_TRUE(Ok(stage(stream, op, rfn_lsh_hash)));
  EXPECT_TRUE(SameBits(stages.buckets.values(), p.reference.buckets));
  ASSERT_TRUE(Ok(stage(stream, op, rfn_lsh_sort)));
  EXPECT_TRUE(SameBits(stages.sorted.values(), p.reference.sorted));
  ASSERT_TRUE(Ok(stage(stream, op, rfn_lsh_attend)));
  ASSERT_TRUE(Ok(stage(stream, op, rfn_lsh_combine)));
}

void backward_by_stages(const Stream& stream, rfn_attention& op) {
  ASSERT_TRUE(Ok(stage(stream, op, rfn_lsh_combine_backward)));
  ASSERT_TRUE(Ok(stage(stream, op, rfn_lsh_attend_backward)));
}

std::vector<Case> lsh_alone(std::vector<Case> all) {
  all.erase(std::remove_if(all.begin(), all.end(), [](const Case& c) { return c.kind != RFN_ATTENTION_LSH; }),
            all.end());
  return all;
}

class LshAttentionTest : public AttentionTest {};

TEST_P(LshAttentionTest, StagesMatchTheWhole) {
  Problem p(GetParam(), 13);
  Bound b(p);
  const StageTensors stages(p);
  forward_by_stages(stream, p, stages, b.op);
  p.reference.backward(widen(p.grad_out));
  EXPECT_TRUE(Close(widen(b.out.values()), p.reference.out, kForwardLimit));
  backward_by_stages(stream, b.op);
  const Zeros zeros = p.c.length == 1 ? Zeros::kAllowed : Zeros::kRefused;
  EXPECT_TRUE(Close(widen(b.grad_q.values()), p.reference.grad_q, kGradientLimit, zeros));
  EXPECT_TRUE(Close(widen(b.grad_v.values()), p.reference.grad_v, kGradientLimit));
}

INSTANTIATE_TEST_SUITE_P(All, LshAttentionTest, testing::ValuesIn(lsh_alone(cases())),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(All, AttentionTest, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

// ---- BF16 and F16 -------------------------------------------------------------------------------

// The reference's gradients as a backward pass sees them whose `out` was rounded: that enters them through grad_out .
// out alone, where the gradient of the log-sum-exp enters too.
template <class T>
void backward_from_rounded(Problem& p, const std::vector<T>& out) {
  ReferenceAttention& r = p.reference;
  r.forward();
  std::vector<double> along(static_cast<size_t>(r.batch * r.heads * r.length));
  for (int64_t b = 0; b < r.batch; ++b) {
    for (int64_t h = 0; h < r.heads; ++h) {
      for (int64_t t = 0; t < r.length; ++t) {
        for (int64_t d = 0; d < r.head_size; ++d) {
          const auto i = static_cast<size_t>(r.row(b, t, h) + d);
          along[static_cast<size_t>((b * r.heads + h) * r.length + t)] +=
              p.grad_out[i] * (r.out[i] - static_cast<double>(out[i]));
        }
      }
    }
  }
  r.backward(widen(p.grad_out), along);
}

template <class T>
void expect_half_close_to_float64(const Stream& stream, const Case& c) {
  SCOPED_TRACE(type_name(TypeOf<T>::value));
  Problem p(c, 17, TypeOf<T>::value);
  BoundAs<T> b(p);
  ASSERT_TRUE(Ok(forward(stream, b.op)));
  p.reference.forward();
  EXPECT_TRUE(CloseRounded(b.out.values(), p.reference.out, kForwardLimit));
  EXPECT_TRUE(Close(widen(b.log_sum_exp.values()), p.reference.log_sum_exp, kForwardLimit));
  ASSERT_TRUE(Ok(backward(stream, b.op)));
  backward_from_rounded(p, b.out.values());
  EXPECT_TRUE(CloseRounded(b.grad_q.values(), p.reference.grad_q, kGradientLimit));
  EXPECT_TRUE(CloseRounded(b.grad_v.values(), p.reference.grad_v, kGradientLimit));
  if (c.shared == 0) {
    EXPECT_TRUE(CloseRounded(b.grad_k.values(), p.reference.grad_k, kGradientLimit));
  }
}

// The CPU's results are those of float32 tensors of the same numbers, rounded.
template <class T>
void expect_half_is_float32_rounded(const Stream& stream, const Case& c) {
  SCOPED_TRACE(type_name(TypeOf<T>::value));
  const Problem p(c, 18, TypeOf<T>::value);
  BoundAs<T> half(p);
  Bound whole(p);
  half.op.head_group = whole.op.head_group = 1;
  ASSERT_TRUE(Ok(forward(stream, half.op)));
  ASSERT_TRUE(Ok(forward(stream, whole.op)));
  const std::vector<T> out = half.out.values();
  EXPECT_TRUE(SameBits(out, stored<T>(whole.out.values())));
  EXPECT_TRUE(SameBits(half.log_sum_exp.values(), whole.log_sum_exp.values()));
  std::vector<float> seen;
  for (const T& value : out) seen.push_back(static_cast<float>(static_cast<double>(value)));
  whole.out.set(seen);
  ASSERT_TRUE(Ok(backward(stream, half.op)));
  ASSERT_TRUE(Ok(backward(stream, whole.op)));
  EXPECT_TRUE(SameBits(half.grad_q.values(), stored<T>(whole.grad_q.values())));
  EXPECT_TRUE(SameBits(half.grad_v.values(), stored<T>(whole.grad_v.values())));
  if (c.shared == 0) {
    EXPECT_TRUE(SameBits(half.grad_k.values(), stored<T>(whole.grad_k.values())));
  }
}

template <class T>
void expect_half_stages_close_to_float64(const Stream& stream, const Case& c) {
  SCOPED_TRACE(type_name(TypeOf<T>::value));
  Problem p(c, 19, TypeOf<T>::value);
  BoundAs<T> b(p);
  const StageTensors stages(p);
  forward_by_stages(stream, p, stages, b.op);
  p.reference.forward();
  EXPECT_TRUE(CloseRounded(b.out.values(), p.reference.out, kForwardLimit));
  backward_by_stages(stream, b.op);
  backward_from_rounded(p, b.out.values());
  EXPECT_TRUE(CloseRounded(b.grad_q.values(), p.reference.grad_q, kGradientLimit));
  EXPECT_TRUE(CloseRounded(b.grad_v.values(), p.reference.grad_v, kGradientLimit));
}

// Some of each kind: odd lengths and head sizes, masks, head groups that are not all heads, own keys.
std::vector<Case> half_cases() {
  std::vector<Case> chosen;
  for (const Case& c : cases()) {
    for (const char* const name :
         {"LshCausal", "LshOddLength", "LshLength31", "LshSameBucketDuplicates", "LshStrictDropout", "LshHeadSizeOdd",
          "LshRotationsPerExample", "LocalCausal", "LocalBothSides", "FullCausal", "FullShared", "FullDropout"}) {
      if (c.name == name) chosen.push_back(c);
    }
  }
  return chosen;
}

class HalfAttentionTest : public AttentionTest {};

TEST_P(HalfAttentionTest, ForwardAndBackwardMatchFloat64) {
  expect_half_close_to_float64<BFloat16>(stream, GetParam());
  expect_half_close_to_float64<Float16>(stream, GetParam());
}

// Not for devices.
TEST_P(HalfAttentionTest, OnTheCpuFloat32Rounded) {
  expect_half_is_float32_rounded<BFloat16>(stream, GetParam());
  expect_half_is_float32_rounded<Float16>(stream, GetParam());
}

class HalfLshAttentionTest : public AttentionTest {};

TEST_P(HalfLshAttentionTest, StagesMatchFloat64) {
  expect_half_stages_close_to_float64<BFloat16>(stream, GetParam());
  expect_half_stages_close_to_float64<Float16>(stream, GetParam());
}

INSTANTIATE_TEST_SUITE_P(All, HalfLshAttentionTest, testing::ValuesIn(lsh_alone(half_cases())),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(All, HalfAttentionTest, testing::ValuesIn(half_cases()),
                         [](const auto& info) { return info.param.name; });

// Every number of 16 bits goes through a call unchanged, and every NaN becomes the same one: tokens that meet nobody
// have their own values.
template <class T>
void expect_every_number_back(const Stream& stream) {
  SCOPED_TRACE(type_name(TypeOf<T>::value));
  const std::vector<int64_t> sizes = {512, 1, 2, 64};
  std::vector<T> all(1 << 16), expected(1 << 16);
  for (size_t bits = 0; bits < all.size(); ++bits) {
    all[bits].bits = static_cast<uint16_t>(bits);
    expected[bits].bits = std::isnan(static_cast<double>(all[bits])) ? 0x7FFF : static_cast<uint16_t>(bits);
  }
  const Tensor<T> q(sizes, std::vector<T>(1 << 16, T(0.5))), v(sizes, all), out(sizes);
  auto op = make_op<rfn_attention>();
  op.options = make_op<rfn_attention_options>();
  op.options.kind = RFN_ATTENTION_FULL;
  op.options.shared_qk = 1;
  op.options.key_norm = RFN_KEY_NORM_RMS;
  op.q = q;
  op.v = v;
  op.out = out;
  ASSERT_TRUE(Ok(forward(stream, op)));
  const std::vector<T> found = out.values();
  for (size_t bits = 0; bits < all.size(); ++bits)
    ASSERT_EQ(found[bits].bits, expected[bits].bits) << "of the bits " << bits;
}

// The reference itself, against central differences along random directions.
TEST(ReferenceAttentionTest, GradientsMatchFiniteDifferences) {
  int checked = 0;
  for (const Case& c : cases()) {
    if (c.length > 120 || c.head_size > 20) continue;
    Problem p(c, 14);
    ReferenceAttention& r = p.reference;
    Random random(15);
    const std::vector<double> grad_out = widen(p.grad_out),
                              weights_log_sum_exp = widen(random.floats(c.batch * c.heads * c.length));
    r.backward(grad_out, weights_log_sum_exp);
    const auto objective = [&] {
      r.forward();
      double sum = 0;
      for (size_t i = 0; i < r.out.size(); ++i) sum += r.out[i] * grad_out[i];
      for (size_t i = 0; i < r.log_sum_exp.size(); ++i)
        sum += std::isinf(r.log_sum_exp[i]) ? 0 : r.log_sum_exp[i] * weights_log_sum_exp[i];
      return sum;
    };
    for (auto [input, gradient] : {std::pair(&r.q, r.grad_q), std::pair(&r.k, r.grad_k), std::pair(&r.v, r.grad_v)}) {
      if (input->empty()) continue;
      const std::vector<double> at = *input, direction = widen(random.floats(static_cast<int64_t>(at.size())));
      double expected = 0, values[2];
      for (size_t i = 0; i < at.size(); ++i) expected += gradient[i] * direction[i];
      for (const int side : {0, 1}) {
        for (size_t i = 0; i < at.size(); ++i) (*input)[i] = at[i] + (side == 0 ? -1e-5 : 1e-5) * direction[i];
        values[side] = objective();
      }
      *input = at;
      EXPECT_NEAR((values[1] - values[0]) / 2e-5, expected, 1e-6 * (1 + std::fabs(expected))) << c.name;
      ++checked;
    }
  }
  EXPECT_GT(checked, 50);
}

class AttentionOpTest : public OpTest {};

TEST_F(AttentionOpTest, EveryHalfGoesThroughUnchanged) {
  expect_every_number_back<BFloat16>(stream);
  expect_every_number_back<Float16>(stream);
}

// One chunk that holds the whole sequence: every pair is met in each round, so neither rounds, seed nor duplicates
// matter.
TEST_F(AttentionOpTest, FullCoverageEqualsDense) {
  Case c;
  c.length = 40;
  c.chunk = 40;
  c.before = 0;
  c.causal = 1;
  Case dense = c;
  dense.kind = RFN_ATTENTION_FULL;
  const Problem expected(dense, 21);
  Bound full(expected);
  ASSERT_TRUE(Ok(forward(stream, full.op)));
  ASSERT_TRUE(Ok(backward(stream, full.op)));
  for (const int32_t rounds : {1, 2, 4}) {
    for (const int32_t duplicates : {0, 1}) {
      c.rounds = rounds;
      c.duplicates = duplicates;
      Problem p(c, 22);
      p.q = expected.q;
      p.v = expected.v;
      p.grad_out = expected.grad_out;
      Bound b(p);
      ASSERT_TRUE(Ok(forward(stream, b.op)));
      ASSERT_TRUE(Ok(backward(stream, b.op)));
      EXPECT_TRUE(Close(b.out.values(), full.out.values(), kForwardLimit))
          << rounds << " rounds, duplicates " << duplicates;
      EXPECT_TRUE(Close(b.grad_q.values(), full.grad_q.values(), kGradientLimit))
          << rounds << " rounds, duplicates " << duplicates;
      EXPECT_TRUE(Close(b.grad_v.values(), full.grad_v.values(), kGradientLimit))
          << rounds << " rounds, duplicates " << duplicates;
    }
  }
}

// A token that meets nobody has exactly its own value, to the bit, however many rounds there are.
TEST_F(AttentionOpTest, LoneTokenKeepsItsValue) {
  Case c;
  c.causal = 1;
  c.rounds = 4;
  const Problem p(c, 23);
  Bound b(p);
  ASSERT_TRUE(Ok(forward(stream, b.op)));
  const std::vector<float> out = b.out.values();
  for (int64_t i = 0; i < c.heads * c.head_size; ++i) EXPECT_EQ(out[i], p.v[i]);
  EXPECT_EQ(b.log_sum_exp.values()[0], kNegativeInfinity);
}

// Strict windows: what comes after a token does not matter to its output, with dropout on too, and gets no gradient
// from it. Later tokens move earlier ones to other slots; on CUDA that changes which lanes add which keys, and so last
// bits. On the CPU keys are added in slot order, and no bit changes.
TEST_F(AttentionOpTest, StrictIsCausal) {
  Case c;
  c.window = RFN_WINDOW_STRICT;
  c.causal = 1;
  c.rounds = 3;
  c.length = 90;
  c.factors = {4};
  c.dropout = 0.2f;
  Problem p(c, 24);
  Bound b(p);
  ASSERT_TRUE(Ok(forward(stream, b.op)));
  const std::vector<float> before = b.out.values();
  Random random(25);
  for (const int64_t token : {1, 15, 16, 17, 50, 89}) {
    Problem changed = p;
    const int64_t row = c.heads * c.head_size;
    for (int64_t i = token * row; i < c.length * row; ++i) {
      changed.q[i] = static_cast<float>(random.uniform(-2, 2));
      changed.v[i] = 3;
    }
    Bound other(changed);
    ASSERT_TRUE(Ok(forward(stream, other.op)));
    const std::vector<float> after = other.out.values();
    const std::vector<float> past(after.begin(), after.begin() + token * row),
        expected(before.begin(), before.begin() + token * row);
    EXPECT_TRUE(on_cpu() ? SameBits(past, expected) : Close(past, expected, 5e-7));
    EXPECT_FALSE(SameBits(after, before));

    changed.grad_out.assign(changed.grad_out.size(), 0.0f);
    std::fill_n(changed.grad_out.begin(), token * row, 1.0f);
    Bound differentiated(changed);
    ASSERT_TRUE(Ok(forward(stream, differentiated.op)));
    ASSERT_TRUE(Ok(backward(stream, differentiated.op)));
    for (const std::vector<float>& gradient : {differentiated.grad_q.values(), differentiated.grad_v.values()}) {
      EXPECT_TRUE(std::all_of(gradient.begin() + token * row, gradient.end(), [](float x) { return x == 0; }))
          << "token " << token;
    }
    EXPECT_NE(differentiated.grad_v.values()[0], 0) << "token " << token;
  }
}

// What stands at masked positions changes no bit anywhere else, in either direction.
TEST_F(AttentionOpTest, MaskedContentDoesNotMatter) {
  Case c;
  c.rounds = 2;
  c.masked = true;
  c.pad_bucket = 1;
  c.batch = 2;
  c.length = 75;
  const Problem p(c, 26);
  Bound b(p);
  ASSERT_TRUE(Ok(forward(stream, b.op)));
  ASSERT_TRUE(Ok(backward(stream, b.op)));
  Problem changed = p;
  const int64_t row = c.heads * c.head_size;
  for (int64_t t = 0; t < c.batch * c.length; ++t) {
    if (p.mask[t] != 0) continue;
    for (int64_t i = t * row; i < (t + 1) * row; ++i) changed.q[i] = 9, changed.v[i] = -9, changed.grad_out[i] = 5;
  }
  Bound other(changed);
  ASSERT_TRUE(Ok(forward(stream, other.op)));
  ASSERT_TRUE(Ok(backward(stream, other.op)));
  EXPECT_TRUE(SameBits(other.out.values(), b.out.values()));
  EXPECT_TRUE(SameBits(other.grad_q.values(), b.grad_q.values()));
  EXPECT_TRUE(SameBits(other.grad_v.values(), b.grad_v.values()));
}

// Buckets and permutations that a caller hands in become indices: what is out of range is refused, and nothing is
// written. A device cannot say so without waiting; it stays within its memory.
TEST_F(AttentionOpTest, IndicesOutOfRangeAreRefusedOrHarmless) {
  const Case c;
  const Problem p(c, 27);
  Bound b(p);
  Tensor<float> round_out({c.rounds * c.batch, c.length, c.heads, c.head_size}),
      round_log_sum_exp({c.rounds, c.batch, c.heads, c.length});
  b.op.round_out = round_out;
  b.op.round_log_sum_exp = round_log_sum_exp;
  for (const int32_t bad : {-1, 9, 1 << 30}) {
    std::vector<int32_t> values = p.reference.buckets, slots = p.reference.sorted;
    values[70] = bad;
    slots[70] = bad == 9 ? 64 : bad;
    Tensor<int32_t> buckets({c.batch, c.heads, c.rounds, c.length}, values),
        sorted({c.batch, c.heads, c.rounds, 64}, slots);
    b.op.buckets = buckets;
    b.op.sorted = sorted;
    if (!on_cpu()) {
      EXPECT_TRUE(Ok(stage(stream, b.op, rfn_lsh_attend)));  // with `sorted` as given
      ASSERT_TRUE(Ok(stage(stream, b.op, rfn_lsh_sort)));
      std::vector<int32_t> permutation = sorted.values();
      std::sort(permutation.begin(), permutation.begin() + 64);
      for (int32_t i = 0; i < 64; ++i) EXPECT_EQ(permutation[i], i);
      ASSERT_TRUE(Ok(forward(stream, b.op)));
      buckets.set(values);
      EXPECT_TRUE(Ok(backward(stream, b.op)));
      EXPECT_TRUE(AllFinite(b.grad_q.values()));
      continue;
    }
    EXPECT_TRUE(Fails(backward(stream, b.op), RFN_INVALID_ARGUMENT, {"buckets", "element 70"}));
    EXPECT_TRUE(Fails(stage(stream, b.op, rfn_lsh_sort), RFN_INVALID_ARGUMENT, {"buckets", "element 70"}));
    EXPECT_TRUE(Untouched(b.grad_q.values()));
  }
}

// In range, but one position at several slots, and others at none: those would have no results, and that one several
// writers. The CPU refuses it and writes nothing; a device, which cannot say so without waiting, stays within its
// memory.
TEST_F(AttentionOpTest, SlotsThatAreNoPermutation_RefusedOrHarmless) {
  Case c;
  c.causal = 1;
  c.rounds = 2;
  c.batch = 2;
  const Problem p(c, 28);
  for (const int32_t window : {RFN_WINDOW_SLOTS, RFN_WINDOW_SAME_BUCKET, RFN_WINDOW_STRICT}) {
    for (const int64_t head_group : {0, 1}) {
      Bound b(p);
      b.op.options.window = window;
      b.op.options.duplicates = window == RFN_WINDOW_SLOTS ? 0 : 1;
      b.op.head_group = head_group;
      Tensor<float> round_out({c.rounds * c.batch, c.length, c.heads, c.head_size}),
          round_log_sum_exp({c.rounds, c.batch, c.heads, c.length});
      Tensor<int32_t> buckets({c.batch, c.heads, c.rounds, c.length}, p.reference.buckets);
      b.op.round_out = round_out;
      b.op.round_log_sum_exp = round_log_sum_exp;
      b.op.buckets = buckets;
      Tensor<float> grad_round_out({c.rounds * c.batch, c.length, c.heads, c.head_size},
                                   std::vector<float>(c.rounds * p.q.size(), 1.0f));
      Tensor<float> grad_round_log_sum_exp({c.rounds, c.batch, c.heads, c.length},
                                           std::vector<float>(c.rounds * c.batch * c.heads * c.length, 1.0f));
      b.op.grad_round_out = grad_round_out;
      b.op.grad_round_log_sum_exp = grad_round_log_sum_exp;
      std::vector<std::vector<int32_t>> wrong(3, p.reference.sorted);
      wrong[0].assign(wrong[0].size(), 20);      // every slot
      wrong[1].back() = wrong[1].end()[-2];      // one, the last of the last head
      std::swap(wrong[2][64 + 3], wrong[2][3]);  // a position of the next round, whose own one comes twice there
      const char* const elements[] = {"element 1", "element 511", "element"};
      for (size_t i = 0; i < wrong.size(); ++i) {
        if (wrong[2][3] == p.reference.sorted[3] && i == 2) continue;  // both rounds have the same one there
        Tensor<int32_t> sorted({c.batch, c.heads, c.rounds, 64}, wrong[i]);
        b.op.sorted = sorted;
        if (on_cpu()) {
          EXPECT_TRUE(Fails(stage(stream, b.op, rfn_lsh_attend), RFN_INVALID_ARGUMENT, {"sorted", elements[i]}));
          EXPECT_TRUE(
              Fails(stage(stream, b.op, rfn_lsh_attend_backward), RFN_INVALID_ARGUMENT, {"sorted", elements[i]}));
          EXPECT_TRUE(Untouched(round_out.values()));
          EXPECT_TRUE(Untouched(b.grad_q.values()));
        } else {
          EXPECT_TRUE(Ok(stage(stream, b.op, rfn_lsh_attend)));
          EXPECT_TRUE(Ok(stage(stream, b.op, rfn_lsh_attend_backward)));
        }
        EXPECT_EQ(sorted.values(), wrong[i]);
      }
    }
  }
}

// A round in which a token has no key counts for nothing, whatever stands in its row.
TEST_F(AttentionOpTest, RoundWithoutAKey_CountsForNothingInACombination) {
  Case c;
  c.rounds = 2;
  Problem p(c, 33);
  Bound b(p);
  Random random(34);
  const int64_t n = c.length * c.heads * c.head_size, statistics = c.length * c.heads;
  std::vector<float> rows = random.floats(2 * n), sums = random.floats(2 * statistics);
  std::fill(rows.begin() + n, rows.end(), std::numeric_limits<float>::quiet_NaN());
  std::fill(sums.begin() + statistics, sums.end(), -std::numeric_limits<float>::infinity());
  const Tensor<float> round_out({2, c.length, c.heads, c.head_size}, rows),
      round_log_sum_exp({2, 1, c.heads, c.length}, sums);
  b.op.round_out = round_out;
  b.op.round_log_sum_exp = round_log_sum_exp;
  ASSERT_TRUE(Ok(stage(stream, b.op, rfn_lsh_combine)));
  EXPECT_TRUE(Close(widen(b.out.values()), widen({rows.begin(), rows.begin() + n}), kForwardLimit));
  EXPECT_TRUE(Close(widen(b.log_sum_exp.values()), widen({sums.begin(), sums.begin() + statistics}), kForwardLimit));
}

// Nobody chose how many heads go at a time: as many as divide them and keep what each needs, 44 MiB here (four rounds
// of a million tokens sorted and their places, three rows of floats), below 256 MiB in all. Only shapes are asked
// about.
TEST_F(AttentionOpTest, AutomaticHeadGroup_KeepsWithinItsMemory) {
  constexpr int64_t kLength = int64_t{1} << 20;
  Case c;
  c.length = 64;
  c.heads = 8;
  c.rounds = 4;
  const Problem p(c, 31);
  Bound b(p);
  int64_t place = int64_t{1} << 40;
  for (rfn_tensor* const tensor : {&b.op.q, &b.op.v, &b.op.out}) {
    tensor->shape[1] = kLength;
    tensor->data = reinterpret_cast<void*>(place += int64_t{1} << 40);
  }
  b.op.log_sum_exp.shape[2] = kLength;
  b.op.log_sum_exp.data = reinterpret_cast<void*>(place += int64_t{1} << 40);
  const auto workspace = [&](int64_t group) {
    b.op.head_group = group;
    int64_t bytes = 0;
    EXPECT_TRUE(Ok(rfn_attention_workspace(context, &b.op, RFN_PASS_FORWARD, &bytes)));
    return bytes;
  };
  if (on_cpu()) {
    EXPECT_EQ(workspace(0), workspace(4));
    EXPECT_LT(workspace(4), workspace(8));
  } else {  // a device takes all heads at once, whatever is asked for
    EXPECT_EQ(workspace(0), workspace(8));
  }
}

// Imagined padding takes neither memory nor time: with as much of it as is allowed a call asks for the same workspace
// and gives the same bits as with a little, at once.
TEST_F(AttentionOpTest, ImaginedPadding_CostsNothing) {
  const int64_t most = on_cpu() ? (int64_t{1} << 31) - 8 : int64_t{1} << 29;
  for (const int32_t kind : {RFN_ATTENTION_LSH, RFN_ATTENTION_LOCAL}) {
    for (const int32_t form : {0, 1, 2, 3}) {
      if (form > 1 && kind == RFN_ATTENTION_LOCAL) continue;
      SCOPED_TRACE("kind " + std::to_string(kind) + ", form " + std::to_string(form));
      Case c;
      c.kind = kind;
      c.shared = kind == RFN_ATTENTION_LSH ? 1 : 0;
      c.length = 14;
      c.chunk = 2;
      c.rounds = kind == RFN_ATTENTION_LSH ? 2 : 1;
      c.causal = form == 1 || form == 3 ? 1 : 0;
      c.window = form == 2 ? RFN_WINDOW_SAME_BUCKET : form == 3 ? RFN_WINDOW_STRICT : RFN_WINDOW_SLOTS;
      c.duplicates = form >= 2 ? 1 : 0;
      c.after = form == 3 ? 0 : 1;
      c.padded = 64;
      const Problem p(c, 29);
      Bound few(p), many(p);
      many.op.options.padded_length = most;
      const std::clock_t start = std::clock();  // processor time, which a busy machine does not stretch
      for (Bound* const b : {&few, &many}) {
        ASSERT_TRUE(Ok(forward(stream, b->op)));
        ASSERT_TRUE(Ok(backward(stream, b->op)));
      }
      // The padding of one chunk that holds everything, of which there can be as much.
      Bound one(p);
      one.op.options.chunk_length = most / 4;
      one.op.options.padded_length = 0;
      ASSERT_TRUE(Ok(forward(stream, one.op)));
      ASSERT_TRUE(Ok(backward(stream, one.op)));
      EXPECT_LT(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, 2.0);
      EXPECT_TRUE(AllFinite(one.grad_q.values()));
      EXPECT_TRUE(SameBits(many.out.values(), few.out.values()));
      EXPECT_TRUE(SameBits(many.grad_q.values(), few.grad_q.values()));
      EXPECT_TRUE(SameBits(many.grad_v.values(), few.grad_v.values()));
      for (const int32_t pass : {RFN_PASS_FORWARD, RFN_PASS_BACKWARD}) {
        int64_t little = 0, much = 0;
        ASSERT_TRUE(Ok(rfn_attention_workspace(context, &few.op, pass, &little)));
        ASSERT_TRUE(Ok(rfn_attention_workspace(context, &many.op, pass, &much)));
        EXPECT_EQ(little, much);
      }
    }
  }
}

// Lengths 1 .. 3C+1, and the caller's own padding against the imagined one, to the bit.
TEST_F(AttentionOpTest, EveryLengthAndEitherPadding) {
  for (int64_t length = 1; length <= 25; ++length) {
    Case c;
    c.length = length;
    c.chunk = 8;
    c.rounds = 2;
    c.pad_bucket = 1;
    c.causal = static_cast<int32_t>(length % 2);
    c.heads = 1;
    c.head_size = 8;
    Problem p(c, 100 + static_cast<uint64_t>(length));
    Bound b(p);
    ASSERT_TRUE(Ok(forward(stream, b.op)));
    p.reference.forward();
    EXPECT_TRUE(Close(widen(b.out.values()), p.reference.out, kForwardLimit)) << "length " << length;

    Problem padded = p;
    padded.c.length = (length + 7) / 8 * 8;
    const size_t n = static_cast<size_t>(padded.c.length * c.head_size);
    padded.q.resize(n, 7.0f);
    padded.v.resize(n, 7.0f);
    padded.grad_out.resize(n, 0.0f);
    padded.mask.assign(static_cast<size_t>(padded.c.length), 0);
    std::fill_n(padded.mask.begin(), length, 1);
    Bound other(padded);
    ASSERT_TRUE(Ok(forward(stream, other.op)));
    std::vector<float> out = other.out.values();
    out.resize(static_cast<size_t>(length * c.head_size));
    EXPECT_TRUE(SameBits(out, b.out.values())) << "length " << length;
  }
}

// What is not a number stays visible: in the rows of a broken query, and of all that see a broken key or value. (A
// forbidden weight is 0, and 0 times a value that is not a number is not one either, so that a broken value may reach
// more rows.)
TEST_F(AttentionOpTest, NanReachesWhatSeesIt) {
  Case c;
  c.kind = RFN_ATTENTION_FULL;
  c.shared = 0;
  c.key_norm = 0;
  c.causal = 1;
  c.length = 80;
  c.heads = 1;
  c.head_size = 16;
  constexpr int64_t kBroken = 40;
  for (const int which : {0, 1, 2}) {
    Problem p(c, 300);
    std::vector<float>& broken = which == 0 ? p.q : which == 1 ? p.k : p.v;
    broken[static_cast<size_t>(kBroken * c.head_size)] = std::numeric_limits<float>::quiet_NaN();
    Bound b(p);
    ASSERT_TRUE(Ok(forward(stream, b.op)));
    const std::vector<float> out = b.out.values();
    for (int64_t t = 0; t < c.length; ++t) {
      const bool expected = which == 0 ? t == kBroken : t >= kBroken;
      if (which == 2 && !expected) continue;
      EXPECT_EQ(std::isnan(out[static_cast<size_t>(t * c.head_size)]), expected)
          << "operand " << which << ", token " << t;
    }
  }
}

// Two keys whose scores are x apart, at values 1 and 0: out = e^x / (1 + e^x), down to where it vanishes.
TEST_F(AttentionOpTest, WeightsAreExponentials) {
  Case c;
  c.kind = RFN_ATTENTION_FULL;
  c.shared = 0;
  c.key_norm = 0;
  c.causal = 0;
  c.length = 2;
  c.heads = 1;
  c.head_size = 1;
  c.logit_scale = 1;
  Problem p(c, 301);
  for (float x = 0.0f; x > -86.0f; x -= 0.37f) {
    p.q = {1.0f, 1.0f};
    p.k = {x, 0.0f};
    p.v = {1.0f, 0.0f};
    Bound b(p);
    ASSERT_TRUE(Ok(forward(stream, b.op)));
    const double weight = std::exp(static_cast<double>(x)), expected = weight / (1.0 + weight);
    const double limit =
        (4.0 + 2.0 * std::abs(x)) * 0x1p-24 * expected;  // the exponent in base 2 is rounded once or twice
    for (const float out : b.out.values()) EXPECT_NEAR(out, expected, limit) << "x " << x;
  }
}

}  // namespace
}  // namespace rfn::test
