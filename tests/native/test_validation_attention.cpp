#include <initializer_list>

#include "validation.h"

namespace rfn::test {

rfn_attention_options lsh_options() {
  rfn_attention_options o = make_op<rfn_attention_options>();
  o.kind = RFN_ATTENTION_LSH;
  o.shared_qk = 1;
  o.causal = 1;
  o.wrap = 1;
  o.key_norm = RFN_KEY_NORM_RMS;
  o.rounds = 2;
  o.factor_count = 2;
  o.factors[0] = 4;
  o.factors[1] = 2;
  o.pad_bucket = 1;
  o.chunks_before = 1;
  o.chunk_length = 4;
  o.padded_length = 12;
  return o;
}

void options(const Checker& check, rfn_attention_options& o) {
  const auto integer = [&](const char* name, int32_t& field, std::initializer_list<int32_t> values) {
    for (const int32_t value : values) check.value(name, [&field, value] { field = value; });
  };
  integer("kind", o.kind, {-1, 3});
  integer("shared_qk", o.shared_qk, {-1, 0, 2});
  integer("causal", o.causal, {-1, 2});
  integer("window", o.window, {-1, 3});
  integer("wrap", o.wrap, {-1, 2});
  integer("repeat_chunks", o.repeat_chunks, {-1, 2});
  integer("duplicates", o.duplicates, {-1, 2});
  integer("key_norm", o.key_norm, {-1, 3});
  integer("rounds", o.rounds, {-1, 0});
  integer("factor_count", o.factor_count, {-1, 0, 9});
  integer("factors[0]", o.factors[0], {-2, 0, 1, 3});
  integer("factors", o.factors[1], {1 << 30, INT32_MAX - 1});
  integer("pad_bucket", o.pad_bucket, {-1, 2});
  integer("chunks_before", o.chunks_before, {-1, INT32_MAX});
  integer("chunks_after", o.chunks_after, {-1, INT32_MAX});
  for (const float scale : {-1.0f, kNaN, kInfinity}) check.value("logit_scale", [&] { o.logit_scale = scale; });
  for (const float dropout : {-0.1f, 1.0f, kNaN}) check.value("dropout", [&] { o.dropout = dropout; });
  for (const int64_t length : {int64_t{-1}, int64_t{0}, INT64_MAX})
    check.value("chunk_length", [&] { o.chunk_length = length; });
  for (const int64_t length : {int64_t{-4}, int64_t{8}, int64_t{13}, INT64_MAX})
    check.value("padded_length", [&] { o.padded_length = length; });
  check.value("causal", [&] {
    o.window = RFN_WINDOW_STRICT;
    o.causal = 0;
  });
  check.value("chunks_after", [&] {
    o.window = RFN_WINDOW_STRICT;
    o.chunks_after = 1;
  });
  check.value("struct_size", [&] { o.struct_size = 0; });
}

static void attention_inputs(OpCall<rfn_attention>& call, int32_t dtype = RFN_F32) {
  rfn_attention& op = call.op;
  op.options = lsh_options();
  call.input("q", op.q, {kBatch, kLength, kHeads, kHeadSize}, dtype);
  call.input("v", op.v, {kBatch, kLength, kHeads, kHeadSize}, dtype);
  call.tensor("mask", op.mask, {kBatch, kLength}, Use::kOptionalInput, RFN_U8);
}

void attention(OpCall<rfn_attention>& call, int32_t dtype) {
  rfn_attention& op = call.op;
  const std::vector<int64_t> heads = {kBatch, kLength, kHeads, kHeadSize};
  attention_inputs(call, dtype);
  call.input("rotations", op.rotations, {kHeads, kHeadSize, kRounds, kColumns});
  if (call.pass == RFN_PASS_FORWARD) {
    call.tensor("buckets", op.buckets, {kBatch, kHeads, kRounds, kLength}, Use::kOptionalOutput, RFN_I32);
    call.output("out", op.out, heads, dtype);
    call.tensor("log_sum_exp", op.log_sum_exp, {kBatch, kHeads, kLength}, Use::kOptionalOutput);
    return;
  }
  call.input("out", op.out, heads, dtype);
  call.input("log_sum_exp", op.log_sum_exp, {kBatch, kHeads, kLength});
  call.input("grad_out", op.grad_out, heads, dtype);
  call.output("grad_q", op.grad_q, heads, dtype);
  call.output("grad_v", op.grad_v, heads, dtype);
}

TEST_F(Validation, AttentionForward_WrongArguments_Refused) {
  OpCall<rfn_attention> call(RFN_FORWARD(attention));
  rfn_attention& op = call.op;
  attention(call);
  const Checker check(stream, call);
  check.all();
  options(check, op.options);
  check.value("layer", [&] { op.layer = -2; });
  check.value("head_group", [&] { op.head_group = -1; });
  check.value("k", [&] { op.k = op.v; });
  check.value("rotations", [&] { op.rotations.shape[0] = 3; });
}

TEST_F(Validation, AttentionForward_RotationSets_OneHeadsOrBoth) {
  OpCall<rfn_attention> call(RFN_FORWARD(attention));
  rfn_attention& op = call.op;
  attention_inputs(call);
  call.input("rotations", op.rotations, {kBatch * kHeads, kHeadSize, kRounds, kColumns});
  call.output("out", op.out, {kBatch, kLength, kHeads, kHeadSize});
  const Checker check(stream, call);
  for (const int64_t sets : {int64_t{1}, kHeads, kBatch * kHeads}) {
    op.rotations.shape[0] = sets;
    EXPECT_TRUE(Ok(check.run())) << sets;
  }
}

TEST_F(Validation, AttentionBackward_WrongArguments_Refused) {
  OpCall<rfn_attention> call(RFN_BACKWARD(attention));
  rfn_attention& op = call.op;
  attention(call);
  const Checker check(stream, call);
  check.all();
  options(check, op.options);
  check.value("grad_k", [&] { op.grad_k = op.grad_v; });
}

TEST_F(Validation, AttentionOfHalves_WrongArguments_Refused) {
  OpCall<rfn_attention> forward(RFN_FORWARD(attention)), backward(RFN_BACKWARD(attention));
  attention(forward, RFN_BF16);
  attention(backward, RFN_F16);
  for (auto* call : {&forward, &backward}) Checker(stream, *call).all();
}

TEST_F(Validation, AttentionOfTwoTypes_RefusedWithBoth) {
  OpCall<rfn_attention> call(RFN_FORWARD(attention));
  attention(call, RFN_BF16);
  const Checker check(stream, call);
  check.value("v: expected BF16 (the type of q) [B,T,H,D], got F16 rank 4 [2,9,2,3]",
              [&] { call.op.v.dtype = RFN_F16; });
  check.value("q: expected F32, BF16 or F16 [B,T,H,D], got I32 rank 4 [2,9,2,3]", [&] { call.op.q.dtype = RFN_I32; });
}

TEST_F(Validation, AttentionWithOwnKeys_WrongArguments_Refused) {
  for (const int32_t kind : {RFN_ATTENTION_LOCAL, RFN_ATTENTION_FULL}) {
    OpCall<rfn_attention> forward(RFN_FORWARD(attention)), backward(RFN_BACKWARD(attention));
    for (auto* call : {&forward, &backward}) {
      rfn_attention& op = call->op;
      attention_inputs(*call);
      op.options.kind = kind;
      op.options.shared_qk = 0;
      op.options.key_norm = RFN_KEY_NORM_NONE;
      call->input("k", op.k, {kBatch, kLength, kHeads, kHeadSize});
    }
    forward.output("out", forward.op.out, {kBatch, kLength, kHeads, kHeadSize});
    backward.input("out", backward.op.out, {kBatch, kLength, kHeads, kHeadSize});
    backward.input("log_sum_exp", backward.op.log_sum_exp, {kBatch, kHeads, kLength});
    backward.input("grad_out", backward.op.grad_out, {kBatch, kLength, kHeads, kHeadSize});
    backward.output("grad_q", backward.op.grad_q, {kBatch, kLength, kHeads, kHeadSize});
    backward.output("grad_k", backward.op.grad_k, {kBatch, kLength, kHeads, kHeadSize});
    backward.output("grad_v", backward.op.grad_v, {kBatch, kLength, kHeads, kHeadSize});
    for (auto* call : {&forward, &backward}) Checker(stream, *call).all();
  }
}

void stage_tensors(OpCall<rfn_attention>& call, Stage stage) {
  rfn_attention& op = call.op;
  op.options = lsh_options();
  const std::vector<int64_t> heads = {kBatch, kLength, kHeads, kHeadSize},
                             rounds = {kRounds * kBatch, kLength, kHeads, kHeadSize},
                             log_sum_exp = {kRounds, kBatch, kHeads, kLength},
                             buckets = {kBatch, kHeads, kRounds, kLength}, sorted = {kBatch, kHeads, kRounds, kPadded};
  const bool attends = stage == rfn_lsh_attend || stage == rfn_lsh_attend_backward;
  call.tensor("q", op.q, heads, attends || stage == rfn_lsh_hash ? Use::kInput : Use::kShape);
  call.arguments.back().any_float = stage == rfn_lsh_hash || stage == rfn_lsh_sort;
  if (attends) call.input("v", op.v, heads);
  if (stage == rfn_lsh_hash) call.input("rotations", op.rotations, {kHeads, kHeadSize, kRounds, kColumns});
  if (stage == rfn_lsh_hash || stage == rfn_lsh_sort || attends) {
    call.tensor("buckets", op.buckets, buckets, stage == rfn_lsh_hash ? Use::kOutput : Use::kInput, RFN_I32);
  }
  if (stage == rfn_lsh_sort || attends)
    call.tensor("sorted", op.sorted, sorted, stage == rfn_lsh_sort ? Use::kOutput : Use::kInput, RFN_I32);
  if (attends || stage == rfn_lsh_combine || stage == rfn_lsh_combine_backward) {
    const Use use = stage == rfn_lsh_attend ? Use::kOutput : Use::kInput;
    call.tensor("round_out", op.round_out, rounds, use);
    call.tensor("round_log_sum_exp", op.round_log_sum_exp, log_sum_exp, use);
  }
  if (stage == rfn_lsh_combine) {
    call.output("out", op.out, heads);
    call.tensor("log_sum_exp", op.log_sum_exp, {kBatch, kHeads, kLength}, Use::kOptionalOutput);
  }
  if (stage == rfn_lsh_combine_backward) {
    call.input("out", op.out, heads);
    call.input("log_sum_exp", op.log_sum_exp, {kBatch, kHeads, kLength});
    call.input("grad_out", op.grad_out, heads);
  }
  if (stage == rfn_lsh_combine_backward || stage == rfn_lsh_attend_backward) {
    const Use use = stage == rfn_lsh_combine_backward ? Use::kOutput : Use::kInput;
    call.tensor("grad_round_out", op.grad_round_out, rounds, use);
    call.tensor("grad_round_log_sum_exp", op.grad_round_log_sum_exp, log_sum_exp, use);
  }
  if (stage == rfn_lsh_attend_backward) {
    call.output("grad_q", op.grad_q, heads);
    call.output("grad_v", op.grad_v, heads);
  }
  if (op.sorted.data != nullptr) {  // a permutation of each round
    int32_t* const positions = static_cast<int32_t*>(op.sorted.data);
    for (int64_t i = 0; i < kBatch * kHeads * kRounds * kPadded; ++i) positions[i] = static_cast<int32_t>(i % kPadded);
  }
}

TEST_F(Validation, LshStages_WrongArguments_Refused) {
#define RFN_STAGE(name)                                                                                         \
  {                                                                                                             \
    const bool is_backward = std::string(#name).find("backward") != std::string::npos;                          \
    OpCall<rfn_attention> call(#name, is_backward ? RFN_PASS_BACKWARD : RFN_PASS_FORWARD, nullptr, rfn_##name); \
    stage_tensors(call, rfn_##name);                                                                            \
    stages(call);                                                                                               \
  }
  const auto stages = [&](OpCall<rfn_attention>& call) {
    SCOPED_TRACE(call.name);
    int64_t bytes = 0;
    ASSERT_TRUE(Ok(rfn_attention_workspace(context, &call.op, call.pass, &bytes)));
    const GuardedMemory scratch(bytes, 0);
    // Stages have no query of their own: they take attention's workspace.
    EXPECT_TRUE(Ok(call.run(stream, &call.op, scratch.data(), bytes)));
    EXPECT_TRUE(Fails(call.run(stream, &call.op, scratch.data(), bytes - 1), RFN_INVALID_ARGUMENT,
                      {call.name, "workspace_bytes"}));
    const Checker check(stream, call);
    check.tensors();
    check.sizes();
    check.overlaps();
    check.struct_size();
    EXPECT_TRUE(Fails(call.run(nullptr, &call.op, scratch.data(), bytes), RFN_INVALID_ARGUMENT, {"stream"}));
    EXPECT_TRUE(Fails(call.run(stream, nullptr, scratch.data(), bytes), RFN_INVALID_ARGUMENT, {"op"}));
    check.value("kind", [&] { call.op.options.kind = RFN_ATTENTION_LOCAL; });
    check.value("k", [&] { call.op.k = call.op.q; });
    options(check, call.op.options);
  };
  RFN_LSH_STAGES(RFN_STAGE)
#undef RFN_STAGE
}

// ---- automatic buckets: values of spec 1.2.1 ----

TEST(AutomaticBuckets, Rules_KnownSizes_GiveTheirFactors) {
  struct Row {
    int32_t rule;
    int64_t length, chunk, max_positions;
    std::vector<int32_t> factors;
  };
  const std::vector<Row> rows = {
      {RFN_BUCKETS_TRAX, 1024, 64, 0, {32}},
      {RFN_BUCKETS_TRAX, 4096, 64, 0, {128}},
      {RFN_BUCKETS_TRAX, 8192, 64, 0, {16, 16}},
      {RFN_BUCKETS_TRAX, 12288, 128, 0, {16, 12}},
      {RFN_BUCKETS_TRAX, 16384, 64, 0, {32, 16}},
      {RFN_BUCKETS_TRAX, 65536, 64, 0, {64, 32}},
      {RFN_BUCKETS_TRAX, 65536, 128, 0, {32, 32}},
      {RFN_BUCKETS_TRAX, 65536, 256, 0, {32, 16}},
      {RFN_BUCKETS_TRAX, 524288, 64, 0, {128, 128}},
      {RFN_BUCKETS_TRAX, 7, 64, 0, {2}},
      {RFN_BUCKETS_TRAX, INT32_MAX, INT32_MAX, 0, {2}},
      {RFN_BUCKETS_HUGGING_FACE, 1024, 64, 1024, {32}},
      {RFN_BUCKETS_HUGGING_FACE, 4096, 64, 4096, {128}},
      {RFN_BUCKETS_HUGGING_FACE, 8192, 64, 8192, {16, 16}},
      {RFN_BUCKETS_HUGGING_FACE, 12288, 128, 12288, {128}},
      {RFN_BUCKETS_HUGGING_FACE, 16384, 64, 16384, {16, 32}},
      {RFN_BUCKETS_HUGGING_FACE, 65536, 64, 65536, {32, 64}},
      {RFN_BUCKETS_HUGGING_FACE, 65536, 128, 65536, {32, 32}},
      {RFN_BUCKETS_HUGGING_FACE, 65536, 256, 65536, {512}},
      {RFN_BUCKETS_HUGGING_FACE, 524288, 64, 524288, {128, 128}},
      {RFN_BUCKETS_LUCIDRAINS, 1024, 64, 0, {16}},
      {RFN_BUCKETS_LUCIDRAINS, 12288, 128, 0, {96}},
      {RFN_BUCKETS_LUCIDRAINS, 524288, 64, 0, {8192}},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE("rule " + std::to_string(row.rule) + ", length " + std::to_string(row.length) + ", chunk " +
                 std::to_string(row.chunk));
    int32_t factors[8] = {}, count = 0;
    ASSERT_TRUE(Ok(rfn_lsh_automatic_buckets(row.rule, row.length, row.chunk, row.max_positions, factors, &count)));
    EXPECT_EQ(std::vector<int32_t>(factors, factors + count), row.factors);
  }
}

TEST(AutomaticBuckets, EveryLength_FactorsAreEven) {
  for (int64_t chunk = 1; chunk <= 3; ++chunk) {
    for (int64_t length = 1; length < 3000; ++length) {
      for (const int32_t rule : {RFN_BUCKETS_TRAX, RFN_BUCKETS_HUGGING_FACE}) {
        if (rule == RFN_BUCKETS_HUGGING_FACE && length < chunk) continue;
        int32_t factors[8] = {}, count = 0;
        ASSERT_TRUE(Ok(rfn_lsh_automatic_buckets(rule, length, chunk, length, factors, &count)));
        for (int32_t i = 0; i < count; ++i)
          ASSERT_TRUE(factors[i] >= 2 && factors[i] % 2 == 0) << length << " " << chunk << " " << factors[i];
      }
    }
  }
}

TEST(AutomaticBuckets, WrongArguments_RefusedAndNothingWritten) {
  int32_t factors[8] = {-7}, count = -7;
  const auto refused = [&](const char* argument, int32_t rule, int64_t length, int64_t chunk, int64_t max_positions) {
    EXPECT_TRUE(Fails(rfn_lsh_automatic_buckets(rule, length, chunk, max_positions, factors, &count),
                      RFN_INVALID_ARGUMENT, {argument}));
  };
  refused("rule", -1, 128, 64, 128);
  refused("rule", 3, 128, 64, 128);
  refused("length", RFN_BUCKETS_TRAX, 0, 64, 128);
  refused("length", RFN_BUCKETS_TRAX, INT64_MAX, 64, 128);
  refused("length", RFN_BUCKETS_TRAX, INT32_MAX, 1, 128);  // more than 2^30 buckets
  refused("length", RFN_BUCKETS_TRAX, int64_t{INT32_MAX} + 1, 1 << 20, 128);
  refused("chunk_length", RFN_BUCKETS_TRAX, 128, 0, 128);
  refused("chunk_length", RFN_BUCKETS_TRAX, 128, int64_t{INT32_MAX} + 1, 128);
  refused("chunk_length", RFN_BUCKETS_TRAX, 128, -64, 128);
  refused("length", RFN_BUCKETS_HUGGING_FACE, 63, 64, 128);
  refused("max_positions", RFN_BUCKETS_HUGGING_FACE, 128, 64, 0);
  refused("even", RFN_BUCKETS_LUCIDRAINS, 192, 64, 0);  // three chunks
  refused("even", RFN_BUCKETS_LUCIDRAINS, 63, 64, 0);
  EXPECT_EQ(factors[0], -7);
  EXPECT_EQ(count, -7);
  EXPECT_TRUE(Fails(rfn_lsh_automatic_buckets(0, 128, 64, 0, nullptr, &count), RFN_INVALID_ARGUMENT, {"factors"}));
  EXPECT_TRUE(
      Fails(rfn_lsh_automatic_buckets(0, 128, 64, 0, factors, nullptr), RFN_INVALID_ARGUMENT, {"factor_count"}));
}

}  // namespace rfn::test
