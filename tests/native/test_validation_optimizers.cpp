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
  check.tensors();  // their sizes have nothing to fit
  check.overlaps();
  check.workspaces();
  check.struct_size();
  check.pointers();
  check.query_without_data();
  check.value("count", [&] { op.count = 0; });
  check.value("count", [&] { op.count = -1; });
  check.value("gradients", [&] { op.gradients = nullptr; });
  for (const float norm : {-1.0f, kNaN, kInfinity}) check.value("max_norm", [&] { op.max_norm = norm; });
}

// Two parameters; the second one's shape is a scalar's.
TEST_F(Validation, AdamW_WrongArguments_Refused) {
  OpCall<rfn_adamw> call(RFN_NO_WORKSPACE(adamw, step));
  rfn_adamw& op = call.op;
  rfn_tensor parameters[2], gradients[2], moments1[2], moments2[2];
  float decays[2] = {0.0f, 0.1f};
  op.learning_rate = 0.1f;
  op.beta1 = 0.9f;
  op.beta2 = 0.999f;
  op.epsilon = 1e-8f;
  op.step = 1;
  op.count = 2;
  op.parameters = parameters;
  op.gradients = gradients;
  op.moments1 = moments1;
  op.moments2 = moments2;
  op.weight_decays = decays;
  for (int i = 0; i < 2; ++i) {
    const std::string entry = "[" + std::to_string(i) + "]";
    const std::vector<int64_t> sizes = i == 0 ? std::vector<int64_t>{3, 4} : std::vector<int64_t>{};
    call.output("parameters" + entry, parameters[i], sizes);
    call.input("gradients" + entry, gradients[i], sizes);
    call.output("moments1" + entry, moments1[i], sizes);
    call.output("moments2" + entry, moments2[i], sizes);
  }
  call.result("clip", op.clip, Use::kOptionalInput);
  const Checker check(stream, call);
  check.all();
  for (const float value : {-1.0f, kNaN, kInfinity}) {
    check.value("learning_rate", [&] { op.learning_rate = value; });
    check.value("weight_decays[1]", [&] { decays[1] = value; });
    decays[1] = 0.1f;
    check.value("epsilon", [&] { op.epsilon = value; });
  }
  check.value("epsilon", [&] { op.epsilon = 0; });
  for (const float value : {-0.1f, 1.0f, kNaN}) {
    check.value("beta1", [&] { op.beta1 = value; });
    check.value("beta2", [&] { op.beta2 = value; });
  }
  for (const int64_t value : {0, -1}) {
    check.value("step", [&] { op.step = value; });
    check.value("count", [&] { op.count = value; });
  }
  check.value("parameters", [&] { op.parameters = nullptr; });
  check.value("gradients", [&] { op.gradients = nullptr; });
  check.value("moments1", [&] { op.moments1 = nullptr; });
  check.value("moments2", [&] { op.moments2 = nullptr; });
  op.weight_decays = nullptr;
  EXPECT_TRUE(Ok(check.run())) << "no decay";
  // What is only read may be the same memory.
  gradients[1].data = gradients[0].data;
  EXPECT_TRUE(Ok(check.run())) << "one gradient inside another";
}

// A matrix, whose third list is not read, and a vector, which needs only that.
TEST_F(Validation, Adafactor_WrongArguments_Refused) {
  OpCall<rfn_adafactor> call(RFN_ONE_PASS(adafactor, step));
  rfn_adafactor& op = call.op;
  rfn_tensor parameters[2], gradients[2], rows[2] = {}, columns[2] = {}, moments2[2] = {};
  float decays[2] = {0.1f, 0.0f};
  op.learning_rate = 0.1f;
  op.decay_exponent = 0.8f;
  op.clip_threshold = 1;
  op.epsilon1 = 1e-30f;
  op.epsilon2 = 1e-3f;
  op.step = 1;
  op.count = 2;
  op.parameters = parameters;
  op.gradients = gradients;
  op.rows = rows;
  op.columns = columns;
  op.moments2 = moments2;
  op.weight_decays = decays;
  call.output("parameters[0]", parameters[0], {2, 3, 5});
  call.input("gradients[0]", gradients[0], {2, 3, 5});
  call.output("rows[0]", rows[0], {6});
  call.output("columns[0]", columns[0], {5});
  call.output("parameters[1]", parameters[1], {7});
  call.input("gradients[1]", gradients[1], {7});
  call.output("moments2[1]", moments2[1], {7});
  call.result("clip", op.clip, Use::kOptionalInput);
  moments2[0].rank = 99;  // not read
  rows[1].data = parameters[0].data;
  const Checker check(stream, call);
  check.all();
  for (const float value : {-1.0f, kNaN, kInfinity}) {
    check.value("learning_rate", [&] { op.learning_rate = value; });
    check.value("decay_exponent", [&] { op.decay_exponent = value; });
    check.value("clip_threshold", [&] { op.clip_threshold = value; });
    check.value("epsilon1", [&] { op.epsilon1 = value; });
    check.value("epsilon2", [&] { op.epsilon2 = value; });
    check.value("weight_decays[0]", [&] { decays[0] = value; });
    decays[0] = 0.1f;
  }
  check.value("scale_parameter", [&] { op.scale_parameter = 2; });
  for (const int64_t value : {0, -1}) {
    check.value("step", [&] { op.step = value; });
    check.value("count", [&] { op.count = value; });
  }
  check.value("parameters", [&] { op.parameters = nullptr; });
  for (const auto list :
       {&rfn_adafactor::gradients, &rfn_adafactor::rows, &rfn_adafactor::columns, &rfn_adafactor::moments2}) {
    const char* const name = list == &rfn_adafactor::gradients ? "gradients"
                             : list == &rfn_adafactor::rows    ? "rows"
                             : list == &rfn_adafactor::columns ? "columns"
                                                               : "moments2";
    check.refused(name, name, false, [&] { op.*list = nullptr; });
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
