// Optimizers, the norm of gradients, and sampling.
#include "core/checks.h"
#include "core/tensor.h"

namespace rfn {

rfn_status validate(const rfn_global_norm& op, Call call, const Workspace& workspace) {
  Checks checks("global_norm", call, workspace);
  checks.at_least("max_norm", op.max_norm, 0);
  checks.integer("count", op.count, 1, kLargestSize);
  if (op.gradients == nullptr) checks.failed("gradients: expected a pointer, got NULL");
  checks.result("result", op.result);
  // Any number of gradients, which are only read: each is held against the result and the workspace by itself.
  for (int64_t i = 0; checks.ok() && i < op.count; ++i) {
    const Name name("gradients", i);
    if (is_absent(op.gradients[i])) checks.failed("%s: expected F32 of any shape, got an absent tensor", name.text);
    checks.any_shape(name.text, op.gradients[i], Access::kRead);
    checks.finish();
    checks.forget_last_read();
  }
  return checks.finish();
}

rfn_status validate(const rfn_adamw& op, Call call, const Workspace& workspace) {
  Checks checks("adamw", call, workspace);
  checks.at_least("learning_rate", op.learning_rate, 0);
  checks.fraction("beta1", op.beta1);
  checks.fraction("beta2", op.beta2);
  checks.more_than("epsilon", op.epsilon, 0);
  checks.at_least("weight_decay", op.weight_decay, 0);
  checks.integer("step", op.step, 1, INT64_MAX);
  checks.any_shape("parameter", op.parameter, Access::kWritten);
  checks.same_shape("gradient", op.gradient, "parameter", op.parameter, Access::kRead);
  checks.same_shape("moment1", op.moment1, "parameter", op.parameter, Access::kWritten);
  checks.same_shape("moment2", op.moment2, "parameter", op.parameter, Access::kWritten);
  checks.optional_result("clip", op.clip);
  return checks.finish();
}

rfn_status validate(const rfn_adafactor& op, Call call, const Workspace& workspace) {
  Checks checks("adafactor", call, workspace);
  checks.at_least("learning_rate", op.learning_rate, 0);
  checks.more_than("decay_exponent", op.decay_exponent, 0);
  checks.more_than("clip_threshold", op.clip_threshold, 0);
  checks.at_least("epsilon1", op.epsilon1, 0);
  checks.at_least("epsilon2", op.epsilon2, 0);
  checks.at_least("weight_decay", op.weight_decay, 0);
  checks.flag("scale_parameter", op.scale_parameter);
  checks.integer("step", op.step, 1, INT64_MAX);
  const rfn_tensor& parameter = op.parameter;
  if (is_absent(parameter)) checks.failed("parameter: expected F32 of any shape, got an absent tensor");
  checks.any_shape("parameter", parameter, Access::kWritten);
  if (!checks.ok()) return checks.finish();
  checks.same_shape("gradient", op.gradient, "parameter", parameter, Access::kRead);
  if (parameter.rank >= 2) {
    const int64_t columns = parameter.shape[parameter.rank - 1], rows = elements(parameter) / columns;
    checks.output("row", op.row, RFN_F32, "[rows]", {rows});
    checks.output("column", op.column, RFN_F32, "[columns]", {columns});
  } else {
    checks.same_shape("moment2", op.moment2, "parameter", parameter, Access::kWritten);
  }
  checks.optional_result("clip", op.clip);
  return checks.finish();
}

rfn_status validate(const rfn_sample& op, Call call, const Workspace& workspace) {
  Checks checks("sample", call, workspace);
  checks.at_least("temperature", op.temperature, 0);
  if (!(op.top_p > 0 && op.top_p <= 1))
    checks.failed("top_p: expected 0 < value <= 1, got %g", static_cast<double>(op.top_p));
  checks.integer("top_k", op.top_k, 0, INT32_MAX);
  const int64_t rows = op.logits.shape[0], vocabulary = op.logits.shape[1];
  checks.anchor("logits", op.logits, RFN_F32, "[N,V]", {rows, vocabulary});
  checks.output("ids", op.ids, RFN_I32, "[N]", {rows});
  return checks.finish();
}

}  // namespace rfn
