#include "validation.h"

namespace rfn::test {

TEST_F(Validation, GlobalNorm_WrongArguments_Refused) {
  OpCall<rfn_global_norm> call(RFN_ONE_PASS(global_norm, forward));
  rfn_global_norm& op = call.op;
  rfn_tensor gradients[3] = {};
  op.count = 3;
  op.gradients = gradients;
  call.input("gradients[0]", gradients[0], {2, 3});
  call.input("gradients[1]", gradients[1], {});
  call.input("gradients[2]", gradients[2], {2, 1, 3, 4});
  call.result("result", op.result);
  const Checker check(stream, call);
  EXPECT_TRUE(Ok(check.run()));
  // The array is not part of the op, so refused() can't restore it.
  rfn_tensor& t = gradients[1];
  const rfn_tensor before = t;
  const auto wrong = [&](const std::string& what, const std::function<void()>& change) {
    check.refused(what, "gradients[1]", false, change);
    t = before;
  };
  wrong("absent", [&] { t = {}; });
  wrong("struct_size", [&] { t.struct_size = 8; });
  wrong("dtype", [&] { t.dtype = RFN_F64; });
  wrong("rank", [&] { t.rank = 5; });
  wrong("size", [&] {
    t.rank = 1;
    t.shape[0] = 0;
  });
  wrong("overflow", [&] {
    t.rank = 2;
    t.shape[0] = t.shape[1] = INT64_MAX / 2;
  });
  wrong("data", [&] { t.data = nullptr; });
  wrong("bytes", [&] { t.bytes = 3; });
  wrong("alignment", [&] { t.data = static_cast<char*>(t.data) + 2; });
  wrong("result's memory", [&] { t.data = op.result; });
  check.value("count", [&] { op.count = 0; });
  check.value("count", [&] { op.count = -1; });
  check.value("gradients", [&] { op.gradients = nullptr; });
  for (const float norm : {-1.0f, kNaN, kInfinity}) check.value("max_norm", [&] { op.max_norm = norm; });
  check.struct_size();
  check.pointers();
  check.workspaces();
  EXPECT_TRUE(Ok(check.run()));
}

void adamw(OpCall<rfn_adamw>& call) {
  rfn_adamw& op = call.op;
  op.learning_rate = 0.1f;
  op.beta1 = 0.9f;
  op.beta2 = 0.999f;
  op.epsilon = 1e-8f;
  op.step = 1;
  call.output("parameter", op.parameter, {3, 4});
  call.input("gradient", op.gradient, {3, 4});
  call.output("moment1", op.moment1, {3, 4});
  call.output("moment2", op.moment2, {3, 4});
  call.result("clip", op.clip, Use::kOptionalInput);
}

TEST_F(Validation, AdamW_WrongArguments_Refused) {
  OpCall<rfn_adamw> call(RFN_NO_WORKSPACE(adamw, step));
  adamw(call);
  rfn_adamw& op = call.op;
  const Checker check(stream, call);
  check.all();
  for (const float value : {-1.0f, kNaN, kInfinity}) {
    check.value("learning_rate", [&] { op.learning_rate = value; });
    check.value("weight_decay", [&] { op.weight_decay = value; });
    check.value("epsilon", [&] { op.epsilon = value; });
  }
  check.value("epsilon", [&] { op.epsilon = 0; });
  for (const float value : {-0.1f, 1.0f, kNaN}) {
    check.value("beta1", [&] { op.beta1 = value; });
    check.value("beta2", [&] { op.beta2 = value; });
  }
  check.value("step", [&] { op.step = 0; });
}

void adafactor(OpCall<rfn_adafactor>& call, bool matrix) {
  rfn_adafactor& op = call.op;
  op.learning_rate = 0.1f;
  op.decay_exponent = 0.8f;
  op.clip_threshold = 1;
  op.epsilon1 = 1e-30f;
  op.epsilon2 = 1e-3f;
  op.step = 1;
  const std::vector<int64_t> sizes = matrix ? std::vector<int64_t>{2, 3, 5} : std::vector<int64_t>{7};
  call.output("parameter", op.parameter, sizes);
  call.input("gradient", op.gradient, sizes);
  if (matrix) {
    call.output("row", op.row, {6});
    call.output("column", op.column, {5});
  } else {
    call.output("moment2", op.moment2, sizes);
  }
  call.result("clip", op.clip, Use::kOptionalInput);
}

TEST_F(Validation, Adafactor_WrongArguments_Refused) {
  for (const bool matrix : {true, false}) {
    OpCall<rfn_adafactor> call(RFN_ONE_PASS(adafactor, step));
    adafactor(call, matrix);
    rfn_adafactor& op = call.op;
    const Checker check(stream, call);
    check.all();
    for (const float value : {-1.0f, kNaN, kInfinity}) {
      check.value("learning_rate", [&] { op.learning_rate = value; });
      check.value("decay_exponent", [&] { op.decay_exponent = value; });
      check.value("clip_threshold", [&] { op.clip_threshold = value; });
      check.value("epsilon1", [&] { op.epsilon1 = value; });
      check.value("epsilon2", [&] { op.epsilon2 = value; });
      check.value("weight_decay", [&] { op.weight_decay = value; });
    }
    check.value("scale_parameter", [&] { op.scale_parameter = 2; });
    check.value("step", [&] { op.step = 0; });
  }
}

void sample(OpCall<rfn_sample>& call) {
  rfn_sample& op = call.op;
  op.temperature = 1;
  op.top_p = 1;
  call.input("logits", op.logits, {3, 5});
  call.output("ids", op.ids, {3}, RFN_I32);
}

TEST_F(Validation, Sample_WrongArguments_Refused) {
  OpCall<rfn_sample> call(RFN_ONE_PASS(sample, forward));
  sample(call);
  rfn_sample& op = call.op;
  const Checker check(stream, call);
  check.tensors();
  check.overlaps();
  check.workspaces();
  check.struct_size();
  check.pointers();
  check.query_without_data();
  check.refused("rows", "ids", false, [&] { op.ids.shape[0] = 2; });
  for (const float value : {-1.0f, kNaN, kInfinity}) check.value("temperature", [&] { op.temperature = value; });
  for (const float value : {-1.0f, 0.0f, 1.1f, kNaN}) check.value("top_p", [&] { op.top_p = value; });
  check.value("top_k", [&] { op.top_k = -1; });
  EXPECT_TRUE(Ok(check.run()));
}

}  // namespace rfn::test
