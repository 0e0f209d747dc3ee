#include "validation.h"

namespace rfn::test {

void random_normal(OpCall<rfn_random_normal>& call) {
  call.op.site = RFN_SITE_PARAMETERS;
  call.op.standard_deviation = 1;
  call.output("destination", call.op.destination, {3, 5});
}

TEST_F(Validation, RandomNormal_WrongArguments_Refused) {
  OpCall<rfn_random_normal> call(RFN_NO_WORKSPACE(random_normal, forward));
  random_normal(call);
  rfn_random_normal& op = call.op;
  const Checker check(stream, call);
  check.all();
  check.value("layer", [&] { op.layer = -2; });
  check.value("layer", [&] { op.layer = 1 << 24; });
  check.value("site", [&] { op.site = 0; });
  check.value("site", [&] { op.site = 256; });
  check.value("mean", [&] { op.mean = kNaN; });
  check.value("mean", [&] { op.mean = kInfinity; });
  check.value("standard_deviation", [&] { op.standard_deviation = -1; });
  check.value("standard_deviation", [&] { op.standard_deviation = kNaN; });
  check.value("reserved", [&] { op.reserved = 1; });
}

void embedding(OpCall<rfn_embedding>& call, int32_t positions) {
  rfn_embedding& op = call.op;
  const int64_t b = 2, t = 5, v = 7, e = 6;
  op.positions = positions;
  op.axes = positions == RFN_POSITIONS_AXIAL ? 2 : positions == RFN_POSITIONS_LEARNED ? 1 : 0;
  call.input("ids", op.ids, {b, t}, RFN_I32);
  call.input("word", op.word, {v, e});
  const std::vector<std::vector<int64_t>> tables = positions == RFN_POSITIONS_AXIAL
                                                       ? std::vector<std::vector<int64_t>>{{3, 4}, {2, 2}}
                                                       : std::vector<std::vector<int64_t>>{{6, e}};
  const bool forward = call.pass == RFN_PASS_FORWARD;
  for (int32_t i = 0; i < op.axes; ++i) {
    const std::string index = "[" + std::to_string(i) + "]";
    call.input("position" + index, op.position[i], tables[i]);
    if (!forward) call.output("grad_position" + index, op.grad_position[i], tables[i]);
  }
  if (forward) {
    call.output("stream1", op.stream1, {b, t, e});
    call.tensor("stream2", op.stream2, {b, t, e}, Use::kOptionalOutput);
    call.result("range_report", op.range_report, Use::kOptionalOutput);
  } else {
    call.input("grad_stream1", op.grad_stream1, {b, t, e});
    call.tensor("grad_stream2", op.grad_stream2, {b, t, e}, Use::kOptionalInput);
    call.output("grad_word", op.grad_word, {v, e});
  }
}

TEST_F(Validation, EmbeddingForward_WrongArguments_Refused) {
  for (const int32_t positions : {RFN_POSITIONS_NONE, RFN_POSITIONS_LEARNED, RFN_POSITIONS_AXIAL}) {
    OpCall<rfn_embedding> call(RFN_FORWARD(embedding));
    embedding(call, positions);
    rfn_embedding& op = call.op;
    const Checker check(stream, call);
    // A larger table of positions is fine, so the sizes of the last two are tested below.
    EXPECT_TRUE(Ok(check.run()));
    check.tensors();
    check.overlaps();
    check.workspaces();
    check.struct_size();
    check.pointers();
    check.query_without_data();
    check.value("positions", [&] { op.positions = -1; });
    check.value("positions", [&] { op.positions = 3; });
    check.value("axes", [&] { op.axes = positions == RFN_POSITIONS_AXIAL ? 0 : op.axes + 1; });
    check.value("axes", [&] { op.axes = 5; });
    for (const float dropout : {-0.1f, 1.0f, kNaN}) check.value("dropout", [&] { op.dropout = dropout; });
    check.value("first_position", [&] { op.first_position = -1; });
    check.value("residual", [&] { op.residual = 2; });
    for (const int32_t exponent : {-25, -3}) {
      check.value("grid_exponent", [&] {
        op.residual = 1;
        op.grid_exponent = exponent;
      });
    }
    if (positions == RFN_POSITIONS_NONE) continue;
    check.value("position", [&] { op.first_position = 2; });          // 2 + 5 positions, tables for 6
    check.value("position", [&] { op.first_position = INT64_MAX; });  // nor does the sum overflow
    if (positions == RFN_POSITIONS_AXIAL)
      check.value("position", [&] { op.position[1].shape[1] = 3; });  // widths 4 + 3, E = 6
  }
}

TEST_F(Validation, EmbeddingBackward_WrongArguments_Refused) {
  OpCall<rfn_embedding> call(RFN_BACKWARD(embedding));
  embedding(call, RFN_POSITIONS_AXIAL);
  Checker(stream, call).all();
}

TEST_F(Validation, EmbeddingForward_IdOutOfRange_Refused) {
  OpCall<rfn_embedding> call(RFN_FORWARD(embedding));
  embedding(call, RFN_POSITIONS_NONE);
  const Checker check(stream, call);
  int32_t* const ids = static_cast<int32_t*>(call.op.ids.data);
  for (const int32_t id : {-1, 7, INT32_MAX, INT32_MIN}) {
    ids[3] = id;
    check.refused("id " + std::to_string(id), "ids", false, [] {});
  }
}

void layer_norm(OpCall<rfn_layer_norm>& call, int32_t dtype) {
  const int64_t n = 3, e = 5;
  rfn_layer_norm& op = call.op;
  op.epsilon = 1e-5f;
  call.input("x", op.x, {n, e});
  call.input("weight", op.weight, {e});
  call.input("bias", op.bias, {e});
  if (call.pass == RFN_PASS_FORWARD) {
    call.output("y", op.y, {n, e}, dtype);
    call.arguments.back().any_float = true;
    return;
  }
  call.input("grad_y", op.grad_y, {n, e}, dtype);
  call.arguments.back().any_float = true;
  call.output("grad_x", op.grad_x, {n, e});
  call.output("grad_weight", op.grad_weight, {e});
  call.output("grad_bias", op.grad_bias, {e});
}

TEST_F(Validation, LayerNorm_WrongArguments_Refused) {
  OpCall<rfn_layer_norm> forward(RFN_FORWARD(layer_norm)), backward(RFN_BACKWARD(layer_norm));
  layer_norm(forward);
  layer_norm(backward);
  for (auto* call : {&forward, &backward}) {
    const Checker check(stream, *call);
    check.all();
    for (const float epsilon : {0.0f, -1e-5f, kNaN, kInfinity})
      check.value("epsilon", [&] { call->op.epsilon = epsilon; });
  }
}

void linear(OpCall<rfn_linear>& call, int32_t dtype) {
  const int64_t n = 3, k = 5, m = 4;
  rfn_linear& op = call.op;
  call.input("x", op.x, {n, k}, dtype);
  call.input("weight", op.weight, {m, k}, dtype);
  call.tensor("bias", op.bias, {m}, Use::kOptionalInput);
  if (call.pass == RFN_PASS_FORWARD) return call.output("y", op.y, {n, m}, dtype);
  call.input("grad_y", op.grad_y, {n, m}, dtype);
  call.tensor("grad_x", op.grad_x, {n, k}, Use::kOptionalOutput, dtype);
  call.output("grad_weight", op.grad_weight, {m, k});
  call.tensor("grad_bias", op.grad_bias, {m}, Use::kOptionalOutput);
}

TEST_F(Validation, Linear_WrongArguments_Refused) {
  OpCall<rfn_linear> forward(RFN_FORWARD(linear)), backward(RFN_BACKWARD(linear));
  linear(forward);
  linear(backward);
  for (auto* call : {&forward, &backward}) {
    const Checker check(stream, *call);
    check.all();
    for (const int32_t activation : {-1, 6}) check.value("activation", [&] { call->op.activation = activation; });
  }
}

void feed_forward(OpCall<rfn_feed_forward>& call, int32_t dtype) {
  const int64_t n = 3, e = 5, f = 7;
  rfn_feed_forward& op = call.op;
  call.input("x", op.x, {n, e}, dtype);
  call.input("w1", op.w1, {f, e}, dtype);
  call.input("b1", op.b1, {f});
  call.input("w2", op.w2, {e, f}, dtype);
  call.input("b2", op.b2, {e});
  if (call.pass == RFN_PASS_FORWARD) return call.output("y", op.y, {n, e}, dtype);
  call.input("grad_y", op.grad_y, {n, e}, dtype);
  call.output("grad_x", op.grad_x, {n, e}, dtype);
  call.output("grad_w1", op.grad_w1, {f, e});
  call.output("grad_b1", op.grad_b1, {f});
  call.output("grad_w2", op.grad_w2, {e, f});
  call.output("grad_b2", op.grad_b2, {e});
}

TEST_F(Validation, FeedForward_WrongArguments_Refused) {
  OpCall<rfn_feed_forward> forward(RFN_FORWARD(feed_forward)), backward(RFN_BACKWARD(feed_forward));
  feed_forward(forward);
  feed_forward(backward);
  for (auto* call : {&forward, &backward}) {
    const Checker check(stream, *call);
    check.all();
    for (const int32_t activation : {-1, 6}) check.value("activation", [&] { call->op.activation = activation; });
    for (const float dropout : {-0.1f, 1.0f, kNaN}) check.value("dropout", [&] { call->op.dropout = dropout; });
    check.value("layer", [&] { call->op.layer = -2; });
    check.value("chunk", [&] { call->op.chunk = -1; });
  }
}

// The same with tensors of 16 bits.
TEST_F(Validation, DenseOpsOfHalves_WrongArguments_Refused) {
  const auto all = [&](auto&& call, auto set_up, int32_t dtype) {
    set_up(call, dtype);
    Checker(stream, call).all();
  };
  all(OpCall<rfn_layer_norm>(RFN_FORWARD(layer_norm)), layer_norm, RFN_BF16);
  all(OpCall<rfn_layer_norm>(RFN_BACKWARD(layer_norm)), layer_norm, RFN_F16);
  all(OpCall<rfn_linear>(RFN_FORWARD(linear)), linear, RFN_F16);
  all(OpCall<rfn_linear>(RFN_BACKWARD(linear)), linear, RFN_BF16);
  all(OpCall<rfn_feed_forward>(RFN_FORWARD(feed_forward)), feed_forward, RFN_BF16);
  all(OpCall<rfn_feed_forward>(RFN_BACKWARD(feed_forward)), feed_forward, RFN_F16);
}

TEST_F(Validation, DenseOpsOfTwoTypes_RefusedWithBoth) {
  OpCall<rfn_linear> linear_call(RFN_FORWARD(linear));
  linear(linear_call, RFN_BF16);
  Checker(stream, linear_call).value("weight: expected BF16 (the type of x) [M,K], got F32 rank 2 [4,5]", [&] {
    linear_call.op.weight.dtype = RFN_F32;
  });
  OpCall<rfn_feed_forward> feed_call(RFN_BACKWARD(feed_forward));
  feed_forward(feed_call, RFN_F16);
  Checker(stream, feed_call).value("grad_y: expected F16 (the type of x) [N,E], got BF16 rank 2 [3,5]", [&] {
    feed_call.op.grad_y.dtype = RFN_BF16;
  });
}

void final_norm(OpCall<rfn_final_norm>& call, int32_t combine) {
  const int64_t n = 3, e = 5, w = combine == RFN_COMBINE_CONCATENATE ? 2 * e : e;
  rfn_final_norm& op = call.op;
  op.combine = combine;
  op.epsilon = 1e-5f;
  call.input("stream1", op.stream1, {n, e});
  call.input("stream2", op.stream2, {n, e});
  call.input("weight", op.weight, {w});
  call.input("bias", op.bias, {w});
  if (call.pass == RFN_PASS_FORWARD) return call.output("y", op.y, {n, w});
  call.input("grad_y", op.grad_y, {n, w});
  call.output("grad_stream1", op.grad_stream1, {n, e});
  call.output("grad_stream2", op.grad_stream2, {n, e});
  call.output("grad_weight", op.grad_weight, {w});
  call.output("grad_bias", op.grad_bias, {w});
}

TEST_F(Validation, FinalNorm_WrongArguments_Refused) {
  for (const int32_t combine : {RFN_COMBINE_CONCATENATE, RFN_COMBINE_MEAN}) {
    OpCall<rfn_final_norm> forward(RFN_FORWARD(final_norm)), backward(RFN_BACKWARD(final_norm));
    final_norm(forward, combine);
    final_norm(backward, combine);
    for (auto* call : {&forward, &backward}) {
      const Checker check(stream, *call);
      check.all();
      for (const int32_t value : {-1, 2}) check.value("combine", [&] { call->op.combine = value; });
      for (const float epsilon : {0.0f, kNaN}) check.value("epsilon", [&] { call->op.epsilon = epsilon; });
      for (const float dropout : {-0.1f, 1.0f, kNaN}) check.value("dropout", [&] { call->op.dropout = dropout; });
    }
  }
}

void head(OpCall<rfn_head_loss>& call) {
  rfn_head_loss& op = call.op;
  const int64_t n = 3, k = 5, v = 4;
  op.ignore_index = -100;
  op.loss_scale = 1;
  call.input("x", op.x, {n, k});
  call.input("weight", op.weight, {v, k});
  call.tensor("bias", op.bias, {v}, Use::kOptionalInput);
  call.input("labels", op.labels, {n}, RFN_I32);
  call.result("statistics", op.statistics);
  if (call.pass == RFN_PASS_FORWARD) return;
  call.output("grad_x", op.grad_x, {n, k});
  call.output("grad_weight", op.grad_weight, {v, k});
  call.tensor("grad_bias", op.grad_bias, {v}, Use::kOptionalOutput);
}

TEST_F(Validation, HeadLoss_WrongArguments_Refused) {
  OpCall<rfn_head_loss> forward(RFN_FORWARD(head_loss)), backward(RFN_BACKWARD(head_loss));
  for (auto* call : {&forward, &backward}) {
    rfn_head_loss& op = call->op;
    head(*call);
    const Checker check(stream, *call);
    check.all({{"x", "grad_x"}});
    for (const float smoothing : {-0.1f, 1.1f, kNaN})
      check.value("label_smoothing", [&] { op.label_smoothing = smoothing; });
    for (const float scale : {kInfinity, kNaN}) check.value("loss_scale", [&] { op.loss_scale = scale; });
    for (const double normalizer : {-1.0, static_cast<double>(kNaN)})
      check.value("normalizer", [&] { op.normalizer = normalizer; });
    check.value("chunk", [&] { op.chunk = -1; });
    if (call->pass == RFN_PASS_BACKWARD) {
      check.refused("grad_x in the middle of x", "grad_x", false,
                    [&] { op.grad_x.data = static_cast<float*>(op.x.data) + 1; });
    }
    int32_t* const labels = static_cast<int32_t*>(op.labels.data);
    for (const int32_t label : {-1, 4, INT32_MAX, INT32_MIN}) {
      labels[1] = label;
      check.refused("label " + std::to_string(label), "labels", false, [] {});
    }
  }
}

TEST_F(Validation, HeadLossBackward_GradXInPlaceOfX_Runs) {
  OpCall<rfn_head_loss> call(RFN_BACKWARD(head_loss));
  head(call);
  const Checker check(stream, call);
  call.op.grad_x.data = call.op.x.data;
  EXPECT_TRUE(Ok(check.run()));
}

}  // namespace rfn::test
