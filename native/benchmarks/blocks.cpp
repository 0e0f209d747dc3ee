// Reversible blocks, and a training step made of them, at the sizes of a model of width 512.
#include <memory>

#include "harness.h"

namespace rfn::benchmarks {
namespace {

constexpr int32_t kRounds = 2;
constexpr int kLayers = 4;  // of a step: local, LSH, local, LSH

// A block with its parameters and their gradients, between two streams that several may share.
class Block {
 public:
  Block(const Device& device, int32_t kind) : Block(device, Sizes(), make_options(kind)) {}

  void connect(const Tensor& stream1, const Tensor& stream2, const Tensor& grad1, const Tensor& grad2,
               const Tensor& report) {
    op.stream1 = stream1;
    op.stream2 = stream2;
    op.grad_stream1 = grad1;
    op.grad_stream2 = grad2;
    op.range_report = report.as<rfn_range_report>();
  }

  // FLOPs of the products of one forward pass, and of one that inverts and differentiates.
  double forward_flops() const { return dense_ + 4 * pairs_; }
  double backward_flops() const { return 3 * dense_ + 14 * pairs_; }

  rfn_reversible_block op = make_op<rfn_reversible_block>();
  std::vector<Tensor> parameters, gradients;

 private:
  static rfn_attention_options make_options(int32_t kind) {
    const int64_t chunk = size(64, 2);
    if (kind == RFN_ATTENTION_LSH) return lsh_options(Sizes().rows, kRounds, true, chunk);
    auto options = make_op<rfn_attention_options>();
    options.kind = RFN_ATTENTION_LOCAL;
    options.causal = 1;
    options.chunks_before = 1;
    options.chunk_length = chunk;
    return options;
  }

  Block(const Device& device, const Sizes& s, const rfn_attention_options& options) {
    const int64_t merged = s.heads * s.head_size;
    const bool shared = options.shared_qk != 0;
    const std::vector<int64_t> sizes[] = {{s.width},         {s.width},          {merged, s.width}, {merged, s.width},
                                          {s.width, merged}, {s.width},          {s.width},         {s.inner, s.width},
                                          {s.inner},         {s.width, s.inner}, {s.width},         {merged, s.width}};
    constexpr float kDeviation = 0.02f;  // as models start; the streams stay in the range of exact residuals
    for (const std::vector<int64_t>& shape : sizes) {
      parameters.emplace_back(device, shape, RFN_F32, kDeviation);
      gradients.emplace_back(device, shape);
      gradients.back().zero();
    }
    op.attention = options;
    op.heads = static_cast<int32_t>(s.heads);
    op.activation = RFN_ACTIVATION_GELU_TANH;
    op.layer_norm_epsilon = 1e-6f;
    op.residual = RFN_RESIDUAL_EXACT;
    op.grid_exponent = -16;
    op.parameters = name(parameters, shared);
    op.gradients = name(gradients, shared);
    if (options.kind == RFN_ATTENTION_LSH) {
      rotations_.emplace_back(device, std::vector<int64_t>{s.heads, s.head_size, kRounds, rotation_columns(options)});
      op.rotations = rotations_.back();
    }
    const double projections = shared ? 3 : 4;
    dense_ = projections * product(s.rows, merged, s.width) + 2 * product(s.rows, s.inner, s.width);
    const int64_t rounds = shared ? kRounds : 1;
    pairs_ = static_cast<double>(rounds * s.rows * 2 * options.chunk_length * merged);
  }

  static rfn_block_parameters name(const std::vector<Tensor>& t, bool shared) {
    const rfn_tensor absent = {};
    return {sizeof(rfn_block_parameters),
            0,
            t[0],
            t[1],
            t[2],
            shared ? absent : t[11],
            t[3],
            t[4],
            {},
            t[5],
            t[6],
            t[7],
            t[8],
            t[9],
            t[10]};
  }

  std::vector<Tensor> rotations_;
  double dense_ = 0, pairs_ = 0;
};

void block(benchmark::State& state, int32_t kind, int32_t pass) {
  const Device device;
  const Sizes s;
  Tensor stream1(device, {1, s.rows, s.width}), stream2(device, {1, s.rows, s.width});
  Tensor grad1(device, {1, s.rows, s.width}), grad2(device, {1, s.rows, s.width});
  const Tensor report(device, {4}, RFN_I64);
  Block block(device, kind);
  block.connect(stream1, stream2, grad1, grad2, report);
  if (pass == RFN_PASS_FORWARD) {
    const Call call(device, block.op, rfn_reversible_block_workspace, pass, rfn_reversible_block_forward);
    measure(state, device, {block.forward_flops(), 0}, [&] { call(); });
    return;
  }
  const Call call(device, block.op, rfn_reversible_block_workspace, pass, rfn_reversible_block_backward);
  measure(state, device, {block.backward_flops(), 0}, [&] { call(); });
}

// Everything between a batch of token ids and updated parameters.
void step(benchmark::State& state) {
  const Device device;
  const Sizes s;
  const int64_t vocabulary = size(258, 19);
  std::vector<int32_t> tokens(static_cast<size_t>(s.rows));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>(i * 7919 % static_cast<size_t>(vocabulary));
  const Tensor ids(device, {1, s.rows}, tokens), labels(device, {s.rows}, tokens);
  const Tensor report(device, {4}, RFN_I64), statistics(device, {3}, RFN_F64), norm_result(device, {2});
  const Tensor stream1(device, {1, s.rows, s.width}), stream2(device, {1, s.rows, s.width});
  const Tensor grad1(device, {1, s.rows, s.width}), grad2(device, {1, s.rows, s.width});
  const auto rows = [&](const Tensor& tensor) {  // without the example
    rfn_tensor view = tensor;
    view.rank = 2;
    view.shape[0] = s.rows;
    view.shape[1] = s.width;
    view.shape[2] = 0;
    return view;
  };
  const Tensor normed(device, {s.rows, 2 * s.width}), grad_normed(device, {s.rows, 2 * s.width});

  std::vector<Tensor> parameters, gradients;
  constexpr float kDeviation = 0.02f;
  const std::vector<int64_t> outer[] = {
      {vocabulary, s.width}, {2 * s.width}, {2 * s.width}, {vocabulary, 2 * s.width}, {vocabulary}};
  for (const std::vector<int64_t>& shape : outer) {
    parameters.emplace_back(device, shape, RFN_F32, kDeviation);
    gradients.emplace_back(device, shape);
  }
  auto embedding = make_op<rfn_embedding>();
  embedding.residual = RFN_RESIDUAL_EXACT;
  embedding.grid_exponent = -16;
  embedding.ids = ids;
  embedding.word = parameters[0];
  embedding.stream1 = stream1;
  embedding.stream2 = stream2;
  embedding.grad_stream1 = grad1;
  embedding.grad_stream2 = grad2;
  embedding.grad_word = gradients[0];
  embedding.range_report = report.as<rfn_range_report>();
  auto norm = make_op<rfn_final_norm>();
  norm.combine = RFN_COMBINE_CONCATENATE;
  norm.epsilon = 1e-6f;
  norm.stream1 = rows(stream1);
  norm.stream2 = rows(stream2);
  norm.weight = parameters[1];
  norm.bias = parameters[2];
  norm.y = normed;
  norm.grad_y = grad_normed;
  norm.grad_stream1 = rows(grad1);
  norm.grad_stream2 = rows(grad2);
  norm.grad_weight = gradients[1];
  norm.grad_bias = gradients[2];
  auto loss = make_op<rfn_head_loss>();
  loss.ignore_index = -100;
  loss.loss_scale = 1;
  loss.x = normed;
  loss.weight = parameters[3];
  loss.bias = parameters[4];
  loss.labels = labels;
  loss.statistics = statistics.as<rfn_loss_statistics>();
  loss.grad_x = grad_normed;
  loss.grad_weight = gradients[3];
  loss.grad_bias = gradients[4];

  std::vector<Block> blocks;
  for (int layer = 0; layer < kLayers; ++layer) {
    blocks.emplace_back(device, layer % 2 == 0 ? RFN_ATTENTION_LOCAL : RFN_ATTENTION_LSH);
    blocks.back().connect(stream1, stream2, grad1, grad2, report);
    blocks.back().op.layer = layer;
  }
  // In the order in which they run.
  std::vector<std::unique_ptr<Call>> calls;
  const auto run = [&](const auto& op, auto workspace, auto forward) {
    calls.push_back(std::make_unique<Call>(device, op, workspace, RFN_PASS_FORWARD, forward));
  };
  const auto back = [&](const auto& op, auto workspace, auto backward) {
    calls.push_back(std::make_unique<Call>(device, op, workspace, RFN_PASS_BACKWARD, backward));
  };
  run(embedding, rfn_embedding_workspace, rfn_embedding_forward);
  for (const Block& b : blocks) run(b.op, rfn_reversible_block_workspace, rfn_reversible_block_forward);
  run(norm, rfn_final_norm_workspace, rfn_final_norm_forward);
  back(loss, rfn_head_loss_workspace, rfn_head_loss_backward);
  back(norm, rfn_final_norm_workspace, rfn_final_norm_backward);
  for (auto b = blocks.rbegin(); b != blocks.rend(); ++b)
    back(b->op, rfn_reversible_block_workspace, rfn_reversible_block_backward);
  back(embedding, rfn_embedding_workspace, rfn_embedding_backward);

  for (Block& b : blocks) {
    for (Tensor& tensor : b.parameters) parameters.push_back(std::move(tensor));
    for (Tensor& tensor : b.gradients) gradients.push_back(std::move(tensor));
  }
  std::vector<rfn_tensor> list(gradients.begin(), gradients.end());
  auto clip = make_op<rfn_global_norm>();
  clip.max_norm = 1;
  clip.count = static_cast<int64_t>(list.size());
  clip.gradients = list.data();
  clip.result = norm_result.as<rfn_norm_result>();
  calls.push_back(std::make_unique<Call>(device, clip, rfn_global_norm_workspace, rfn_global_norm_forward));
  const std::vector<rfn_tensor> parameter_list(parameters.begin(), parameters.end());
  std::vector<Tensor> moments;
  std::vector<rfn_tensor> moment_lists[2];
  for (std::vector<rfn_tensor>& moment_list : moment_lists) {
    for (const rfn_tensor& parameter : parameter_list) {
      moments.emplace_back(device, std::vector<int64_t>(parameter.shape, parameter.shape + parameter.rank));
      moments.back().zero();
      moment_list.push_back(moments.back());
    }
  }
  auto update = make_op<rfn_adamw>();
  update.learning_rate = 1e-4f;
  update.beta1 = 0.9f;
  update.beta2 = 0.999f;
  update.epsilon = 1e-8f;
  update.step = 1;
  update.count = static_cast<int64_t>(list.size());
  update.parameters = parameter_list.data();
  update.gradients = list.data();
  update.moments1 = moment_lists[0].data();
  update.moments2 = moment_lists[1].data();
  update.clip = norm_result.as<rfn_norm_result>();
  calls.push_back(std::make_unique<Call>(device, update, rfn_adamw_step));

  double flops = 3 * product(s.rows, vocabulary, 2 * s.width);
  for (const Block& b : blocks) flops += b.forward_flops() + b.backward_flops();
  measure(state, device, {flops, 0}, [&] {
    for (Tensor& gradient : gradients) gradient.zero();
    for (const auto& call : calls) (*call)();
  });
}

}  // namespace

void add_blocks() {
  for (const int32_t kind : {RFN_ATTENTION_LOCAL, RFN_ATTENTION_LSH}) {
    const std::string name = kind == RFN_ATTENTION_LSH ? "block_lsh" : "block_local";
    for (const int32_t pass : {RFN_PASS_FORWARD, RFN_PASS_BACKWARD}) {
      add(name + (pass == RFN_PASS_FORWARD ? "/forward" : "/backward"),
          [=](benchmark::State& state) { block(state, kind, pass); });
    }
  }
  add("step/layers:" + std::to_string(kLayers), step);
}

}  // namespace rfn::benchmarks
