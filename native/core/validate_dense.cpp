// Random numbers, embedding, norms, linear and feed-forward layers, and the output head.
#include <cinttypes>

#include "core/checks.h"

namespace rfn {

rfn_status validate(const rfn_random_normal& op, Call call, const Workspace& workspace) {
  Checks checks("random_normal", call, workspace);
  check_layer(checks, op.layer);
  checks.integer("site", op.site, 1, 255);
  checks.finite("mean", op.mean);
  checks.at_least("standard_deviation", op.standard_deviation, 0);
  checks.integer("reserved", op.reserved, 0, 0);
  checks.any_shape("destination", op.destination, Access::kWritten);
  return checks.finish();
}

// ---- embedding ----

namespace {

// Tables of positions, whose sizes workspace queries need.
void check_positions(Checks& checks, const rfn_embedding& op, int64_t length, int64_t width) {
  const bool is_axial = op.positions == RFN_POSITIONS_AXIAL;
  int64_t positions = 1, table_widths = 0;
  for (int32_t i = 0; checks.ok() && i < op.axes; ++i) {
    const rfn_tensor& table = op.position[i];
    checks.anchor(Name("position", i).text, table, RFN_F32, is_axial ? "[s,e]" : "[max,E]",
                  {table.shape[0], is_axial ? table.shape[1] : width});
    if (!checks.ok()) return;
    positions = product({positions, table.shape[0]}, kMostElements);
    if (positions < 0)
      checks.failed("position: expected tables of at most %" PRId64 " positions, got more", kMostElements);
    table_widths += table.shape[1];
  }
  if (op.axes == 0 || !checks.ok()) return;
  if (table_widths != width)
    checks.failed("position: expected widths that sum to E = %" PRId64 ", got %" PRId64, width, table_widths);
  if (op.first_position + length > positions) {
    checks.failed("position: expected tables for first_position + T = %" PRId64 " positions, got %" PRId64,
                  op.first_position + length, positions);
  }
}

}  // namespace

rfn_status validate(const rfn_embedding& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks checks("embedding", call, workspace);
  check_pass(checks, pass);
  checks.integer("positions", op.positions, RFN_POSITIONS_NONE, RFN_POSITIONS_AXIAL);
  const bool is_axial = op.positions == RFN_POSITIONS_AXIAL;
  const int32_t fixed_axes = op.positions == RFN_POSITIONS_LEARNED ? 1 : 0;
  checks.integer("axes", op.axes, is_axial ? 1 : fixed_axes, is_axial ? 4 : fixed_axes);
  checks.fraction("dropout", op.dropout);
  checks.integer("first_position", op.first_position, 0, kLargestSize);
  check_residual(checks, op.residual, op.grid_exponent);

  const int64_t batch = op.ids.shape[0], length = op.ids.shape[1], vocabulary = op.word.shape[0],
                width = op.word.shape[1];
  checks.anchor("ids", op.ids, RFN_I32, "[B,T]", {batch, length});
  checks.anchor("word", op.word, RFN_F32, "[V,E]", {vocabulary, width});
  checks.largest("B * T", {batch, length}, kLargestSize);
  check_positions(checks, op, length, width);
  const Checks::Sizes stream = {batch, length, width};
  if (pass == RFN_PASS_FORWARD) {
    checks.output("stream1", op.stream1, RFN_F32, "[B,T,E]", stream);
    checks.optional_output("stream2", op.stream2, RFN_F32, "[B,T,E]", stream);
    checks.optional_result("range_report", op.range_report);
    return checks.finish();
  }
  checks.input("grad_stream1", op.grad_stream1, RFN_F32, "[B,T,E]", stream);
  checks.optional_input("grad_stream2", op.grad_stream2, RFN_F32, "[B,T,E]", stream);
  checks.output("grad_word", op.grad_word, RFN_F32, "[V,E]", {vocabulary, width});
  for (int32_t i = 0; checks.ok() && i < op.axes; ++i) {
    checks.output(Name("grad_position", i).text, op.grad_position[i], RFN_F32, "(shape of position)",
                  {op.position[i].shape[0], op.position[i].shape[1]});
  }
  return checks.finish();
}

// ---- norms ----

rfn_status validate(const rfn_layer_norm& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks checks("layer_norm", call, workspace);
  check_pass(checks, pass);
  checks.more_than("epsilon", op.epsilon, 0);
  const int64_t rows = op.x.shape[0], width = op.x.shape[1];
  checks.anchor("x", op.x, RFN_F32, "[N,E]", {rows, width});
  checks.input("weight", op.weight, RFN_F32, "[E]", {width});
  checks.input("bias", op.bias, RFN_F32, "[E]", {width});
  if (pass == RFN_PASS_FORWARD) {
    checks.output("y", op.y, kAnyFloat, "[N,E]", {rows, width});
    return checks.finish();
  }
  checks.input("grad_y", op.grad_y, kAnyFloat, "[N,E]", {rows, width});
  checks.output("grad_x", op.grad_x, RFN_F32, "[N,E]", {rows, width});
  checks.output("grad_weight", op.grad_weight, RFN_F32, "[E]", {width});
  checks.output("grad_bias", op.grad_bias, RFN_F32, "[E]", {width});
  return checks.finish();
}

rfn_status validate(const rfn_final_norm& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks checks("final_norm", call, workspace);
  check_pass(checks, pass);
  checks.integer("combine", op.combine, RFN_COMBINE_CONCATENATE, RFN_COMBINE_MEAN);
  checks.more_than("epsilon", op.epsilon, 0);
  checks.fraction("dropout", op.dropout);
  const int64_t rows = op.stream1.shape[0], width = op.stream1.shape[1];
  checks.anchor("stream1", op.stream1, RFN_F32, "[N,E]", {rows, width});
  checks.input("stream2", op.stream2, RFN_F32, "[N,E]", {rows, width});
  if (!checks.ok()) return checks.finish();
  checks.integer("first_row", op.first_row, 0, kLargestSize - rows);
  const bool concatenates = op.combine == RFN_COMBINE_CONCATENATE;
  const int64_t combined = concatenates ? 2 * width : width;
  const char* const vector = concatenates ? "[2E]" : "[E]";
  const char* const matrix = concatenates ? "[N,2E]" : "[N,E]";
  checks.input("weight", op.weight, RFN_F32, vector, {combined});
  checks.input("bias", op.bias, RFN_F32, vector, {combined});
  if (pass == RFN_PASS_FORWARD) {
    checks.output("y", op.y, RFN_F32, matrix, {rows, combined});
    return checks.finish();
  }
  checks.input("grad_y", op.grad_y, RFN_F32, matrix, {rows, combined});
  checks.output("grad_stream1", op.grad_stream1, RFN_F32, "[N,E]", {rows, width});
  checks.output("grad_stream2", op.grad_stream2, RFN_F32, "[N,E]", {rows, width});
  checks.output("grad_weight", op.grad_weight, RFN_F32, vector, {combined});
  checks.output("grad_bias", op.grad_bias, RFN_F32, vector, {combined});
  return checks.finish();
}

// ---- products ----

rfn_status validate(const rfn_linear& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks checks("linear", call, workspace);
  check_pass(checks, pass);
  check_activation(checks, op.activation);
  const int64_t rows = op.x.shape[0], inputs = op.x.shape[1], outputs = op.weight.shape[0];
  const DataTypeOf type(op.x.dtype, "x");
  checks.anchor("x", op.x, kAnyFloat, "[N,K]", {rows, inputs});
  checks.anchor("weight", op.weight, type, "[M,K]", {outputs, inputs});
  checks.largest("N * M", {rows, outputs}, kMostElements);
  checks.optional_input("bias", op.bias, RFN_F32, "[M]", {outputs});
  if (pass == RFN_PASS_FORWARD) {
    checks.output("y", op.y, type, "[N,M]", {rows, outputs});
    return checks.finish();
  }
  checks.input("grad_y", op.grad_y, type, "[N,M]", {rows, outputs});
  checks.optional_output("grad_x", op.grad_x, type, "[N,K]", {rows, inputs});
  checks.output("grad_weight", op.grad_weight, RFN_F32, "[M,K]", {outputs, inputs});
  checks.optional_output("grad_bias", op.grad_bias, RFN_F32, "[M]", {outputs});
  return checks.finish();
}

rfn_status validate(const rfn_feed_forward& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks checks("feed_forward", call, workspace);
  check_pass(checks, pass);
  check_activation(checks, op.activation);
  checks.fraction("dropout", op.dropout);
  check_layer(checks, op.layer);
  checks.integer("chunk", op.chunk, 0, INT64_MAX);
  const int64_t rows = op.x.shape[0], width = op.x.shape[1], hidden = op.w1.shape[0];
  const DataTypeOf type(op.x.dtype, "x");
  checks.anchor("x", op.x, kAnyFloat, "[N,E]", {rows, width});
  checks.anchor("w1", op.w1, type, "[F,E]", {hidden, width});
  checks.largest("N * F", {rows, hidden}, kMostElements);
  checks.input("b1", op.b1, RFN_F32, "[F]", {hidden});
  checks.input("w2", op.w2, type, "[E,F]", {width, hidden});
  checks.input("b2", op.b2, RFN_F32, "[E]", {width});
  if (pass == RFN_PASS_FORWARD) {
    checks.output("y", op.y, type, "[N,E]", {rows, width});
    return checks.finish();
  }
  checks.input("grad_y", op.grad_y, type, "[N,E]", {rows, width});
  checks.output("grad_x", op.grad_x, type, "[N,E]", {rows, width});
  checks.output("grad_w1", op.grad_w1, RFN_F32, "[F,E]", {hidden, width});
  checks.output("grad_b1", op.grad_b1, RFN_F32, "[F]", {hidden});
  checks.output("grad_w2", op.grad_w2, RFN_F32, "[E,F]", {width, hidden});
  checks.output("grad_b2", op.grad_b2, RFN_F32, "[E]", {width});
  return checks.finish();
}

rfn_status validate(const rfn_head_loss& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks checks("head_loss", call, workspace);
  check_pass(checks, pass);
  if (!(op.label_smoothing >= 0 && op.label_smoothing <= 1))
    checks.failed("label_smoothing: expected 0 to 1, got %g", static_cast<double>(op.label_smoothing));
  checks.finite("loss_scale", op.loss_scale);
  checks.at_least("normalizer", op.normalizer, 0);
  checks.integer("chunk", op.chunk, 0, INT64_MAX);
  const int64_t rows = op.x.shape[0], width = op.x.shape[1], vocabulary = op.weight.shape[0];
  checks.anchor("x", op.x, RFN_F32, "[N,K]", {rows, width});
  checks.anchor("weight", op.weight, RFN_F32, "[V,K]", {vocabulary, width});
  checks.largest("N * V", {rows, vocabulary}, kMostElements);
  checks.optional_input("bias", op.bias, RFN_F32, "[V]", {vocabulary});
  checks.input("labels", op.labels, RFN_I32, "[N]", {rows});
  checks.result("statistics", op.statistics);
  if (pass == RFN_PASS_FORWARD) return checks.finish();
  checks.output("grad_x", op.grad_x, RFN_F32, "[N,K]", {rows, width});
  checks.output("grad_weight", op.grad_weight, RFN_F32, "[V,K]", {vocabulary, width});
  checks.optional_output("grad_bias", op.grad_bias, RFN_F32, "[V]", {vocabulary});
  checks.may_be_same("x", "grad_x");
  return checks.finish();
}

}  // namespace rfn
