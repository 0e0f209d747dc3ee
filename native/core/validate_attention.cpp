#include <cinttypes>

#include "core/attention_window.h"
#include "core/checks.h"
#include "core/tensor.h"

namespace rfn {
namespace {

void check_lsh_options(Checks& checks, const rfn_attention_options& options) {
  if (options.shared_qk != 1)
    checks.failed("options.shared_qk: expected 1 with LSH attention, got %" PRId32, options.shared_qk);
  checks.integer("options.window", options.window, RFN_WINDOW_SLOTS, RFN_WINDOW_STRICT);
  checks.integer("options.duplicates", options.duplicates, RFN_DUPLICATES_NONE, RFN_DUPLICATES_LOG_COUNT);
  checks.flag("options.pad_bucket", options.pad_bucket);
  checks.integer("options.rounds", options.rounds, 1, INT32_MAX);
  checks.integer("options.factor_count", options.factor_count, 1, kMostFactors);
  int64_t buckets = 1;
  for (int32_t i = 0; checks.ok() && i < options.factor_count; ++i) {
    const int32_t factor = options.factors[i];
    if (factor < 2 || factor % 2 != 0) {
      checks.failed("options.factors[%" PRId32 "]: expected an even number of at least 2, got %" PRId32, i, factor);
    } else if ((buckets = product({buckets, factor}, kMostBuckets)) < 0) {
      checks.failed("options.factors: expected a product of at most %" PRId64 ", got more", kMostBuckets);
    }
  }
  if (options.window != RFN_WINDOW_STRICT) return;
  if (options.causal != 1)
    checks.failed("options.causal: expected 1 with RFN_WINDOW_STRICT, got %" PRId32, options.causal);
  if (options.chunks_after != 0)
    checks.failed("options.chunks_after: expected 0 with RFN_WINDOW_STRICT, got %" PRId32, options.chunks_after);
}

// Positions after padding, of options and a length that are right.
int64_t padded_length(const rfn_attention_options& options, int64_t length) {
  return options.padded_length != 0 ? options.padded_length : round_up(length, options.chunk_length);
}

}  // namespace

void check_options(Checks& checks, const rfn_attention_options& options, int64_t batch, int64_t length, int64_t heads) {
  checks.struct_size("options", options.struct_size, sizeof(options));
  checks.integer("options.kind", options.kind, RFN_ATTENTION_LSH, RFN_ATTENTION_FULL);
  checks.flag("options.shared_qk", options.shared_qk);
  checks.flag("options.causal", options.causal);
  checks.integer("options.key_norm", options.key_norm, RFN_KEY_NORM_NONE, RFN_KEY_NORM_L2);
  checks.at_least("options.logit_scale", options.logit_scale, 0);
  checks.fraction("options.dropout", options.dropout);
  const bool is_lsh = options.kind == RFN_ATTENTION_LSH;
  if (is_lsh) check_lsh_options(checks, options);
  const int64_t rounds = is_lsh ? options.rounds : 1;
  int64_t window = length, padded = length;
  if (is_lsh || options.kind == RFN_ATTENTION_LOCAL) {
    checks.flag("options.wrap", options.wrap);
    checks.flag("options.repeat_chunks", options.repeat_chunks);
    checks.integer("options.chunk_length", options.chunk_length, 1, kLargestSize);
    checks.integer("options.chunks_before", options.chunks_before, 0, kMostNeighbours);
    checks.integer("options.chunks_after", options.chunks_after, 0, kMostNeighbours);
    if (!checks.ok()) return;
    const int64_t chunks = 1 + int64_t{options.chunks_before} + options.chunks_after;
    checks.largest("options: (1 + chunks_before + chunks_after) * chunk_length", {chunks, options.chunk_length},
                   kLargestSize);
    window = chunks * options.chunk_length;
    padded = padded_length(options, length);
    if (padded < length || padded % options.chunk_length != 0 || padded > kLargestSize) {
      checks.failed("options.padded_length: expected 0 or a multiple of chunk_length %" PRId64 " from %" PRId64
                    " to %" PRId64 ", got %" PRId64,
                    options.chunk_length, length, kLargestSize, options.padded_length);
    }
  }
  if (!checks.ok()) return;
  checks.largest("B * H * R * padded length", {batch, heads, rounds, padded}, kMostElements);
  checks.largest("B * H * R * padded length * window", {batch, heads, rounds, padded, window}, kMostPairs);
}

rfn_status validate(const rfn_attention_options& options, int64_t length) {
  Checks checks("attention_describe", Call::kQuery, {});
  checks.integer("length", length, 1, kLargestSize);
  if (checks.ok()) check_options(checks, options, 1, length, 1);
  return checks.finish();
}

void check_rotations(Checks& checks, const rfn_tensor& rotations, const rfn_attention_options& options, int64_t batch,
                     int64_t heads, int64_t head_size) {
  if (!checks.ok()) return;
  const int64_t sets = rotations.shape[0];
  checks.input("rotations", rotations, RFN_F32, "[sets,D,R,sum(factors)/2]",
               {sets, head_size, options.rounds, rotation_columns(options)});
  if (is_absent(rotations) || sets == 1 || sets == heads || sets == batch * heads) return;
  checks.failed("rotations: expected S = 1, H = %" PRId64 " or B*H = %" PRId64 ", got %" PRId64, heads, batch * heads,
                sets);
}

namespace {

struct AttentionShape {
  int64_t batch, length, heads, head_size, rounds;
};

// As the caller gives it: nothing may be computed from it before check_attention has passed.
AttentionShape attention_shape(const rfn_attention& op) {
  return {op.q.shape[0], op.q.shape[1], op.q.shape[2], op.q.shape[3], op.options.rounds};
}

// What whole attention and its stages share. `reads_q`: q itself is read, not only its shape.
void check_attention(Checks& checks, const rfn_attention& op, const AttentionShape& shape, bool reads_q) {
  const auto [batch, length, heads, head_size, rounds] = shape;
  check_layer(checks, op.layer);
  checks.integer("head_group", op.head_group, 0, INT64_MAX);
  if (reads_q) {
    checks.anchor("q", op.q, kAnyFloat, "[B,T,H,D]", {batch, length, heads, head_size});
  } else {
    checks.shape("q", op.q, kAnyFloat, "[B,T,H,D]", {batch, length, heads, head_size});
  }
  checks.largest("H * D", {heads, head_size}, kLargestSize);
  checks.largest("B * T", {batch, length}, kLargestSize);
  if (checks.ok()) check_options(checks, op.options, batch, length, heads);
}

}  // namespace

rfn_status validate(const rfn_attention& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks checks("attention", call, workspace);
  const AttentionShape shape = attention_shape(op);
  check_attention(checks, op, shape, true);
  check_pass(checks, pass);
  if (!checks.ok()) return checks.finish();
  const auto [batch, length, heads, head_size, rounds] = shape;
  const bool is_forward = pass == RFN_PASS_FORWARD, is_shared = op.options.shared_qk == 1;
  const DataTypeOf type(op.q.dtype, "q");
  const std::initializer_list<int64_t> per_head = {batch, length, heads, head_size};
  const std::initializer_list<int64_t> per_query = {batch, heads, length};
  const std::initializer_list<int64_t> per_round = {batch, heads, rounds, length};
  if (is_shared) {
    checks.absent("k", op.k, "options.shared_qk is 1");
  } else {
    checks.input("k", op.k, type, "[B,T,H,D]", per_head);
  }
  checks.input("v", op.v, type, "[B,T,H,D]", per_head);
  checks.optional_input("mask", op.mask, RFN_U8, "[B,T]", {batch, length});
  if (op.options.kind == RFN_ATTENTION_LSH) {
    if (is_forward) {
      checks.optional_output("buckets", op.buckets, RFN_I32, "[B,H,R,T]", per_round);
    } else {
      checks.optional_input("buckets", op.buckets, RFN_I32, "[B,H,R,T]", per_round);
    }
    if (is_forward || is_absent(op.buckets)) check_rotations(checks, op.rotations, op.options, batch, heads, head_size);
  }
  if (is_forward) {
    checks.output("out", op.out, type, "[B,T,H,D]", per_head);
    checks.optional_output("log_sum_exp", op.log_sum_exp, RFN_F32, "[B,H,T]", per_query);
    return checks.finish();
  }
  checks.input("out", op.out, type, "[B,T,H,D]", per_head);
  checks.input("log_sum_exp", op.log_sum_exp, RFN_F32, "[B,H,T]", per_query);
  checks.input("grad_out", op.grad_out, type, "[B,T,H,D]", per_head);
  checks.output("grad_q", op.grad_q, type, "[B,T,H,D]", per_head);
  if (is_shared) {
    checks.absent("grad_k", op.grad_k, "options.shared_qk is 1");
  } else {
    checks.output("grad_k", op.grad_k, type, "[B,T,H,D]", per_head);
  }
  checks.output("grad_v", op.grad_v, type, "[B,T,H,D]", per_head);
  return checks.finish();
}

int32_t stage_pass(LshStage stage) {
  const bool is_backward = stage == LshStage::lsh_combine_backward || stage == LshStage::lsh_attend_backward;
  return is_backward ? RFN_PASS_BACKWARD : RFN_PASS_FORWARD;
}

rfn_status validate_stage(const rfn_attention& op, LshStage stage, const Workspace& workspace) {
#define RFN_STAGE(name) #name,
  constexpr const char* kNames[] = {RFN_LSH_STAGES(RFN_STAGE)};
#undef RFN_STAGE
  Checks checks(kNames[static_cast<int>(stage)], Call::kRun, workspace);
  const bool attends = stage == LshStage::lsh_attend || stage == LshStage::lsh_attend_backward;
  const AttentionShape shape = attention_shape(op);
  check_attention(checks, op, shape, attends || stage == LshStage::lsh_hash);
  if (op.options.kind != RFN_ATTENTION_LSH)
    checks.failed("options.kind: expected RFN_ATTENTION_LSH (%d), got %" PRId32, RFN_ATTENTION_LSH, op.options.kind);
  if (!checks.ok()) return checks.finish();

  const int64_t batch = shape.batch, length = shape.length, heads = shape.heads, head_size = shape.head_size,
                rounds = shape.rounds, padded = padded_length(op.options, length);
  checks.absent("k", op.k, "options.shared_qk is 1");
  checks.optional_input("mask", op.mask, RFN_U8, "[B,T]", {batch, length});
  const auto tensor = [&](Access access, const char* name, const rfn_tensor& view, DataTypeOf type, const char* letters,
                          Checks::Sizes sizes) {
    access == Access::kRead ? checks.input(name, view, type, letters, sizes)
                            : checks.output(name, view, type, letters, sizes);
  };
  const DataTypeOf type_of_q(op.q.dtype, "q");
  const auto per_head = [&](Access access, const char* name, const rfn_tensor& view) {
    tensor(access, name, view, type_of_q, "[B,T,H,D]", {batch, length, heads, head_size});
  };
  const auto buckets = [&](Access access) {
    tensor(access, "buckets", op.buckets, RFN_I32, "[B,H,R,T]", {batch, heads, rounds, length});
  };
  const auto sorted = [&](Access access) {
    tensor(access, "sorted", op.sorted, RFN_I32, "[B,H,R,padded]", {batch, heads, rounds, padded});
  };
  const auto results = [&](Access access, const char* out_name, const rfn_tensor& out, const char* log_sum_exp_name,
                           const rfn_tensor& log_sum_exp) {  // of each round
    tensor(access, out_name, out, RFN_F32, "[R*B,T,H,D]", {rounds * batch, length, heads, head_size});
    tensor(access, log_sum_exp_name, log_sum_exp, RFN_F32, "[R,B,H,T]", {rounds, batch, heads, length});
  };
  const auto round_results = [&](Access access) {
    results(access, "round_out", op.round_out, "round_log_sum_exp", op.round_log_sum_exp);
  };
  const auto round_gradients = [&](Access access) {
    results(access, "grad_round_out", op.grad_round_out, "grad_round_log_sum_exp", op.grad_round_log_sum_exp);
  };
  switch (stage) {
    case LshStage::lsh_hash:
      check_rotations(checks, op.rotations, op.options, batch, heads, head_size);
      buckets(Access::kWritten);
      break;
    case LshStage::lsh_sort:
      buckets(Access::kRead);
      sorted(Access::kWritten);
      break;
    case LshStage::lsh_attend:
      per_head(Access::kRead, "v", op.v);
      buckets(Access::kRead);
      sorted(Access::kRead);
      round_results(Access::kWritten);
      break;
    case LshStage::lsh_combine:
      round_results(Access::kRead);
      per_head(Access::kWritten, "out", op.out);
      checks.optional_output("log_sum_exp", op.log_sum_exp, RFN_F32, "[B,H,T]", {batch, heads, length});
      break;
    case LshStage::lsh_combine_backward:
      round_results(Access::kRead);
      per_head(Access::kRead, "out", op.out);
      checks.input("log_sum_exp", op.log_sum_exp, RFN_F32, "[B,H,T]", {batch, heads, length});
      per_head(Access::kRead, "grad_out", op.grad_out);
      round_gradients(Access::kWritten);
      break;
    case LshStage::lsh_attend_backward:
      per_head(Access::kRead, "v", op.v);
      buckets(Access::kRead);
      sorted(Access::kRead);
      round_results(Access::kRead);
      round_gradients(Access::kRead);
      per_head(Access::kWritten, "grad_q", op.grad_q);
      per_head(Access::kWritten, "grad_v", op.grad_v);
      break;
  }
  return checks.finish();
}

}  // namespace rfn
