// The CUDA backend as host code: what it does when calls of the runtime fail, when there is no device, when a kernel
// faults; streams, events, graphs. On the simulated device (native/cuda_on_host), where all of this can be brought
// about.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <deque>
#include <set>

#include "core/error.h"
#include "cuda_on_host/control.h"
#include "half.h"
#include "harness.h"

namespace rfn::test {
namespace {

using cuda_on_host::LiveObject;
using cuda_on_host::Settings;

std::set<int64_t> live() {
  std::set<int64_t> numbers;
  for (const LiveObject& object : cuda_on_host::live_objects()) numbers.insert(object.number);
  return numbers;
}

// Each test begins with a fresh device and leaves nothing behind.
class CudaBackend : public testing::Test {
 protected:
  void SetUp() override {
    if (device_type() != RFN_DEVICE_CUDA_ON_HOST) GTEST_SKIP() << "needs RFN_TEST_DEVICE=cuda_on_host";
    fresh();
  }
  void TearDown() override {
    if (IsSkipped()) return;
    close_device();
    for (const LiveObject& object : cuda_on_host::live_objects())
      ADD_FAILURE() << "leaked " << object.kind << ", object " << object.number;
    fresh();
  }
  static void fresh() {
    close_device();
    cuda_on_host::reset();
  }
  template <class Change>
  static void set(const Change& change) {
    Settings settings = cuda_on_host::settings();
    change(settings);
    cuda_on_host::set_settings(settings);
  }
  static rfn_status create(rfn_context** context) { return rfn_context_create(RFN_DEVICE_CUDA_ON_HOST, 0, 0, context); }
};

// One small call of every pass of every op.
class EveryOp {
 public:
  struct Call {
    std::string name;
    std::function<rfn_status(const rfn_context*, int64_t*)> workspace;
    std::function<rfn_status(rfn_stream*, void*, int64_t)> run;
  };
  std::vector<Call> calls;

  // bf16: with ops over tensors of BF16.
  explicit EveryOp(bool bf16 = true) {
    random_normal_.site = RFN_SITE_DATA;
    random_normal_.standard_deviation = 1;
    random_normal_.destination = floats({77});
    simple("random_normal", random_normal_, rfn_random_normal_forward);

    embedding_.positions = RFN_POSITIONS_AXIAL;
    embedding_.axes = 2;
    embedding_.dropout = 0.1f;
    embedding_.residual = RFN_RESIDUAL_EXACT;
    embedding_.grid_exponent = -16;
    embedding_.ids = integers({2, 9}, 7);
    embedding_.word = floats({7, 8});
    embedding_.grad_word = floats({7, 8});
    embedding_.position[0] = floats({3, 5});
    embedding_.position[1] = floats({3, 3});
    embedding_.grad_position[0] = floats({3, 5});
    embedding_.grad_position[1] = floats({3, 3});
    embedding_.stream1 = floats({2, 9, 8});
    embedding_.stream2 = floats({2, 9, 8});
    embedding_.grad_stream1 = floats({2, 9, 8});
    embedding_.grad_stream2 = floats({2, 9, 8});
    embedding_.range_report = report();
    both("embedding", embedding_, rfn_embedding_workspace, rfn_embedding_forward, rfn_embedding_backward);

    layer_norm_.epsilon = 1e-5f;
    layer_norm_.x = floats({33, 8});
    layer_norm_.weight = floats({8});
    layer_norm_.bias = floats({8});
    layer_norm_.y = floats({33, 8});
    layer_norm_.grad_y = floats({33, 8});
    layer_norm_.grad_x = floats({33, 8});
    layer_norm_.grad_weight = floats({8});
    layer_norm_.grad_bias = floats({8});
    both("layer_norm", layer_norm_, rfn_layer_norm_workspace, rfn_layer_norm_forward, rfn_layer_norm_backward);

    linear_.activation = RFN_ACTIVATION_GELU_ERF;
    linear_.x = floats({33, 8});
    linear_.weight = floats({12, 8});
    linear_.bias = floats({12});
    linear_.y = floats({33, 12});
    linear_.grad_y = floats({33, 12});
    linear_.grad_x = floats({33, 8});
    linear_.grad_weight = floats({12, 8});
    linear_.grad_bias = floats({12});
    both("linear", linear_, rfn_linear_workspace, rfn_linear_forward, rfn_linear_backward);

    feed_forward_.activation = RFN_ACTIVATION_RELU;
    feed_forward_.dropout = 0.1f;
    feed_forward_.x = floats({33, 8});
    feed_forward_.y = floats({33, 8});
    feed_forward_.grad_y = floats({33, 8});
    feed_forward_.grad_x = floats({33, 8});
    feed_forward_.w1 = floats({16, 8});
    feed_forward_.b1 = floats({16});
    feed_forward_.w2 = floats({8, 16});
    feed_forward_.b2 = floats({8});
    feed_forward_.grad_w1 = floats({16, 8});
    feed_forward_.grad_b1 = floats({16});
    feed_forward_.grad_w2 = floats({8, 16});
    feed_forward_.grad_b2 = floats({8});
    both("feed_forward", feed_forward_, rfn_feed_forward_workspace, rfn_feed_forward_forward,
         rfn_feed_forward_backward);

    attention_.options = options();
    attention_.q = floats({1, 20, 2, 4});
    attention_.v = floats({1, 20, 2, 4});
    attention_.rotations = floats({2, 4, 2, 4});
    attention_.out = floats({1, 20, 2, 4});
    attention_.log_sum_exp = floats({1, 2, 20});
    attention_.buckets = integers({1, 2, 2, 20}, 8);
    attention_.sorted = integers({1, 2, 2, 24}, 24);
    attention_.round_out = floats({2, 20, 2, 4});
    attention_.round_log_sum_exp = floats({2, 1, 2, 20});
    attention_.grad_out = floats({1, 20, 2, 4});
    attention_.grad_q = floats({1, 20, 2, 4});
    attention_.grad_v = floats({1, 20, 2, 4});
    attention_.grad_round_out = floats({2, 20, 2, 4});
    attention_.grad_round_log_sum_exp = floats({2, 1, 2, 20});
    both("attention", attention_, rfn_attention_workspace, rfn_attention_forward, rfn_attention_backward);
    const std::pair<const char*, Stage> stages[] = {{"lsh_hash", rfn_lsh_hash},
                                                    {"lsh_sort", rfn_lsh_sort},
                                                    {"lsh_attend", rfn_lsh_attend},
                                                    {"lsh_combine", rfn_lsh_combine},
                                                    {"lsh_combine_backward", rfn_lsh_combine_backward},
                                                    {"lsh_attend_backward", rfn_lsh_attend_backward}};
    for (const auto& [name, stage] : stages) {
      const bool backward = stage == rfn_lsh_combine_backward || stage == rfn_lsh_attend_backward;
      add(name, attention_, backward ? RFN_PASS_BACKWARD : RFN_PASS_FORWARD, rfn_attention_workspace, stage);
    }

    half_norm_ = layer_norm_;
    half_norm_.y = halves({33, 8});
    half_norm_.grad_y = halves({33, 8});
    if (bf16)
      both("layer_norm of halves", half_norm_, rfn_layer_norm_workspace, rfn_layer_norm_forward,
           rfn_layer_norm_backward);
    half_linear_ = linear_;
    half_linear_.x = halves({33, 8});
    half_linear_.weight = halves({12, 8});
    half_linear_.y = halves({33, 12});
    half_linear_.grad_y = halves({33, 12});
    half_linear_.grad_x = halves({33, 8});
    if (bf16) both("linear of halves", half_linear_, rfn_linear_workspace, rfn_linear_forward, rfn_linear_backward);
    half_feed_forward_ = feed_forward_;
    half_feed_forward_.x = halves({33, 8});
    half_feed_forward_.w1 = halves({16, 8});
    half_feed_forward_.w2 = halves({8, 16});
    half_feed_forward_.y = halves({33, 8});
    half_feed_forward_.grad_y = halves({33, 8});
    half_feed_forward_.grad_x = halves({33, 8});
    if (bf16)
      both("feed_forward of halves", half_feed_forward_, rfn_feed_forward_workspace, rfn_feed_forward_forward,
           rfn_feed_forward_backward);
    half_attention_ = attention_;
    half_attention_.sorted = {};
    for (rfn_tensor* const tensor : {&half_attention_.q, &half_attention_.v, &half_attention_.out,
                                     &half_attention_.grad_out, &half_attention_.grad_q, &half_attention_.grad_v}) {
      *tensor = halves({1, 20, 2, 4});
    }
    if (bf16)
      both("attention of halves", half_attention_, rfn_attention_workspace, rfn_attention_forward,
           rfn_attention_backward);

    block_.attention = options();
    block_.heads = 2;
    block_.activation = RFN_ACTIVATION_RELU;
    block_.layer_norm_epsilon = 1e-5f;
    block_.residual = RFN_RESIDUAL_EXACT;
    block_.grid_exponent = -16;
    block_.attention_output_dropout = 0.1f;
    block_.feed_forward_dropout = 0.1f;
    block_.stream1 = stream1 = floats({1, 20, 8});
    block_.stream2 = stream2 = floats({1, 20, 8});
    block_.grad_stream1 = floats({1, 20, 8});
    block_.grad_stream2 = floats({1, 20, 8});
    block_.rotations = floats({2, 4, 2, 4});
    block_.range_report = report();
    for (rfn_block_parameters* p : {&block_.parameters, &block_.gradients}) {
      *p = make_op<rfn_block_parameters>();
      p->attention_norm_weight = floats({8});
      p->attention_norm_bias = floats({8});
      p->query = floats({8, 8});
      p->value = floats({8, 8});
      p->output = floats({8, 8});
      p->feed_forward_norm_weight = floats({8});
      p->feed_forward_norm_bias = floats({8});
      p->w1 = floats({16, 8});
      p->b1 = floats({16});
      p->w2 = floats({8, 16});
      p->b2 = floats({8});
    }
    first_block_call = calls.size();
    both("reversible_block", block_, rfn_reversible_block_workspace, rfn_reversible_block_forward,
         rfn_reversible_block_backward);
    kept_block_ = block_;
    kept_block_.kept_stream1 = floats({1, 20, 8});
    kept_block_.kept_stream2 = floats({1, 20, 8});
    kept_block_.kept_query = floats({1, 20, 8});
    kept_block_.kept_value = floats({1, 20, 8});
    kept_block_.kept_log_sum_exp = floats({1, 2, 20});
    kept_block_.kept_hidden = floats({20, 16});
    kept_block_.attention_result = floats({1, 20, 8});
    kept_block_.buckets = integers({1, 2, 2, 20}, 8);
    both("reversible_block that keeps", kept_block_, rfn_reversible_block_workspace, rfn_reversible_block_forward,
         rfn_reversible_block_backward);

    // More keys than one part of a device's has.
    decode_.attention = options();
    decode_.attention.dropout = 0;
    decode_.attention.rounds = 3;
    decode_.attention.chunk_length = 128;
    decode_.heads = 2;
    decode_.activation = RFN_ACTIVATION_GELU_TANH;
    decode_.layer_norm_epsilon = 1e-5f;
    decode_.residual = RFN_RESIDUAL_EXACT;
    decode_.grid_exponent = -16;
    decode_.position = 20;
    decode_.stream1 = floats({1, 1, 8});
    decode_.stream2 = floats({1, 1, 8});
    decode_.keys = floats({1, 24, 8});
    decode_.values = floats({1, 24, 8});
    decode_.rotations = floats({2, 4, 3, 4});
    decode_.rings = integers({2, 3, 8, 128}, 20);
    decode_.counts = integers({2, 3, 8}, 21);
    decode_.range_report = report();
    decode_.parameters = block_.parameters;
    add("reversible_block_decode", decode_, rfn_reversible_block_decode_workspace, rfn_reversible_block_decode_forward);

    rings_.first = 5;
    rings_.buckets = integers({1, 2, 3, 40}, 8);
    rings_.rings = integers({2, 3, 8, 4}, 5);
    rings_.counts = integers({2, 3, 8}, 6);
    simple("bucket_rings", rings_, rfn_bucket_rings_forward);

    final_norm_.combine = RFN_COMBINE_CONCATENATE;
    final_norm_.epsilon = 1e-5f;
    final_norm_.dropout = 0.1f;
    final_norm_.stream1 = floats({20, 8});
    final_norm_.stream2 = floats({20, 8});
    final_norm_.weight = floats({16});
    final_norm_.bias = floats({16});
    final_norm_.y = floats({20, 16});
    final_norm_.grad_y = floats({20, 16});
    final_norm_.grad_stream1 = floats({20, 8});
    final_norm_.grad_stream2 = floats({20, 8});
    final_norm_.grad_weight = floats({16});
    final_norm_.grad_bias = floats({16});
    both("final_norm", final_norm_, rfn_final_norm_workspace, rfn_final_norm_forward, rfn_final_norm_backward);

    head_loss_.ignore_index = -100;
    head_loss_.loss_scale = 1;
    head_loss_.chunk = 7;
    head_loss_.x = floats({20, 16});
    head_loss_.weight = floats({9, 16});
    head_loss_.bias = floats({9});
    head_loss_.labels = integers({20}, 9);
    head_loss_.statistics = statistics_;
    head_loss_.grad_x = floats({20, 16});
    head_loss_.grad_weight = floats({9, 16});
    head_loss_.grad_bias = floats({9});
    both("head_loss", head_loss_, rfn_head_loss_workspace, rfn_head_loss_forward, rfn_head_loss_backward);

    gradients_ = {floats({33}), floats({5, 7})};
    global_norm_.max_norm = 1;
    global_norm_.count = 2;
    global_norm_.gradients = gradients_.data();
    global_norm_.result = norm_;
    add("global_norm", global_norm_, rfn_global_norm_workspace, rfn_global_norm_forward);

    adamw_.learning_rate = 0.1f;
    adamw_.beta1 = 0.9f;
    adamw_.beta2 = 0.99f;
    adamw_.epsilon = 1e-8f;
    adamw_.step = 1;
    adamw_tensors_ = {floats({33}), floats({33}), floats({33}), floats({33}, 0)};
    adamw_.count = 1;
    adamw_.parameters = &adamw_tensors_[0];
    adamw_.gradients = &adamw_tensors_[1];
    adamw_.moments1 = &adamw_tensors_[2];
    adamw_.moments2 = &adamw_tensors_[3];
    simple("adamw", adamw_, rfn_adamw_step);

    adafactor_.learning_rate = 0.1f;
    adafactor_.decay_exponent = 0.8f;
    adafactor_.clip_threshold = 1;
    adafactor_.epsilon1 = 1e-30f;
    adafactor_.epsilon2 = 1e-3f;
    adafactor_.scale_parameter = 1;
    adafactor_.step = 1;
    adafactor_tensors_ = {floats({5, 7}), floats({11}),   floats({5, 7}), floats({11}), floats({5}, 0),
                          rfn_tensor{},   floats({7}, 0), rfn_tensor{},   rfn_tensor{}, floats({11}, 0)};
    adafactor_.count = 2;
    adafactor_.parameters = &adafactor_tensors_[0];
    adafactor_.gradients = &adafactor_tensors_[2];
    adafactor_.rows = &adafactor_tensors_[4];
    adafactor_.columns = &adafactor_tensors_[6];
    adafactor_.moments2 = &adafactor_tensors_[8];
    add("adafactor", adafactor_, rfn_adafactor_workspace, rfn_adafactor_step);

    sample_.temperature = 1;
    sample_.top_p = 0.9f;
    sample_.top_k = 5;
    sample_.logits = floats({6, 30});
    sample_.ids = integers({6}, 30);
    add("sample", sample_, rfn_sample_workspace, rfn_sample_forward);
    keep();
  }
  EveryOp(const EveryOp&) = delete;
  EveryOp& operator=(const EveryOp&) = delete;

  int64_t workspace_bytes(const rfn_context* context) const {
    int64_t most = 0;
    for (const Call& call : calls) {
      int64_t bytes = 0;
      EXPECT_TRUE(Ok(call.workspace(context, &bytes))) << call.name;
      most = std::max(most, bytes);
    }
    return most;
  }

  // The first that fails, in words, or "".
  std::string run(rfn_stream* stream, void* workspace, int64_t bytes, size_t first = 0, size_t count = SIZE_MAX) const {
    for (size_t i = first; i < calls.size() && i - first < count; ++i) {
      if (calls[i].run(stream, workspace, bytes) != RFN_OK) return calls[i].name + ": " + rfn_last_error();
    }
    return "";
  }

  // All tensors as they were before the first op, and as they are now.
  void restore() {
    for (size_t i = 0; i < floats_.size(); ++i) floats_[i].set(kept_floats_[i]);
    for (size_t i = 0; i < halves_.size(); ++i) halves_[i].set(kept_halves_[i]);
    for (size_t i = 0; i < integers_.size(); ++i) integers_[i].set(kept_integers_[i]);
    for (auto& result : reports_) result.set({});
  }
  std::vector<std::vector<float>> float_values() const {
    std::vector<std::vector<float>> all;
    for (const auto& tensor : floats_) all.push_back(tensor.values());
    for (const auto& tensor : halves_) {
      all.emplace_back();
      for (const BFloat16 value : tensor.values()) all.back().push_back(static_cast<float>(static_cast<double>(value)));
    }
    return all;
  }
  std::vector<std::vector<int32_t>> integer_values() const {
    std::vector<std::vector<int32_t>> all;
    for (const auto& tensor : integers_) all.push_back(tensor.values());
    return all;
  }

  size_t first_block_call = 0;  // forward; backward follows
  rfn_tensor stream1, stream2;  // of the block

 private:
  rfn_tensor floats(std::vector<int64_t> sizes, double low = -1) {
    int64_t n = 1;
    for (const int64_t size : sizes) n *= size;
    std::vector<float> values = random_.floats(n, low, 1);
    for (float& value : values) value = std::nearbyint(value * 65536) / 65536;  // on the residual grid
    return floats_.emplace_back(std::move(sizes), values);
  }
  rfn_tensor halves(std::vector<int64_t> sizes) {
    int64_t n = 1;
    for (const int64_t size : sizes) n *= size;
    return halves_.emplace_back(std::move(sizes), stored<BFloat16>(random_.floats(n)));
  }
  rfn_tensor integers(std::vector<int64_t> sizes, int64_t below) {
    int64_t n = 1;
    for (const int64_t size : sizes) n *= size;
    return integers_.emplace_back(std::move(sizes), random_.integers(n, below));
  }
  rfn_range_report* report() { return reports_.emplace_back(); }
  static rfn_attention_options options() {
    auto o = make_op<rfn_attention_options>();
    o.kind = RFN_ATTENTION_LSH;
    o.shared_qk = 1;
    o.causal = 1;
    o.wrap = 1;
    o.key_norm = RFN_KEY_NORM_RMS;
    o.rounds = 2;
    o.factor_count = 1;
    o.factors[0] = 8;
    o.chunks_before = 1;
    o.chunk_length = 8;
    o.dropout = 0.1f;
    o.duplicates = RFN_DUPLICATES_LOG_COUNT;
    return o;
  }

  template <class Op>
  void simple(const char* name, const Op& op, rfn_status (*run)(rfn_stream*, const Op*)) {
    const auto none = [](const rfn_context*, int64_t* bytes) { return *bytes = 0, RFN_OK; };
    calls.push_back({name, none, [&op, run](rfn_stream* stream, void*, int64_t) { return run(stream, &op); }});
  }
  template <class Op>
  void add(const std::string& name, const Op& op, int32_t pass,
           rfn_status (*workspace)(const rfn_context*, const Op*, int32_t, int64_t*),
           rfn_status (*run)(rfn_stream*, const Op*, void*, int64_t)) {
    calls.push_back(
        {name,
         [&op, workspace, pass](const rfn_context* context, int64_t* bytes) {
           return workspace(context, &op, pass, bytes);
         },
         [&op, run](rfn_stream* stream, void* memory, int64_t bytes) { return run(stream, &op, memory, bytes); }});
  }
  template <class Op>
  void add(const std::string& name, const Op& op, rfn_status (*workspace)(const rfn_context*, const Op*, int64_t*),
           rfn_status (*run)(rfn_stream*, const Op*, void*, int64_t)) {
    calls.push_back(
        {name, [&op, workspace](const rfn_context* context, int64_t* bytes) { return workspace(context, &op, bytes); },
         [&op, run](rfn_stream* stream, void* memory, int64_t bytes) { return run(stream, &op, memory, bytes); }});
  }
  template <class Op>
  void both(const std::string& name, const Op& op,
            rfn_status (*workspace)(const rfn_context*, const Op*, int32_t, int64_t*),
            rfn_status (*forward)(rfn_stream*, const Op*, void*, int64_t),
            rfn_status (*backward)(rfn_stream*, const Op*, void*, int64_t)) {
    add(name + " forward", op, RFN_PASS_FORWARD, workspace, forward);
    add(name + " backward", op, RFN_PASS_BACKWARD, workspace, backward);
  }
  void keep() {
    for (const auto& tensor : floats_) kept_floats_.push_back(tensor.values());
    for (const auto& tensor : halves_) kept_halves_.push_back(tensor.values());
    kept_integers_ = integer_values();
  }

  Random random_{61};
  std::deque<Tensor<float>> floats_;
  std::deque<Tensor<BFloat16>> halves_;
  std::deque<Tensor<int32_t>> integers_;
  std::deque<Result<rfn_range_report>> reports_;
  Result<rfn_loss_statistics> statistics_;
  Result<rfn_norm_result> norm_;
  std::vector<std::vector<float>> kept_floats_;
  std::vector<std::vector<BFloat16>> kept_halves_;
  std::vector<std::vector<int32_t>> kept_integers_;
  std::vector<rfn_tensor> gradients_, adamw_tensors_, adafactor_tensors_;
  rfn_random_normal random_normal_ = make_op<rfn_random_normal>();
  rfn_embedding embedding_ = make_op<rfn_embedding>();
  rfn_layer_norm layer_norm_ = make_op<rfn_layer_norm>(), half_norm_ = {};
  rfn_linear linear_ = make_op<rfn_linear>(), half_linear_ = {};
  rfn_feed_forward feed_forward_ = make_op<rfn_feed_forward>(), half_feed_forward_ = {};
  rfn_attention attention_ = make_op<rfn_attention>(), half_attention_ = {};
  rfn_reversible_block block_ = make_op<rfn_reversible_block>(), kept_block_ = {};
  rfn_reversible_block_decode decode_ = make_op<rfn_reversible_block_decode>();
  rfn_bucket_rings rings_ = make_op<rfn_bucket_rings>();
  rfn_final_norm final_norm_ = make_op<rfn_final_norm>();
  rfn_head_loss head_loss_ = make_op<rfn_head_loss>();
  rfn_global_norm global_norm_ = make_op<rfn_global_norm>();
  rfn_adamw adamw_ = make_op<rfn_adamw>();
  rfn_adafactor adafactor_ = make_op<rfn_adafactor>();
  rfn_sample sample_ = make_op<rfn_sample>();
};

// What EveryOp leaves out is neither in graphs nor among the failing calls.
TEST_F(CudaBackend, EveryOp_HasACallOfEachOpOfTheBackend) {
  const EveryOp ops;
  const auto has = [&](const std::string& name) {
    return std::any_of(ops.calls.begin(), ops.calls.end(),
                       [&](const EveryOp::Call& call) { return call.name == name; });
  };
#define RFN_BOTH(name) EXPECT_TRUE(has(#name " forward") && has(#name " backward")) << #name;
#define RFN_ONE(name, ...) EXPECT_TRUE(has(#name)) << #name;
  RFN_OPS_WITH_BACKWARD(RFN_BOTH)
  RFN_OPS_OF_ONE_PASS(RFN_ONE)
  RFN_OPS_WITHOUT_WORKSPACE(RFN_ONE)
  RFN_LSH_STAGES(RFN_ONE)
#undef RFN_BOTH
#undef RFN_ONE
}

// A context, a stream and a workspace for the ops.
struct Lane {
  explicit Lane(const EveryOp& ops) : workspace(ops.workspace_bytes(context), 0) {}
  Context context;
  Stream stream{context};
  GuardedMemory workspace;
};

// ---- failures ----

// Everything that a program does with a context, up to the first failure, and the end of what it had made by then. Its
// ends of life count their calls apart: they report nothing, but for buffers.
struct Life {
  rfn_status status = RFN_OK;
  std::string message;
  int64_t calls_until_end = 0;

  explicit Life(const EveryOp& ops, int64_t workspace_bytes) {
    rfn_context* context = nullptr;
    rfn_stream* stream = nullptr;
    rfn_event *start = nullptr, *stop = nullptr;
    void *workspace = nullptr, *pinned = nullptr;
    int64_t free_bytes = 0, total_bytes = 0;
    double milliseconds = 0;
    const int64_t calls_before = cuda_on_host::calls();
    const auto run = [&]() -> rfn_status {
      RFN_TRY(rfn_context_create(RFN_DEVICE_CUDA_ON_HOST, 0, 0, &context));
      RFN_TRY(rfn_memory_info(context, &free_bytes, &total_bytes));
      RFN_TRY(rfn_stream_create(context, &stream));
      RFN_TRY(rfn_event_create(context, &start));
      RFN_TRY(rfn_event_create(context, &stop));
      RFN_TRY(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, workspace_bytes, &workspace));
      RFN_TRY(rfn_buffer_allocate(context, RFN_MEMORY_HOST, 64, &pinned));
      RFN_TRY(rfn_fill_zero(stream, workspace, 64));
      RFN_TRY(rfn_copy(stream, workspace, pinned, 64, RFN_COPY_HOST_TO_DEVICE));
      RFN_TRY(rfn_copy(stream, pinned, workspace, 64, RFN_COPY_DEVICE_TO_HOST));
      RFN_TRY(rfn_event_record(start, stream));
      for (const EveryOp::Call& call : ops.calls) RFN_TRY(call.run(stream, workspace, workspace_bytes));
      RFN_TRY(rfn_event_record(stop, stream));
      RFN_TRY(rfn_event_wait(stop, stream));
      RFN_TRY(rfn_stream_synchronize(stream));
      return rfn_event_elapsed(start, stop, &milliseconds);
    };
    status = run();
    message = status == RFN_OK ? "" : rfn_last_error();
    calls_until_end = cuda_on_host::calls() - calls_before;
    for (const auto& [kind, buffer] : {std::pair(RFN_MEMORY_DEVICE, workspace), std::pair(RFN_MEMORY_HOST, pinned)}) {
      if (context == nullptr || rfn_buffer_free(context, kind, buffer) == RFN_OK) continue;
      EXPECT_TRUE(Ok(rfn_buffer_free(context, kind, buffer)));
    }
    rfn_event_destroy(start);
    rfn_event_destroy(stop);
    rfn_stream_destroy(stream);
    rfn_context_destroy(context);
  }
};

TEST_F(CudaBackend, AnyCallFailing_IsAStatusWithASentenceAndLeaksNothing) {
  set([](Settings& s) { s.hide_device_memory = false; });  // many thousand launches
  const EveryOp ops;
  int64_t bytes = 0;
  {
    const Context context;
    bytes = ops.workspace_bytes(context);
  }
  const Life good(ops, bytes);
  ASSERT_EQ(good.status, RFN_OK) << good.message;
  const int64_t calls = good.calls_until_end;
  EXPECT_GT(calls, 100);
  const std::set<int64_t> before = live();
  const int64_t objects = rfn_live_objects();
  for (int64_t n = 1; n <= calls; ++n) {
    const cudaError_t error = n % 2 == 0 ? cudaErrorMemoryAllocation : cudaErrorUnknown;
    SCOPED_TRACE("call " + std::to_string(n) + " fails with " + cudaGetErrorName(error));
    cuda_on_host::fail_call(static_cast<int>(n), error);
    const Life life(ops, bytes);
    cuda_on_host::fail_call(0, cudaSuccess);
    EXPECT_TRUE(life.status == (n % 2 == 0 ? RFN_OUT_OF_MEMORY : RFN_DEVICE_ERROR) ||
                (n == 1 && life.status == RFN_UNSUPPORTED))
        << "status " << life.status << ": " << life.message;
    EXPECT_GT(life.message.size(), 20u) << life.message;
    ASSERT_EQ(live(), before);
    ASSERT_EQ(rfn_live_objects(), objects);
    ASSERT_EQ(cudaGetLastError(), cudaSuccess) << "an error is left in the runtime for the next one to find";
  }
  // The ends of life: what can't be ended stays, and nothing else happens.
  for (int64_t n = calls + 1; n <= calls + 12; ++n) {
    SCOPED_TRACE("call " + std::to_string(n) + " fails");
    cuda_on_host::fail_call(static_cast<int>(n), cudaErrorUnknown);
    const Life life(ops, bytes);
    cuda_on_host::fail_call(0, cudaSuccess);
    EXPECT_EQ(life.status, RFN_OK) << life.message;
    EXPECT_LE(live().size(), before.size() + 1);
    for (const LiveObject& object : cuda_on_host::live_objects()) {
      if (before.count(object.number) != 0) continue;
      void* const address = const_cast<void*>(object.address);
      if (object.kind == "event") cudaEventDestroy(static_cast<cudaEvent_t>(address));
      if (object.kind == "stream") cudaStreamDestroy(static_cast<cudaStream_t>(address));
      if (object.kind == "cuBLASLt handle") cublasLtDestroy(static_cast<cublasLtHandle_t>(address));
    }
    ASSERT_EQ(live(), before);
    ASSERT_EQ(rfn_live_objects(), objects);
    cudaGetLastError();
  }
}

TEST_F(CudaBackend, CurrentDeviceOfTheThread_StaysAsItWas) {
  set([](Settings& s) { s.devices = 2; });
  const EveryOp ops;
  int64_t bytes = 0;
  {
    const Context context;
    bytes = ops.workspace_bytes(context);
  }
  for (const int current : {1, 0}) {
    ASSERT_EQ(cudaSetDevice(current), cudaSuccess);
    const Life life(ops, bytes);  // on device 0
    EXPECT_EQ(life.status, RFN_OK) << life.message;
    int now = -1;
    EXPECT_EQ(cudaGetDevice(&now), cudaSuccess);
    EXPECT_EQ(now, current);
  }
}

TEST_F(CudaBackend, NoDeviceOrDriver_ZeroDevicesAndAReason) {
  const std::pair<cudaError_t, const char*> reasons[] = {{cudaErrorNoDevice, "sees no GPU"},
                                                         {cudaErrorInsufficientDriver, "no NVIDIA driver"}};
  for (const auto& [error, reason] : reasons) {
    set([error = error](Settings& s) {
      s.devices = 0;
      s.no_device_error = error;
    });
    int32_t count = -1;
    EXPECT_TRUE(Ok(rfn_device_count(RFN_DEVICE_CUDA_ON_HOST, &count)));
    EXPECT_EQ(count, 0);
    EXPECT_NE(std::string(rfn_last_error()).find(reason), std::string::npos) << rfn_last_error();
    rfn_context* context = nullptr;
    EXPECT_TRUE(Fails(create(&context), RFN_INVALID_ARGUMENT, {}) ||
                Fails(create(&context), RFN_UNSUPPORTED, {"CUDA is not available", reason}));
    EXPECT_EQ(context, nullptr);
    char text[512];
    EXPECT_TRUE(Fails(rfn_device_describe(RFN_DEVICE_CUDA_ON_HOST, 0, text, sizeof(text)), RFN_UNSUPPORTED,
                      {"CUDA is not available", reason}));
  }
}

TEST_F(CudaBackend, Describe_NamesTheDevice) {
  char text[1024];
  ASSERT_TRUE(Ok(rfn_device_describe(RFN_DEVICE_CUDA_ON_HOST, 0, text, sizeof(text))));
  const std::string json = text;
  for (const char* const key : {"{\"name\": \"", "\"memory_bytes\": ", "\"compute_capability\": \"8.0\""})
    EXPECT_NE(json.find(key), std::string::npos) << json;
  EXPECT_TRUE(Fails(rfn_device_describe(RFN_DEVICE_CUDA_ON_HOST, 0, text, 4), RFN_INVALID_ARGUMENT,
                    {"capacity", std::to_string(json.size() + 1)}));
  EXPECT_TRUE(Fails(rfn_device_describe(RFN_DEVICE_CUDA_ON_HOST, 1, text, sizeof(text)), RFN_INVALID_ARGUMENT,
                    {"device_index"}));
}

TEST_F(CudaBackend, OutOfMemory_SaysHowMuchAndIsNotTheEnd) {
  set([](Settings& s) { s.memory_bytes = 1 << 20; });
  const Context context;
  int64_t free_bytes = 0, total_bytes = 0;
  EXPECT_TRUE(Ok(rfn_memory_info(context, &free_bytes, &total_bytes)));
  EXPECT_EQ(total_bytes, 1 << 20);
  void* buffer = &free_bytes;
  EXPECT_TRUE(Fails(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, 2 << 20, &buffer), RFN_OUT_OF_MEMORY,
                    {"rfn_buffer_allocate", "2097152", std::to_string(free_bytes), "1048576"}));
  EXPECT_EQ(buffer, nullptr);
  ASSERT_TRUE(Ok(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, 1 << 19, &buffer)));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer) % 256, 0u);
  int64_t rest = 0;
  EXPECT_TRUE(Ok(rfn_memory_info(context, &rest, &total_bytes)));
  EXPECT_LE(rest, free_bytes - (1 << 19));
  EXPECT_TRUE(Ok(rfn_buffer_free(context, RFN_MEMORY_DEVICE, buffer)));
  EXPECT_TRUE(Fails(rfn_buffer_free(context, RFN_MEMORY_DEVICE, buffer), RFN_INVALID_ARGUMENT, {"buffer"}));
}

// An op on memory that is not the device's: the call or a later one says so, then the device is lost, for new contexts
// too, until the process ends.
TEST_F(CudaBackend, FaultingKernel_LosesTheDevice) {
  for (const bool freed : {true, false}) {
    for (const bool late : {false, true}) {
      SCOPED_TRACE(std::string(freed ? "freed memory" : "memory of the host") + (late ? ", late" : ""));
      set([&](Settings& s) { s.late_streams = late; });
      rfn_context* context = nullptr;
      rfn_stream* stream = nullptr;
      void *memory = nullptr, *other = nullptr;
      std::vector<float> host(64);
      ASSERT_TRUE(Ok(create(&context)));
      ASSERT_TRUE(Ok(rfn_stream_create(context, &stream)));
      ASSERT_TRUE(Ok(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, 256, &memory)));
      ASSERT_TRUE(Ok(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, 256, &other)));
      ASSERT_TRUE(Ok(rfn_fill_zero(stream, memory, 256)));
      ASSERT_TRUE(Ok(rfn_fill_zero(stream, other, 256)));
      ASSERT_TRUE(Ok(rfn_stream_synchronize(stream)));
      auto op = make_op<rfn_random_normal>();
      op.site = RFN_SITE_DATA;
      op.standard_deviation = 1;
      op.destination = shape({8});
      op.destination.bytes = 32;
      op.destination.data = freed ? other : static_cast<void*>(host.data());
      if (freed) {
        ASSERT_TRUE(Ok(rfn_buffer_free(context, RFN_MEMORY_DEVICE, other)));
      }
      rfn_status status = rfn_random_normal_forward(stream, &op);
      if (status == RFN_OK) status = rfn_stream_synchronize(stream);
      EXPECT_TRUE(Fails(status, RFN_DEVICE_ERROR, {"illegal", "the context takes no further work"}));
      EXPECT_NE(cuda_on_host::last_report(), "");
      EXPECT_TRUE(Fails(rfn_random_normal_forward(stream, &op), RFN_DEVICE_LOST, {"sticky"}));
      EXPECT_TRUE(Fails(rfn_stream_synchronize(stream), RFN_DEVICE_LOST, {"sticky"}));
      EXPECT_TRUE(Fails(rfn_fill_zero(stream, memory, 4), RFN_DEVICE_LOST, {}));
      rfn_context* second = nullptr;
      EXPECT_NE(create(&second), RFN_OK);
      EXPECT_EQ(second, nullptr);
      EXPECT_GT(std::string(rfn_last_error()).size(), 20u);
      // Ends of life work, or say why not, and crash nothing; the library's own objects are gone.
      const int64_t objects = rfn_live_objects();
      rfn_stream_destroy(stream);
      EXPECT_EQ(rfn_live_objects(), objects - 1);
      for (void* const buffer : {memory, freed ? nullptr : other}) {
        EXPECT_TRUE(rfn_buffer_free(context, RFN_MEMORY_DEVICE, buffer) == RFN_OK ||
                    std::string(rfn_last_error()).size() > 20);
      }
      rfn_context_destroy(context);
      EXPECT_EQ(rfn_live_objects(), 0) << "a lost device keeps no objects alive";
      cuda_on_host::reset();  // as a new process would
    }
  }
  const Context context;
  EXPECT_TRUE(Ok(rfn_stream_synchronize(Stream(context))));
}

TEST_F(CudaBackend, ComputeCapability_DecidesWhatWorks) {
  rfn_context* old = nullptr;
  set([](Settings& s) { s.capability = 61; });
  EXPECT_TRUE(Fails(create(&old), RFN_UNSUPPORTED, {"compute capability 7.0 or later", "6.1"}));
  EXPECT_EQ(old, nullptr);
  for (const int capability : {70, 75, 80, 86, 90}) {
    SCOPED_TRACE(capability);
    set([&](Settings& s) { s.capability = capability; });
    const Context context;
    for (const int32_t precision : {RFN_PRECISION_TF32, RFN_PRECISION_BF16, RFN_PRECISION_F16}) {
      const rfn_status status = rfn_context_set_precision(context, precision);
      int32_t now = -1;
      EXPECT_TRUE(capability >= 80
                      ? Ok(status)
                      : Fails(status, RFN_UNSUPPORTED, {"precision", "8.0", capability == 70 ? "7.0" : "7.5"}));
      EXPECT_TRUE(Ok(rfn_context_precision(context, &now)));
      EXPECT_EQ(now, capability >= 80 ? precision : RFN_PRECISION_F32);
    }
    const EveryOp ops(capability >= 80);
    Lane lane(ops);
    EXPECT_EQ(ops.run(lane.stream, lane.workspace.data(), lane.workspace.bytes()), "");
    EXPECT_TRUE(Ok(rfn_stream_synchronize(lane.stream)));
    if (capability >= 80) continue;
    const EveryOp bf16;
    Lane other(bf16);
    const std::string refused = bf16.run(other.stream, other.workspace.data(), other.workspace.bytes());
    EXPECT_EQ(refused,
              std::string("linear of halves forward: products of BF16 tensors: expected compute capability 8.0 ") +
                  "or later, got " + (capability == 70 ? "7.0" : "7.5"));
  }
}

// ---- streams, events, copies ----

// The attention kernels count slots in 32 bits: what does not fit is refused before anything is allocated.
TEST_F(CudaBackend, SizesBeyondTheKernels_Refused) {
  const Context context;
  auto op = make_op<rfn_attention>();
  op.options = make_op<rfn_attention_options>();
  op.options.kind = RFN_ATTENTION_FULL;
  int64_t bytes = 0;
  op.q = op.k = op.v = op.out = shape({1, 1 << 20, 1, 1});
  EXPECT_TRUE(Ok(rfn_attention_workspace(context, &op, RFN_PASS_FORWARD, &bytes)));
  op.q = op.k = op.v = op.out = shape({1, 1 << 30, 1, 1});
  EXPECT_TRUE(
      Fails(rfn_attention_workspace(context, &op, RFN_PASS_FORWARD, &bytes), RFN_UNSUPPORTED, {"slots", "1073741824"}));
}

TEST_F(CudaBackend, Events_MeasureAndOrder) {
  const Context context;
  const Stream first(context), second(context);
  rfn_event *start = nullptr, *stop = nullptr, *never = nullptr;
  ASSERT_TRUE(Ok(rfn_event_create(context, &start)));
  ASSERT_TRUE(Ok(rfn_event_create(context, &stop)));
  ASSERT_TRUE(Ok(rfn_event_create(context, &never)));
  set([](Settings& s) { s.late_streams = true; });
  {
    Tensor<float> from({64}, std::vector<float>(64, 5)), between({64}), to({64});
    EXPECT_TRUE(Ok(rfn_event_record(start, first)));
    EXPECT_TRUE(Ok(rfn_copy(first, between.data(), from.data(), 256, RFN_COPY_DEVICE_TO_DEVICE)));
    EXPECT_TRUE(Ok(rfn_event_record(stop, first)));
    EXPECT_TRUE(Ok(rfn_event_wait(stop, second)));
    EXPECT_TRUE(Ok(rfn_copy(second, to.data(), between.data(), 256, RFN_COPY_DEVICE_TO_DEVICE)));
    EXPECT_TRUE(Untouched(to.values())) << "nothing has waited for the streams yet";
    EXPECT_TRUE(Ok(rfn_stream_synchronize(second)));
    EXPECT_EQ(to.values(), std::vector<float>(64, 5));
  }
  double milliseconds = -1;
  EXPECT_TRUE(Ok(rfn_event_elapsed(start, stop, &milliseconds)));
  EXPECT_GE(milliseconds, 0);
  EXPECT_LT(milliseconds, 60e3);
  EXPECT_TRUE(
      Fails(rfn_event_elapsed(start, never, &milliseconds), RFN_INVALID_ARGUMENT, {"rfn_event_elapsed", "recorded"}));
  EXPECT_TRUE(Ok(rfn_event_elapsed(start, stop, &milliseconds))) << "that was no fault of the device";
  for (rfn_event* const event : {start, stop, never}) rfn_event_destroy(event);
}

TEST_F(CudaBackend, WrappedStream_IsUsedAndLeftAlone) {
  const Context context;
  cudaStream_t native = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), cudaSuccess);
  for (void* const wrapped : {static_cast<void*>(native), static_cast<void*>(nullptr)}) {
    rfn_stream* stream = nullptr;
    ASSERT_TRUE(Ok(rfn_stream_wrap(context, wrapped, &stream)));
    Tensor<float> values({8});
    EXPECT_TRUE(Ok(rfn_fill_zero(stream, values.data(), 32)));
    EXPECT_TRUE(Ok(rfn_stream_synchronize(stream)));
    EXPECT_EQ(values.values(), std::vector<float>(8));
    rfn_stream_destroy(stream);
    EXPECT_EQ(cudaStreamQuery(static_cast<cudaStream_t>(wrapped)), cudaSuccess);
  }
  EXPECT_EQ(cudaStreamDestroy(native), cudaSuccess);
}

TEST_F(CudaBackend, PinnedMemory_IsCopiedWhenTheStreamComesToIt) {
  const Context context;
  const Stream stream(context);
  void* pinned = nullptr;
  ASSERT_TRUE(Ok(rfn_buffer_allocate(context, RFN_MEMORY_HOST, 4096, &pinned)));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(pinned) % 256, 0u);
  float* const values = static_cast<float*>(pinned);  // of the host: may be followed
  set([](Settings& s) { s.late_streams = true; });
  {
    Tensor<float> device({1024});
    values[7] = 1;
    EXPECT_TRUE(Ok(rfn_copy(stream, device.data(), pinned, 4096, RFN_COPY_HOST_TO_DEVICE)));
    values[7] = 2;  // too early: the copy has not run
    EXPECT_TRUE(Ok(rfn_stream_synchronize(stream)));
    EXPECT_EQ(device.values()[7], 2);
    values[7] = 3;
    EXPECT_TRUE(Ok(rfn_copy(stream, pinned, device.data(), 4096, RFN_COPY_DEVICE_TO_HOST)));
    EXPECT_EQ(values[7], 3);
    EXPECT_TRUE(Ok(rfn_stream_synchronize(stream)));
    EXPECT_EQ(values[7], 2);
  }
  EXPECT_TRUE(Ok(rfn_buffer_free(context, RFN_MEMORY_HOST, pinned)));
}

// Stream work that runs only when something waits for it gives the same: no op looks at memory in between.
TEST_F(CudaBackend, LateStreams_SameBits) {
  EveryOp ops;
  Lane lane(ops);
  ASSERT_EQ(ops.run(lane.stream, lane.workspace.data(), lane.workspace.bytes()), "");
  ASSERT_TRUE(Ok(rfn_stream_synchronize(lane.stream)));
  const auto floats = ops.float_values();
  const auto integers = ops.integer_values();
  ops.restore();
  lane.workspace.poison_contents();
  set([](Settings& s) { s.late_streams = true; });
  ASSERT_EQ(ops.run(lane.stream, lane.workspace.data(), lane.workspace.bytes()), "");
  ASSERT_TRUE(Ok(rfn_stream_synchronize(lane.stream)));
  const auto late = ops.float_values();
  for (size_t i = 0; i < late.size(); ++i) EXPECT_TRUE(SameBits(late[i], floats[i])) << "tensor " << i;
  EXPECT_EQ(ops.integer_values(), integers);
}

// Every op can be recorded, and a graph of a block's forward and backward pass replays to the same bits.
TEST_F(CudaBackend, Graph_ReplaysToTheSameBits) {
  EveryOp ops;
  Lane lane(ops);
  cudaStream_t native = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), cudaSuccess);
  rfn_stream* stream = nullptr;
  ASSERT_TRUE(Ok(rfn_stream_wrap(lane.context, native, &stream)));
  for (const bool block_alone : {true, false}) {
    SCOPED_TRACE(block_alone ? "block" : "every op");
    const size_t first = block_alone ? ops.first_block_call : 0, count = block_alone ? 2 : SIZE_MAX;
    ops.restore();
    ASSERT_EQ(ops.run(stream, lane.workspace.data(), lane.workspace.bytes(), first, count), "");
    ASSERT_TRUE(Ok(rfn_stream_synchronize(stream)));
    const auto floats = ops.float_values();
    const auto integers = ops.integer_values();
    ops.restore();
    const auto before = ops.float_values();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(native, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    EXPECT_EQ(ops.run(stream, lane.workspace.data(), lane.workspace.bytes(), first, count), "");
    ASSERT_EQ(cudaStreamEndCapture(native, &graph), cudaSuccess) << cuda_on_host::last_report();
    const auto captured = ops.float_values();
    for (size_t i = 0; i < captured.size(); ++i)
      EXPECT_TRUE(SameBits(captured[i], before[i])) << "a capture runs nothing";
    ASSERT_EQ(cudaGraphInstantiateWithFlags(&executable, graph, 0), cudaSuccess);
    for (int replay = 0; replay < 2; ++replay) {
      ops.restore();
      lane.workspace.poison_contents();
      ASSERT_EQ(cudaGraphLaunch(executable, native), cudaSuccess);
      ASSERT_TRUE(Ok(rfn_stream_synchronize(stream)));
      const auto now = ops.float_values();
      for (size_t i = 0; i < now.size(); ++i) EXPECT_TRUE(SameBits(now[i], floats[i])) << "tensor " << i;
      EXPECT_EQ(ops.integer_values(), integers);
    }
    EXPECT_EQ(cudaGraphExecDestroy(executable), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  }
  rfn_stream_destroy(stream);
  EXPECT_EQ(cudaStreamDestroy(native), cudaSuccess);
}

}  // namespace
}  // namespace rfn::test
