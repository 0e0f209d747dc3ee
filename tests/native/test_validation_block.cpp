#include "validation.h"

namespace rfn::test {

static constexpr int64_t kWidth = 4, kHidden = 5;

static void block_parameters(Call& call, const std::string& prefix, rfn_block_parameters& p, Use use, Use bias_use) {
  const int64_t e = kWidth, f = kHidden, projected = kHeads * kHeadSize;
  p = make_op<rfn_block_parameters>();
  call.tensor(prefix + ".attention_norm_weight", p.attention_norm_weight, {e}, use);
  call.tensor(prefix + ".attention_norm_bias", p.attention_norm_bias, {e}, use);
  call.tensor(prefix + ".query", p.query, {projected, e}, use);
  call.tensor(prefix + ".value", p.value, {projected, e}, use);
  call.tensor(prefix + ".output", p.output, {e, projected}, use);
  call.tensor(prefix + ".output_bias", p.output_bias, {e}, bias_use);
  call.tensor(prefix + ".feed_forward_norm_weight", p.feed_forward_norm_weight, {e}, use);
  call.tensor(prefix + ".feed_forward_norm_bias", p.feed_forward_norm_bias, {e}, use);
  call.tensor(prefix + ".w1", p.w1, {f, e}, use);
  call.tensor(prefix + ".b1", p.b1, {f}, use);
  call.tensor(prefix + ".w2", p.w2, {e, f}, use);
  call.tensor(prefix + ".b2", p.b2, {e}, use);
}

void block(OpCall<rfn_reversible_block>& call, int32_t residual, Kept kept) {
  rfn_reversible_block& op = call.op;
  const int64_t e = kWidth, projected = kHeads * kHeadSize;
  const bool forward = call.pass == RFN_PASS_FORWARD, exact = residual == RFN_RESIDUAL_EXACT;
  op.attention = lsh_options();
  op.heads = kHeads;
  op.layer_norm_epsilon = 1e-5f;
  op.residual = residual;
  op.grid_exponent = -16;
  call.output("stream1", op.stream1, {kBatch, kLength, e});
  call.output("stream2", op.stream2, {kBatch, kLength, e});
  if (!forward) {
    call.output("grad_stream1", op.grad_stream1, {kBatch, kLength, e});
    call.output("grad_stream2", op.grad_stream2, {kBatch, kLength, e});
  }
  call.tensor("mask", op.mask, {kBatch, kLength}, Use::kOptionalInput, RFN_U8);
  const bool streams = kept != Kept::kNothing, activations = kept == Kept::kActivations,
             hashes = forward || (exact && !activations);
  if (hashes) call.input("rotations", op.rotations, {kHeads, kHeadSize, kRounds, kColumns});
  call.tensor("buckets", op.buckets, {kBatch, kHeads, kRounds, kLength},
              !hashes ? Use::kInput
              : exact ? Use::kOptionalOutput
                      : Use::kOutput,
              RFN_I32);
  // Forward fills any of them; what backward is given of a level has to be all of it.
  const Use use = forward ? Use::kOptionalOutput : Use::kInput;
  if (forward || activations) call.tensor("attention_result", op.attention_result, {kBatch, kLength, projected}, use);
  if (streams) {
    call.tensor("kept_stream1", op.kept_stream1, {kBatch, kLength, e}, use);
    call.tensor("kept_stream2", op.kept_stream2, {kBatch, kLength, e}, use);
  }
  if (activations) {
    call.tensor("kept_query", op.kept_query, {kBatch, kLength, projected}, use);
    call.tensor("kept_value", op.kept_value, {kBatch, kLength, projected}, use);
    call.tensor("kept_log_sum_exp", op.kept_log_sum_exp, {kBatch, kHeads, kLength}, use);
    call.tensor("kept_hidden", op.kept_hidden, {kBatch * kLength, kHidden}, use);
  }
  if (exact) call.result("range_report", op.range_report);
  block_parameters(call, "parameters", op.parameters, Use::kInput, Use::kOptionalInput);
  if (!forward) block_parameters(call, "gradients", op.gradients, Use::kOutput, Use::kOutput);
}

TEST_F(Validation, ReversibleBlock_WrongArguments_Refused) {
  for (const int32_t residual : {RFN_RESIDUAL_FLOAT, RFN_RESIDUAL_EXACT}) {
    OpCall<rfn_reversible_block> forward(RFN_FORWARD(reversible_block)), backward(RFN_BACKWARD(reversible_block));
    for (auto* call : {&forward, &backward}) {
      rfn_reversible_block& op = call->op;
      block(*call, residual, Kept::kNothing);
      const Checker check(stream, *call);
      // Everything that is read as well as written (streams, gradients, report) is poison here; the first and last runs
      // of all() work on that.
      check.all();
      options(check, op.attention);
      for (const int32_t heads : {-1, 0, 4})
        check.value(heads == 4 ? "parameters.query" : "heads", [&] { op.heads = heads; });
      for (const int32_t activation : {-1, 6}) check.value("activation", [&] { op.activation = activation; });
      for (const float epsilon : {0.0f, kNaN})
        check.value("layer_norm_epsilon", [&] { op.layer_norm_epsilon = epsilon; });
      for (const float dropout : {-0.1f, 1.0f, kNaN}) {
        check.value("attention_output_dropout", [&] { op.attention_output_dropout = dropout; });
        check.value("feed_forward_dropout", [&] { op.feed_forward_dropout = dropout; });
      }
      for (const int32_t value : {-1, 2}) check.value("residual", [&] { op.residual = value; });
      if (residual == RFN_RESIDUAL_EXACT) {
        for (const int32_t value : {-25, -3}) check.value("grid_exponent", [&] { op.grid_exponent = value; });
      }
      check.value("layer", [&] { op.layer = -1; });
      check.value("reserved", [&] { op.reserved = 1; });
      check.value("feed_forward_chunk", [&] { op.feed_forward_chunk = -1; });
      check.value("head_group", [&] { op.head_group = -1; });
      check.value("parameters.key", [&] { op.parameters.key = op.parameters.value; });
      check.value("parameters.struct_size", [&] { op.parameters.struct_size = 8; });
      check.value("parameters.reserved", [&] { op.parameters.reserved = 1; });
    }
  }
}

TEST_F(Validation, ReversibleBlock_WrongKeptTensors_Refused) {
  for (const int32_t residual : {RFN_RESIDUAL_FLOAT, RFN_RESIDUAL_EXACT}) {
    for (const Kept kept : {Kept::kStreams, Kept::kActivations}) {
      OpCall<rfn_reversible_block> forward(RFN_FORWARD(reversible_block)), backward(RFN_BACKWARD(reversible_block));
      for (auto* call : {&forward, &backward}) {
        block(*call, residual, kept);
        const Checker check(stream, *call);
        check.all();
        check.value("kept_key",
                    [&] { call->op.kept_key = kept == Kept::kStreams ? call->op.kept_stream1 : call->op.kept_query; });
      }
      // One of a level stands for all of it.
      const Checker check(stream, backward);
      rfn_reversible_block& op = backward.op;
      if (kept == Kept::kStreams) {
        check.refused("a value without the rest", "kept_query", false, [&] { op.kept_value = op.stream1; });
        check.refused("hidden values without the rest", "kept_query", false, [&] { op.kept_hidden = op.stream1; });
      } else {
        check.refused("activations without streams", "kept_stream1", false,
                      [&] { op.kept_stream1 = op.kept_stream2 = {}; });
      }
    }
  }
}

// Every run adds the same token to the rings: without chunks before, a query looks at none of their positions, and
// counts stay below this one.
static constexpr int64_t kPosition = 1000;

void decode(OpCall<rfn_reversible_block_decode>& call, int32_t residual) {
  rfn_reversible_block_decode& op = call.op;
  op.attention = lsh_options();
  op.attention.chunks_before = 0;
  op.attention.padded_length = 0;
  op.heads = kHeads;
  op.layer_norm_epsilon = 1e-5f;
  op.residual = residual;
  op.grid_exponent = -16;
  op.position = kPosition;
  call.output("stream1", op.stream1, {kBatch, 1, kWidth});
  call.output("stream2", op.stream2, {kBatch, 1, kWidth});
  call.output("keys", op.keys, {kBatch, kPosition + 1, kHeads * kHeadSize});
  call.output("values", op.values, {kBatch, kPosition + 1, kHeads * kHeadSize});
  call.input("rotations", op.rotations, {kHeads, kHeadSize, kRounds, kColumns});
  call.output("rings", op.rings, {kBatch * kHeads, kRounds, 8, 1}, RFN_I32);
  call.input("counts", op.counts, {kBatch * kHeads, kRounds, 8}, RFN_I32);  // written too, but poison would be refused
  if (residual == RFN_RESIDUAL_EXACT) call.result("range_report", op.range_report);
  block_parameters(call, "parameters", op.parameters, Use::kInput, Use::kOptionalInput);
}

TEST_F(Validation, Decode_WrongArguments_Refused) {
  for (const int32_t residual : {RFN_RESIDUAL_FLOAT, RFN_RESIDUAL_EXACT}) {
    OpCall<rfn_reversible_block_decode> call(RFN_ONE_PASS(reversible_block_decode, forward));
    rfn_reversible_block_decode& op = call.op;
    decode(call, residual);
    const Checker check(stream, call);
    check.all();
    options(check, op.attention);
    check.value("causal", [&] { op.attention.causal = 0; });
    check.value("dropout", [&] { op.attention.dropout = 0.5f; });
    check.value("padded_length", [&] { op.attention.padded_length = 1004; });
    for (const int64_t position : {int64_t{-1}, int64_t{INT32_MAX}, INT64_MAX})
      check.value("position", [&] { op.position = position; });
    check.value("keys", [&] { op.position = kPosition + 1; });
    const auto local = [&](int32_t before, int64_t chunk) {
      op.attention.kind = RFN_ATTENTION_LOCAL;
      op.attention.chunks_before = before;
      op.attention.chunk_length = chunk;
    };
    check.value("keys", [&] { local(1, 501), op.position = 1001; });
    check.value("keys", [&] { local(2, 501), op.position = 1001; });
    for (const int32_t heads : {-1, 0, 4})
      check.value(heads == 4 ? "parameters.query" : "heads", [&] { op.heads = heads; });
    for (const int32_t activation : {-1, 6}) check.value("activation", [&] { op.activation = activation; });
    for (const float epsilon : {0.0f, kNaN})
      check.value("layer_norm_epsilon", [&] { op.layer_norm_epsilon = epsilon; });
    for (const int32_t value : {-1, 2}) check.value("residual", [&] { op.residual = value; });
    if (residual == RFN_RESIDUAL_EXACT) {
      for (const int32_t value : {-25, -3}) check.value("grid_exponent", [&] { op.grid_exponent = value; });
    }
    check.value("layer", [&] { op.layer = -1; });
    check.value("reserved", [&] { op.reserved = 1; });
    check.value("parameters.key", [&] { op.parameters.key = op.parameters.value; });
    check.value("parameters.struct_size", [&] { op.parameters.struct_size = 8; });
  }
}

void bucket_rings(OpCall<rfn_bucket_rings>& call) {
  rfn_bucket_rings& op = call.op;
  op.first = kPosition;
  call.input("buckets", op.buckets, {kBatch, kHeads, kRounds, 3}, RFN_I32);
  call.output("rings", op.rings, {kBatch * kHeads, kRounds, 8, 5}, RFN_I32);
  call.input("counts", op.counts, {kBatch * kHeads, kRounds, 8}, RFN_I32);  // written too, but poison would be refused
}

TEST_F(Validation, BucketRings_WrongArguments_Refused) {
  OpCall<rfn_bucket_rings> call(RFN_NO_WORKSPACE(bucket_rings, forward));
  bucket_rings(call);
  rfn_bucket_rings& op = call.op;
  const Checker check(stream, call);
  EXPECT_TRUE(Ok(check.run()));
  check.tensors();
  check.overlaps();
  check.struct_size();
  check.pointers();
  for (const int64_t first : {int64_t{-1}, int64_t{INT32_MAX} - 2, INT64_MAX})
    check.value("first", [&] { op.first = first; });
  check.value("reserved", [&] { op.reserved = 1; });
  for (const int i : {0, 1}) check.value("rings", [&] { op.rings.shape[i] -= 1; });
  check.value("counts", [&] { op.rings.shape[2] -= 1; });
  EXPECT_TRUE(Ok(check.run()));
}

}  // namespace rfn::test
