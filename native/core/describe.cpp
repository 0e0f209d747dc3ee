#include "core/describe.h"

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/error.h"
#include "core/plugin.h"
#include "cpu/gemm.h"
#include "cpu/simd.h"

#define RFN_TEXT_OF(x) #x
#define RFN_TEXT(x) RFN_TEXT_OF(x)

namespace rfn {
namespace {

// ---- fields of the public structs, in header order ----

#define RFN_STRUCTS(S)                                                                                                 \
  S(rfn_tensor, F(struct_size) F(dtype) F(rank) F(reserved) F(shape) F(data) F(bytes))                                 \
  S(rfn_range_report, F(count) F(layer) F(stream) F(index))                                                            \
  S(rfn_loss_statistics, F(loss) F(rows) F(correct))                                                                   \
  S(rfn_norm_result, F(norm) F(scale))                                                                                 \
  S(rfn_random_normal,                                                                                                 \
    F(struct_size) F(layer) F(seed) F(step) F(site) F(mean) F(standard_deviation) F(reserved) F(destination))          \
  S(rfn_embedding, F(struct_size) F(positions) F(axes) F(dropout) F(seed) F(step) F(first_position) F(residual)        \
                       F(grid_exponent) F(ids) F(word) F(position) F(stream1) F(stream2) F(grad_stream1)               \
                           F(grad_stream2) F(grad_word) F(grad_position) F(range_report))                              \
  S(rfn_layer_norm,                                                                                                    \
    F(struct_size) F(epsilon) F(x) F(weight) F(bias) F(y) F(grad_y) F(grad_x) F(grad_weight) F(grad_bias))             \
  S(rfn_linear,                                                                                                        \
    F(struct_size) F(activation) F(x) F(weight) F(bias) F(y) F(grad_y) F(grad_x) F(grad_weight) F(grad_bias))          \
  S(rfn_attention_options,                                                                                             \
    F(struct_size) F(kind) F(shared_qk) F(causal) F(window) F(wrap) F(repeat_chunks) F(duplicates) F(key_norm)         \
        F(rounds) F(factor_count) F(factors) F(pad_bucket) F(chunks_before) F(chunks_after) F(logit_scale) F(dropout)  \
            F(chunk_length) F(padded_length))                                                                          \
  S(rfn_attention, F(struct_size) F(layer) F(seed) F(step) F(options) F(q) F(k) F(v) F(mask) F(rotations) F(buckets)   \
                       F(sorted) F(out) F(log_sum_exp) F(round_out) F(round_log_sum_exp) F(grad_out) F(grad_q)         \
                           F(grad_k) F(grad_v) F(grad_round_out) F(grad_round_log_sum_exp) F(head_group))              \
  S(rfn_feed_forward, F(struct_size) F(activation) F(dropout) F(layer) F(seed) F(step) F(chunk) F(x) F(w1) F(b1) F(w2) \
                          F(b2) F(y) F(grad_y) F(grad_x) F(grad_w1) F(grad_b1) F(grad_w2) F(grad_b2))                  \
  S(rfn_block_parameters,                                                                                              \
    F(struct_size) F(reserved) F(attention_norm_weight) F(attention_norm_bias) F(query) F(key) F(value) F(output)      \
        F(output_bias) F(feed_forward_norm_weight) F(feed_forward_norm_bias) F(w1) F(b1) F(w2) F(b2))                  \
  S(rfn_reversible_block,                                                                                              \
    F(struct_size) F(layer) F(seed) F(step) F(attention) F(heads) F(activation) F(layer_norm_epsilon)                  \
        F(attention_output_dropout) F(feed_forward_dropout) F(residual) F(grid_exponent) F(reserved)                   \
            F(feed_forward_chunk) F(head_group) F(stream1) F(stream2) F(grad_stream1) F(grad_stream2) F(mask)          \
                F(rotations) F(buckets) F(attention_result) F(range_report) F(parameters) F(gradients) F(kept_stream1) \
                    F(kept_stream2) F(kept_query) F(kept_key) F(kept_value) F(kept_log_sum_exp) F(kept_hidden))        \
  S(rfn_reversible_block_decode,                                                                                       \
    F(struct_size) F(layer) F(attention) F(heads) F(activation) F(layer_norm_epsilon) F(residual) F(grid_exponent)     \
        F(reserved) F(position) F(stream1) F(stream2) F(keys) F(values) F(rotations) F(rings) F(counts)                \
            F(range_report) F(parameters))                                                                             \
  S(rfn_bucket_rings, F(struct_size) F(reserved) F(first) F(buckets) F(rings) F(counts))                               \
  S(rfn_final_norm, F(struct_size) F(combine) F(epsilon) F(dropout) F(seed) F(step) F(first_row) F(stream1) F(stream2) \
                        F(weight) F(bias) F(y) F(grad_y) F(grad_stream1) F(grad_stream2) F(grad_weight) F(grad_bias))  \
  S(rfn_head_loss, F(struct_size) F(ignore_index) F(label_smoothing) F(loss_scale) F(normalizer) F(chunk) F(x)         \
                       F(weight) F(bias) F(labels) F(statistics) F(grad_x) F(grad_weight) F(grad_bias))                \
  S(rfn_global_norm, F(struct_size) F(max_norm) F(count) F(gradients) F(result))                                       \
  S(rfn_adamw, F(struct_size) F(learning_rate) F(beta1) F(beta2) F(epsilon) F(weight_decay) F(step) F(parameter)       \
                   F(gradient) F(moment1) F(moment2) F(clip))                                                          \
  S(rfn_adafactor,                                                                                                     \
    F(struct_size) F(learning_rate) F(decay_exponent) F(clip_threshold) F(epsilon1) F(epsilon2) F(weight_decay)        \
        F(scale_parameter) F(step) F(parameter) F(gradient) F(row) F(column) F(moment2) F(clip))                       \
  S(rfn_sample, F(struct_size) F(temperature) F(top_p) F(top_k) F(seed) F(step) F(logits) F(ids))

struct Field {
  const char* name;
  size_t offset;
  size_t elements;  // of an array, else 1
};

template <class T>
constexpr size_t element_count = std::extent_v<T> == 0 ? 1 : std::extent_v<T>;

#define F(field) {#field, offsetof(Struct, field), element_count<decltype(Struct::field)>},
#define S(name, ...)                               \
  struct Fields_##name {                           \
    using Struct = name;                           \
    static constexpr Field list[] = {__VA_ARGS__}; \
  };
RFN_STRUCTS(S)
#undef S
#undef F

// ---- proof that no field is missing: a struct takes exactly as many initializers as its list has elements ----

struct Any {
  template <class T>
  constexpr operator T() const noexcept;  // NOLINT: only its type is used
};

template <class T, class, class... Initializers>
struct Accepts : std::false_type {};
template <class T, class... Initializers>
struct Accepts<T, std::void_t<decltype(T{std::declval<Initializers>()...})>, Initializers...> : std::true_type {};

template <size_t>
using AnyOf = Any;
template <class T, size_t... i>
constexpr bool accepts(std::index_sequence<i...>) {
  return Accepts<T, void, AnyOf<i>...>::value;
}

template <class List>
constexpr bool complete() {
  size_t elements = 0, offset = 0;
  for (const Field& field : List::list) {
    if (elements > 0 && field.offset <= offset) return false;  // out of order, or twice
    offset = field.offset;
    elements += field.elements;
  }
  return elements == List::elements;
}

#define F(field) +element_count<decltype(Struct::field)>
#define S(name, ...)                                                                        \
  struct Count_##name : Fields_##name {                                                     \
    static constexpr size_t elements = 0 __VA_ARGS__;                                       \
  };                                                                                        \
  static_assert(complete<Count_##name>(), #name ": the fields are not in header order");    \
  static_assert(accepts<name>(std::make_index_sequence<Count_##name::elements>()) &&        \
                    !accepts<name>(std::make_index_sequence<Count_##name::elements + 1>()), \
                #name ": the list of fields is not complete");
RFN_STRUCTS(S)
#undef S
#undef F

template <class List>
void append(std::string& text, const char* name) {
  text += name;
  text += ':' + std::to_string(sizeof(typename List::Struct)) + ':';
  for (const Field& field : List::list) {
    if (&field != List::list) text += ',';
    text += field.name;
    text += '@' + std::to_string(field.offset);
  }
  text += '\n';
}

}  // namespace

std::string json_quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}

std::string describe_abi() {
  std::string text;
#define S(name, ...) append<Fields_##name>(text, #name);
  RFN_STRUCTS(S)
#undef S
  return text;
}

std::string describe_build() {
  std::string simd_available;
  for (const cpu::Simd simd : {cpu::Simd::kAvx512, cpu::Simd::kAvx2, cpu::Simd::kPortable}) {
    if (!cpu::simd_supported(simd)) continue;
    if (!simd_available.empty()) simd_available += ", ";
    simd_available += json_quoted(cpu::simd_name(simd));
  }
  const std::string blas = cpu::blas_name();  // "OpenBLAS 0.3.21"
  const size_t space = blas.find(' ');
  std::string text = "{\"version\": " + json_quoted(RFN_VERSION);
  text += ", \"abi\": " + json_quoted(RFN_TEXT(RFN_ABI_MAJOR) "." RFN_TEXT(RFN_ABI_MINOR));
  text += ", \"compiler\": " + json_quoted(RFN_COMPILER);
  text += ", \"build\": " + json_quoted(RFN_BUILD_TYPE);
  text += ", \"sanitizers\": " + json_quoted(RFN_SANITIZERS);
  text += ", \"simd\": " + json_quoted(cpu::simd_name(cpu::simd()));
  text += ", \"simd_available\": [" + simd_available + "]";
  text += ", \"blas\": {\"name\": " + json_quoted(blas.substr(0, space));
  text += ", \"version\": " + json_quoted(space == std::string::npos ? "" : blas.substr(space + 1));
  text += ", \"kernel\": " + json_quoted(cpu::blas_kernel()) + "}";
  const std::string message = last_error();
  const bool cuda = cuda_backend(RFN_DEVICE_CUDA) != nullptr;
  text += cuda ? ", \"backends\": [\"cpu\", \"cuda\"]" : ", \"backends\": [\"cpu\"]";
  text += ", \"cuda_missing\": " + (cuda ? "null" : json_quoted(last_error()));
  fail(RFN_OK, "%s", message.c_str());  // a description is not a failed call: the message of the last one stays
  return text + "}";
}

}  // namespace rfn
