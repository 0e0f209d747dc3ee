// All other ops, at the sizes of a model of width 512 on 4,096 tokens, on a GPU 65,536; those that only move memory at
// sizes beyond the caches.
#include "harness.h"

namespace rfn::benchmarks {
namespace {

void linear(benchmark::State& state, int64_t outputs, int32_t pass) {
  const Device device;
  const Sizes s;
  const Tensor x(device, {s.rows, s.width}), weight(device, {outputs, s.width}), bias(device, {outputs}),
      y(device, {s.rows, outputs});
  const Tensor grad_x(device, {s.rows, s.width}), grad_weight(device, {outputs, s.width}), grad_bias(device, {outputs});
  auto op = make_op<rfn_linear>();
  op.x = x;
  op.weight = weight;
  op.bias = bias;
  op.y = y;
  const double flops = product(s.rows, outputs, s.width);
  if (pass == RFN_PASS_FORWARD) {
    const Call call(device, op, rfn_linear_workspace, pass, rfn_linear_forward);
    measure(state, device, {flops, bytes({x, weight, bias, y})}, [&] { call(); });
    return;
  }
  op.grad_y = y;
  op.grad_x = grad_x;
  op.grad_weight = grad_weight;
  op.grad_bias = grad_bias;
  const Call call(device, op, rfn_linear_workspace, pass, rfn_linear_backward);
  measure(state, device, {2 * flops, bytes({x, weight, y, grad_x, grad_weight})}, [&] { call(); });
}

void feed_forward(benchmark::State& state, int32_t pass) {
  const Device device;
  const Sizes s;
  const Tensor x(device, {s.rows, s.width}), y(device, {s.rows, s.width}), grad_x(device, {s.rows, s.width});
  const Tensor w1(device, {s.inner, s.width}), b1(device, {s.inner}), w2(device, {s.width, s.inner}),
      b2(device, {s.width});
  const Tensor grad_w1(device, {s.inner, s.width}), grad_b1(device, {s.inner}), grad_w2(device, {s.width, s.inner}),
      grad_b2(device, {s.width});
  auto op = make_op<rfn_feed_forward>();
  op.activation = RFN_ACTIVATION_GELU_TANH;
  op.x = x;
  op.w1 = w1;
  op.b1 = b1;
  op.w2 = w2;
  op.b2 = b2;
  op.y = y;
  const double one = product(s.rows, s.inner, s.width);
  if (pass == RFN_PASS_FORWARD) {
    const Call call(device, op, rfn_feed_forward_workspace, pass, rfn_feed_forward_forward);
    measure(state, device, {2 * one, bytes({x, w1, w2, y})}, [&] { call(); });
    return;
  }
  op.grad_y = y;
  op.grad_x = grad_x;
  op.grad_w1 = grad_w1;
  op.grad_b1 = grad_b1;
  op.grad_w2 = grad_w2;
  op.grad_b2 = grad_b2;
  const Call call(device, op, rfn_feed_forward_workspace, pass, rfn_feed_forward_backward);
  measure(state, device, {5 * one, bytes({x, w1, w2, y, grad_x, grad_w1, grad_w2})},
          [&] { call(); });  // the first product again, then four
}

void layer_norm(benchmark::State& state, int64_t rows, int32_t pass) {
  const Device device;
  const Sizes s;
  const Tensor x(device, {rows, s.width}), y(device, {rows, s.width}), grad_x(device, {rows, s.width});
  const Tensor weight(device, {s.width}), bias(device, {s.width}), grad_weight(device, {s.width}),
      grad_bias(device, {s.width});
  auto op = make_op<rfn_layer_norm>();
  op.epsilon = 1e-6f;
  op.x = x;
  op.weight = weight;
  op.bias = bias;
  op.y = y;
  if (pass == RFN_PASS_FORWARD) {
    const Call call(device, op, rfn_layer_norm_workspace, pass, rfn_layer_norm_forward);
    measure(state, device, {0, bytes({x, y})}, [&] { call(); });
    return;
  }
  op.grad_y = y;
  op.grad_x = grad_x;
  op.grad_weight = grad_weight;
  op.grad_bias = grad_bias;
  const Call call(device, op, rfn_layer_norm_workspace, pass, rfn_layer_norm_backward);
  measure(state, device, {0, bytes({x, y, grad_x})}, [&] { call(); });
}

void final_norm(benchmark::State& state, int32_t pass) {
  const Device device;
  const Sizes s;
  const int64_t rows = size(65536, 5);
  const Tensor stream1(device, {rows, s.width}), stream2(device, {rows, s.width}), y(device, {rows, 2 * s.width});
  const Tensor grad1(device, {rows, s.width}), grad2(device, {rows, s.width});
  const Tensor weight(device, {2 * s.width}), bias(device, {2 * s.width}), grad_weight(device, {2 * s.width}),
      grad_bias(device, {2 * s.width});
  auto op = make_op<rfn_final_norm>();
  op.combine = RFN_COMBINE_CONCATENATE;
  op.epsilon = 1e-6f;
  op.stream1 = stream1;
  op.stream2 = stream2;
  op.weight = weight;
  op.bias = bias;
  op.y = y;
  if (pass == RFN_PASS_FORWARD) {
    const Call call(device, op, rfn_final_norm_workspace, pass, rfn_final_norm_forward);
    measure(state, device, {0, bytes({stream1, stream2, y})}, [&] { call(); });
    return;
  }
  op.grad_y = y;
  op.grad_stream1 = grad1;
  op.grad_stream2 = grad2;
  op.grad_weight = grad_weight;
  op.grad_bias = grad_bias;
  const Call call(device, op, rfn_final_norm_workspace, pass, rfn_final_norm_backward);
  measure(state, device, {0, bytes({stream1, stream2, y, grad1, grad2})}, [&] { call(); });
}

void head_loss(benchmark::State& state, int64_t vocabulary, int32_t pass) {
  const Device device;
  const Sizes s;
  const int64_t width = 2 * s.width;
  const Tensor x(device, {s.rows, width}), weight(device, {vocabulary, width}), bias(device, {vocabulary});
  const Tensor labels(device, {s.rows}, RFN_I32), statistics(device, {3}, RFN_F64);
  const Tensor grad_x(device, {s.rows, width}), grad_weight(device, {vocabulary, width}),
      grad_bias(device, {vocabulary});
  auto op = make_op<rfn_head_loss>();
  op.ignore_index = -100;
  op.loss_scale = 1;
  op.x = x;
  op.weight = weight;
  op.bias = bias;
  op.labels = labels;
  op.statistics = statistics.as<rfn_loss_statistics>();
  const double flops = product(s.rows, vocabulary, width);
  if (pass == RFN_PASS_FORWARD) {
    const Call call(device, op, rfn_head_loss_workspace, pass, rfn_head_loss_forward);
    measure(state, device, {flops, bytes({x, weight})}, [&] { call(); });
    return;
  }
  op.grad_x = grad_x;
  op.grad_weight = grad_weight;
  op.grad_bias = grad_bias;
  const Call call(device, op, rfn_head_loss_workspace, pass, rfn_head_loss_backward);
  measure(state, device, {3 * flops, bytes({x, weight, grad_x, grad_weight})},
          [&] { call(); });  // the logits, then two products
}

void embedding(benchmark::State& state, int32_t pass) {
  const Device device;
  const Sizes s;
  const int64_t tokens = size(65536, 12), rows = size(256, 3), columns = size(256, 4), vocabulary = 258,
                part = s.width / 4;
  std::vector<int32_t> values(static_cast<size_t>(tokens));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<int32_t>(i * 7919 % static_cast<size_t>(vocabulary));
  const Tensor ids(device, {1, tokens}, values), word(device, {vocabulary, s.width});
  const Tensor position0(device, {rows, part}), position1(device, {columns, s.width - part});
  const Tensor stream1(device, {1, tokens, s.width}), stream2(device, {1, tokens, s.width});
  const Tensor grad_word(device, {vocabulary, s.width}), grad0(device, {rows, part}),
      grad1(device, {columns, s.width - part});
  const Tensor report(device, {4}, RFN_I64);
  auto op = make_op<rfn_embedding>();
  op.positions = RFN_POSITIONS_AXIAL;
  op.axes = 2;
  op.residual = RFN_RESIDUAL_EXACT;
  op.grid_exponent = -16;
  op.ids = ids;
  op.word = word;
  op.position[0] = position0;
  op.position[1] = position1;
  op.stream1 = stream1;
  op.stream2 = stream2;
  op.range_report = report.as<rfn_range_report>();
  if (pass == RFN_PASS_FORWARD) {
    const Call call(device, op, rfn_embedding_workspace, pass, rfn_embedding_forward);
    measure(state, device, {0, bytes({ids, stream1, stream2})}, [&] { call(); });
    return;
  }
  op.grad_stream1 = stream1;
  op.grad_stream2 = stream2;
  op.grad_word = grad_word;
  op.grad_position[0] = grad0;
  op.grad_position[1] = grad1;
  const Call call(device, op, rfn_embedding_workspace, pass, rfn_embedding_backward);
  measure(state, device, {0, bytes({ids, stream1, stream2})}, [&] { call(); });
}

void adamw(benchmark::State& state) {
  const Device device;
  const int64_t n = large_size(int64_t{1} << 24, 100);
  const Tensor parameter(device, {n}), gradient(device, {n});
  Tensor moment1(device, {n}), moment2(device, {n});
  moment1.zero();
  moment2.zero();
  auto op = make_op<rfn_adamw>();
  op.learning_rate = 1e-3f;
  op.beta1 = 0.9f;
  op.beta2 = 0.999f;
  op.epsilon = 1e-8f;
  op.step = 1;
  const rfn_tensor tensors[] = {parameter, gradient, moment1, moment2};
  op.count = 1;
  op.parameters = &tensors[0];
  op.gradients = &tensors[1];
  op.moments1 = &tensors[2];
  op.moments2 = &tensors[3];
  const Call call(device, op, rfn_adamw_step);
  measure(state, device, {0, bytes({gradient}) + 2 * bytes({parameter, moment1, moment2})},
          [&] { call(); });  // read and written
}

void adafactor(benchmark::State& state) {
  const Device device;
  const int64_t rows = large_size(4096, 6), columns = size(4096, 10);
  const Tensor parameter(device, {rows, columns}), gradient(device, {rows, columns});
  Tensor row(device, {rows}), column(device, {columns});
  row.zero();
  column.zero();
  auto op = make_op<rfn_adafactor>();
  op.learning_rate = 1e-3f;
  op.decay_exponent = 0.8f;
  op.clip_threshold = 1;
  op.epsilon1 = 1e-30f;
  op.epsilon2 = 1e-3f;
  op.step = 1;
  const rfn_tensor tensors[] = {parameter, gradient, row, column};
  op.count = 1;
  op.parameters = &tensors[0];
  op.gradients = &tensors[1];
  op.rows = &tensors[2];
  op.columns = &tensors[3];
  const Call call(device, op, rfn_adafactor_workspace, rfn_adafactor_step);
  measure(state, device, {0, bytes({gradient}) + 2 * bytes({parameter})}, [&] { call(); });
}

void global_norm(benchmark::State& state) {
  const Device device;
  const Tensor gradient(device, {large_size(int64_t{1} << 24, 100)}), result(device, {2});
  const rfn_tensor list[] = {gradient};
  auto op = make_op<rfn_global_norm>();
  op.max_norm = 1;
  op.count = 1;
  op.gradients = list;
  op.result = result.as<rfn_norm_result>();
  const Call call(device, op, rfn_global_norm_workspace, rfn_global_norm_forward);
  measure(state, device, {0, bytes({gradient})}, [&] { call(); });
}

void random_normal(benchmark::State& state) {
  const Device device;
  const Tensor destination(device, {large_size(int64_t{1} << 24, 100)});
  auto op = make_op<rfn_random_normal>();
  op.site = RFN_SITE_DATA;
  op.standard_deviation = 1;
  op.destination = destination;
  const Call call(device, op, rfn_random_normal_forward);
  measure(state, device, {0, bytes({destination})}, [&] { call(); });
}

void sample(benchmark::State& state) {
  const Device device;
  const int64_t vocabulary = size(32768, 50);
  const Tensor logits(device, {large_size(64, 3), vocabulary}), ids(device, {large_size(64, 3)}, RFN_I32);
  auto op = make_op<rfn_sample>();
  op.temperature = 0.8f;
  op.top_p = 0.95f;
  op.top_k = static_cast<int32_t>(vocabulary / 2);
  op.logits = logits;
  op.ids = ids;
  const Call call(device, op, rfn_sample_workspace, rfn_sample_forward);
  measure(state, device, {0, bytes({logits, ids})}, [&] { call(); });
}

}  // namespace

void add_ops() {
  for (const int32_t pass : {RFN_PASS_FORWARD, RFN_PASS_BACKWARD}) {
    const std::string name = pass == RFN_PASS_FORWARD ? "/forward" : "/backward";
    for (const int64_t outputs : {size(512, 7), size(2048, 12)}) {
      add("linear" + name + "/outputs:" + std::to_string(outputs),
          [=](benchmark::State& state) { linear(state, outputs, pass); });
    }
    add("feed_forward" + name, [=](benchmark::State& state) { feed_forward(state, pass); });
    for (const int64_t rows : {large_size(4096, 5), large_size(65536, 9)}) {
      add("layer_norm" + name + "/rows:" + std::to_string(rows),
          [=](benchmark::State& state) { layer_norm(state, rows, pass); });
    }
    add("final_norm" + name, [=](benchmark::State& state) { final_norm(state, pass); });
    for (const int64_t vocabulary : {size(258, 19), size(8192, 33)}) {
      add("head_loss" + name + "/vocabulary:" + std::to_string(vocabulary),
          [=](benchmark::State& state) { head_loss(state, vocabulary, pass); });
    }
    add("embedding" + name, [=](benchmark::State& state) { embedding(state, pass); });
  }
  add("adamw", adamw);
  add("adafactor", adafactor);
  add("global_norm", global_norm);
  add("random_normal", random_normal);
  add("sample", sample);
}

}  // namespace rfn::benchmarks
