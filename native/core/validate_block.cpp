// The reversible block, whole and one token at a time, and the rings of its cache.
#include <algorithm>
#include <cinttypes>

#include "core/checks.h"

namespace rfn {
namespace {

struct BlockSizes {
  int64_t width, projected, hidden;  // E, H*D, F
};

BlockSizes block_sizes(const rfn_tensor& stream, const rfn_block_parameters& parameters) {
  return {stream.shape[2], parameters.query.shape[0], parameters.w1.shape[0]};
}

// The parameters that give sizes, which workspace queries need too.
void check_anchors(Checks& checks, const rfn_block_parameters& parameters, const BlockSizes& sizes, int64_t heads) {
  checks.anchor("parameters.query", parameters.query, RFN_F32, "[H*D,E]", {sizes.projected, sizes.width});
  checks.anchor("parameters.w1", parameters.w1, RFN_F32, "[F,E]", {sizes.hidden, sizes.width});
  if (checks.ok() && sizes.projected % heads != 0) {
    checks.failed("parameters.query: expected rows that are a multiple of heads = %" PRId64 ", got %" PRId64, heads,
                  sizes.projected);
  }
}

using CheckTensor = void (Checks::*)(const char*, const rfn_tensor&, DataTypeOf, const char*, Checks::Sizes);

// Parameters (read) or gradients of them (written).
void check_parameters(Checks& checks, const char* prefix, const rfn_block_parameters& parameters,
                      const BlockSizes& sizes, bool is_shared, bool has_output_bias, CheckTensor check) {
  checks.struct_size(prefix, parameters.struct_size, sizeof(parameters));
  checks.integer(Name({prefix, ".reserved"}).text, parameters.reserved, 0, 0);
  const auto tensor = [&](const char* name, const rfn_tensor& view, const char* letters, Checks::Sizes shape) {
    (checks.*check)(Name({prefix, ".", name}).text, view, RFN_F32, letters, shape);
  };
  tensor("attention_norm_weight", parameters.attention_norm_weight, "[E]", {sizes.width});
  tensor("attention_norm_bias", parameters.attention_norm_bias, "[E]", {sizes.width});
  tensor("query", parameters.query, "[H*D,E]", {sizes.projected, sizes.width});
  if (is_shared) {
    checks.absent(Name({prefix, ".key"}).text, parameters.key, "attention.shared_qk is 1");
  } else {
    tensor("key", parameters.key, "[H*D,E]", {sizes.projected, sizes.width});
  }
  tensor("value", parameters.value, "[H*D,E]", {sizes.projected, sizes.width});
  tensor("output", parameters.output, "[E,H*D]", {sizes.width, sizes.projected});
  if (has_output_bias) tensor("output_bias", parameters.output_bias, "[E]", {sizes.width});
  tensor("feed_forward_norm_weight", parameters.feed_forward_norm_weight, "[E]", {sizes.width});
  tensor("feed_forward_norm_bias", parameters.feed_forward_norm_bias, "[E]", {sizes.width});
  tensor("w1", parameters.w1, "[F,E]", {sizes.hidden, sizes.width});
  tensor("b1", parameters.b1, "[F]", {sizes.hidden});
  tensor("w2", parameters.w2, "[E,F]", {sizes.width, sizes.hidden});
  tensor("b2", parameters.b2, "[E]", {sizes.width});
}

// The kept tensors of a block, but for attention_result and buckets: forward takes any of them, backward the streams,
// or all. Returns whether backward is given activations.
bool check_kept(Checks& checks, const rfn_reversible_block& op, const BlockSizes& sizes, bool is_forward,
                bool is_shared) {
  const int64_t batch = op.stream1.shape[0], length = op.stream1.shape[1];
  const bool gives_activations = !(is_absent(op.kept_query) && is_absent(op.kept_key) && is_absent(op.kept_value) &&
                                   is_absent(op.kept_log_sum_exp) && is_absent(op.kept_hidden));
  const bool gives_streams = !(is_absent(op.kept_stream1) && is_absent(op.kept_stream2));
  const bool needs_activations = !is_forward && gives_activations;
  const bool needs_streams = !is_forward && (gives_activations || gives_streams);
  const auto tensor = [&](bool needed, const char* name, const rfn_tensor& view, const char* letters,
                          Checks::Sizes shape) {
    if (needed) return checks.input(name, view, RFN_F32, letters, shape);
    if (is_forward) checks.optional_output(name, view, RFN_F32, letters, shape);
  };
  if (is_shared) checks.absent("kept_key", op.kept_key, "attention.shared_qk is 1");
  tensor(needs_streams, "kept_stream1", op.kept_stream1, "[B,T,E]", {batch, length, sizes.width});
  tensor(needs_streams, "kept_stream2", op.kept_stream2, "[B,T,E]", {batch, length, sizes.width});
  tensor(needs_activations, "kept_query", op.kept_query, "[B,T,H*D]", {batch, length, sizes.projected});
  if (!is_shared) tensor(needs_activations, "kept_key", op.kept_key, "[B,T,H*D]", {batch, length, sizes.projected});
  tensor(needs_activations, "kept_value", op.kept_value, "[B,T,H*D]", {batch, length, sizes.projected});
  tensor(needs_activations, "kept_log_sum_exp", op.kept_log_sum_exp, "[B,H,T]", {batch, op.heads, length});
  tensor(needs_activations, "kept_hidden", op.kept_hidden, "[B*T,F]", {batch * length, sizes.hidden});
  return needs_activations;
}

// What a pass does with buckets, and whether it reads rotations.
void check_hashes(Checks& checks, const rfn_reversible_block& op, const BlockSizes& sizes, bool is_forward,
                  bool is_exact, bool has_activations) {
  const int64_t batch = op.stream1.shape[0], length = op.stream1.shape[1], heads = op.heads;
  const Checks::Sizes shape = {batch, heads, op.attention.rounds, length};
  const bool hashes = is_forward || (is_exact && !has_activations);
  if (!hashes) {
    checks.input("buckets", op.buckets, RFN_I32, "[B,H,R,T]", shape);
    return;
  }
  if (is_exact) {
    checks.optional_output("buckets", op.buckets, RFN_I32, "[B,H,R,T]", shape);  // backward hashes to the same place
  } else {
    checks.output("buckets", op.buckets, RFN_I32, "[B,H,R,T]", shape);
  }
  check_rotations(checks, op.rotations, op.attention, batch, heads, sizes.projected / heads);
}

}  // namespace

rfn_status validate(const rfn_reversible_block& op, int32_t pass, Call call, const Workspace& workspace) {
  Checks checks("reversible_block", call, workspace);
  check_pass(checks, pass);
  checks.integer("layer", op.layer, 0, kLastLayer);
  checks.integer("heads", op.heads, 1, INT32_MAX);
  check_activation(checks, op.activation);
  checks.more_than("layer_norm_epsilon", op.layer_norm_epsilon, 0);
  checks.fraction("attention_output_dropout", op.attention_output_dropout);
  checks.fraction("feed_forward_dropout", op.feed_forward_dropout);
  check_residual(checks, op.residual, op.grid_exponent);
  checks.integer("reserved", op.reserved, 0, 0);
  checks.integer("feed_forward_chunk", op.feed_forward_chunk, 0, INT64_MAX);
  checks.integer("head_group", op.head_group, 0, INT64_MAX);

  const int64_t batch = op.stream1.shape[0], length = op.stream1.shape[1], width = op.stream1.shape[2];
  const BlockSizes sizes = block_sizes(op.stream1, op.parameters);
  // The streams are read and written; a workspace query needs the first for its sizes.
  if (checks.is_query()) checks.shape("stream1", op.stream1, RFN_F32, "[B,T,E]", {batch, length, width});
  checks.output("stream1", op.stream1, RFN_F32, "[B,T,E]", {batch, length, width});
  checks.output("stream2", op.stream2, RFN_F32, "[B,T,E]", {batch, length, width});
  checks.largest("B * T", {batch, length}, kLargestSize);
  check_anchors(checks, op.parameters, sizes, op.heads);
  checks.largest("B * T * H * D", {batch, length, sizes.projected}, kMostElements);
  checks.largest("B * T * F", {batch, length, sizes.hidden}, kMostElements);
  if (checks.ok()) check_options(checks, op.attention, batch, length, op.heads);
  if (!checks.ok()) return checks.finish();

  const bool is_forward = pass == RFN_PASS_FORWARD, is_exact = op.residual == RFN_RESIDUAL_EXACT,
             is_shared = op.attention.shared_qk == 1, has_output_bias = !is_absent(op.parameters.output_bias);
  check_parameters(checks, "parameters", op.parameters, sizes, is_shared, has_output_bias, &Checks::input);
  checks.optional_input("mask", op.mask, RFN_U8, "[B,T]", {batch, length});
  const bool has_activations = check_kept(checks, op, sizes, is_forward, is_shared);
  if (op.attention.kind == RFN_ATTENTION_LSH) check_hashes(checks, op, sizes, is_forward, is_exact, has_activations);
  if (is_exact) checks.result("range_report", op.range_report);
  const Checks::Sizes projections = {batch, length, sizes.projected};
  if (has_activations) checks.input("attention_result", op.attention_result, RFN_F32, "[B,T,H*D]", projections);
  if (is_forward) {
    checks.optional_output("attention_result", op.attention_result, RFN_F32, "[B,T,H*D]", projections);
    return checks.finish();
  }
  checks.output("grad_stream1", op.grad_stream1, RFN_F32, "[B,T,E]", {batch, length, width});
  checks.output("grad_stream2", op.grad_stream2, RFN_F32, "[B,T,E]", {batch, length, width});
  if (!checks.is_query() || op.gradients.struct_size != 0)
    check_parameters(checks, "gradients", op.gradients, sizes, is_shared, has_output_bias, &Checks::output);
  return checks.finish();
}

rfn_status validate(const rfn_reversible_block_decode& op, Call call, const Workspace& workspace) {
  Checks checks("reversible_block_decode", call, workspace);
  checks.integer("layer", op.layer, 0, kLastLayer);
  checks.integer("heads", op.heads, 1, INT32_MAX);
  check_activation(checks, op.activation);
  checks.more_than("layer_norm_epsilon", op.layer_norm_epsilon, 0);
  check_residual(checks, op.residual, op.grid_exponent);
  checks.integer("reserved", op.reserved, 0, 0);
  checks.integer("position", op.position, 0, kLargestSize - 1);

  const rfn_attention_options& options = op.attention;
  const int64_t batch = op.stream1.shape[0], width = op.stream1.shape[2], heads = op.heads, rows = op.keys.shape[1];
  const BlockSizes sizes = block_sizes(op.stream1, op.parameters);
  if (checks.is_query()) checks.shape("stream1", op.stream1, RFN_F32, "[B,1,E]", {batch, 1, width});
  checks.output("stream1", op.stream1, RFN_F32, "[B,1,E]", {batch, 1, width});
  checks.output("stream2", op.stream2, RFN_F32, "[B,1,E]", {batch, 1, width});
  check_anchors(checks, op.parameters, sizes, heads);
  checks.largest("B * F", {batch, sizes.hidden}, kMostElements);
  checks.integer("options.padded_length", options.padded_length, 0, 0);
  if (checks.ok()) check_options(checks, options, batch, op.position + 1, heads);
  checks.integer("options.causal", options.causal, 1, 1);
  if (options.dropout != 0) checks.failed("options.dropout: expected 0, got %g", static_cast<double>(options.dropout));
  if (!checks.ok()) return checks.finish();

  check_parameters(checks, "parameters", op.parameters, sizes, options.shared_qk == 1,
                   !is_absent(op.parameters.output_bias), &Checks::input);
  const Checks::Sizes cache = {batch, rows, sizes.projected};
  if (checks.is_query()) checks.shape("keys", op.keys, RFN_F32, "[B,S,H*D]", cache);
  checks.output("keys", op.keys, RFN_F32, "[B,S,H*D]", cache);
  checks.output("values", op.values, RFN_F32, "[B,S,H*D]", cache);
  int64_t least = op.position + 1;
  if (options.kind == RFN_ATTENTION_LOCAL)
    least = std::min(least, (1 + int64_t{options.chunks_before}) * options.chunk_length);
  if (checks.ok() && rows < least)
    checks.failed("keys: expected S of at least %" PRId64 " rows, got %" PRId64, least, rows);
  if (checks.ok() && options.kind == RFN_ATTENTION_LSH) {
    int64_t buckets = 1;
    for (int32_t i = 0; i < options.factor_count; ++i) buckets *= options.factors[i];
    const int64_t ring = std::max<int64_t>(1, options.chunks_before * options.chunk_length);
    check_rotations(checks, op.rotations, options, batch, heads, sizes.projected / heads);
    checks.output("rings", op.rings, RFN_I32, "[B*H,R,buckets,W]", {batch * heads, options.rounds, buckets, ring});
    checks.output("counts", op.counts, RFN_I32, "[B*H,R,buckets]", {batch * heads, options.rounds, buckets});
  }
  if (op.residual == RFN_RESIDUAL_EXACT) checks.result("range_report", op.range_report);
  return checks.finish();
}

rfn_status validate(const rfn_bucket_rings& op, Call call, const Workspace& workspace) {
  Checks checks("bucket_rings", call, workspace);
  checks.integer("reserved", op.reserved, 0, 0);
  const int64_t batch = op.buckets.shape[0], heads = op.buckets.shape[1], rounds = op.buckets.shape[2],
                length = op.buckets.shape[3], buckets = op.rings.shape[2], ring = op.rings.shape[3];
  checks.input("buckets", op.buckets, RFN_I32, "[B,H,R,T]", {batch, heads, rounds, length});
  if (!checks.ok()) return checks.finish();
  checks.integer("first", op.first, 0, kLargestSize - length);
  checks.output("rings", op.rings, RFN_I32, "[B*H,R,buckets,W]", {batch * heads, rounds, buckets, ring});
  checks.output("counts", op.counts, RFN_I32, "[B*H,R,buckets]", {batch * heads, rounds, buckets});
  return checks.finish();
}

}  // namespace rfn
