// The table a backend fills. core/api.cpp is its only caller and has validated every argument (shapes, types, pointers,
// ranges, workspace size and alignment) before a slot is called.
#pragma once
#include <atomic>
#include <cstdint>

#include "reformer_native.h"

namespace rfn {
struct Backend;
}

// One device. Streams, events and buffers hold a reference.
struct rfn_context {
  const rfn::Backend* backend;
  int32_t device_type;
  int32_t device_index;
  int32_t threads;                 // CPU worker threads
  std::atomic<int32_t> precision;  // RFN_PRECISION_*; set inside a call, read at any time
  std::atomic<int32_t> references;
  std::atomic<bool> faulted;  // a sticky device error: every later call returns RFN_DEVICE_LOST
  std::atomic<bool> entered;  // a call is running: a second one at the same time is refused
  void* native;               // backend's own state
};

struct rfn_stream {
  rfn_context* context;
  void* native;  // cudaStream_t; unused on the CPU
  bool owned;    // false: wrapped, not destroyed
};

struct rfn_event {
  rfn_context* context;
  void* native;
};

// The ops. A new one stands in one of these lists, and in the header.
// With a forward and a backward pass, and a workspace for each.
#define RFN_OPS_WITH_BACKWARD(X) \
  X(embedding) X(layer_norm) X(linear) X(attention) X(feed_forward) X(reversible_block) X(final_norm) X(head_loss)
// With one pass, whose name is given, and a workspace.
#define RFN_OPS_OF_ONE_PASS(X) X(global_norm, forward) X(adafactor, step) X(sample, forward)
// With one pass and no workspace.
#define RFN_OPS_WITHOUT_WORKSPACE(X) X(random_normal, forward) X(adamw, step)
// Stages of LSH attention; they take rfn_attention and the workspace of attention's forward or backward pass.
#define RFN_LSH_STAGES(X) \
  X(lsh_hash) X(lsh_sort) X(lsh_attend) X(lsh_combine) X(lsh_combine_backward) X(lsh_attend_backward)
// Cached decoding, which a backend may lack: lists like the two of one pass.
#define RFN_DECODE_OPS_OF_ONE_PASS(X) X(reversible_block_decode, forward)
#define RFN_DECODE_OPS_WITHOUT_WORKSPACE(X) X(bucket_rings, forward)

namespace rfn {

// Raised with every change of this table or of a struct that it takes; a plug-in of another number is refused.
inline constexpr uint32_t kBackendAbi = 5;

struct Backend {
  uint32_t abi;
  uint32_t struct_size;
  const char* name;

  rfn_status (*device_count)(int32_t* count);
  rfn_status (*device_describe)(int32_t index, char* text, int64_t capacity);
  rfn_status (*context_create)(rfn_context& context);
  void (*context_destroy)(rfn_context& context);
  rfn_status (*context_set_precision)(rfn_context& context, int32_t precision);  // RFN_OK: the device has it
  rfn_status (*memory_info)(const rfn_context& context, int64_t* free_bytes, int64_t* total_bytes);
  rfn_status (*stream_create)(rfn_stream& stream);
  rfn_status (*stream_wrap)(rfn_stream& stream, void* native_stream);
  void (*stream_destroy)(rfn_stream& stream);
  rfn_status (*stream_synchronize)(rfn_stream& stream);
  rfn_status (*event_create)(rfn_event& event);
  void (*event_destroy)(rfn_event& event);
  rfn_status (*event_record)(rfn_event& event, rfn_stream& stream);
  rfn_status (*event_wait)(rfn_event& event, rfn_stream& stream);
  rfn_status (*event_elapsed)(rfn_event& start, rfn_event& stop, double* milliseconds);
  rfn_status (*buffer_allocate)(rfn_context& context, int32_t memory, int64_t bytes, void** out);
  rfn_status (*buffer_free)(rfn_context& context, int32_t memory, void* buffer);
  rfn_status (*copy)(rfn_stream& stream, void* destination, const void* source, int64_t bytes, int32_t direction);
  rfn_status (*fill_zero)(rfn_stream& stream, void* destination, int64_t bytes);

  // Ops. A slot is null where the backend lacks the op.
#define RFN_WORKSPACE(name) \
  rfn_status (*name##_workspace)(const rfn_context& context, const rfn_##name& op, int32_t pass, int64_t* bytes);
  RFN_OPS_WITH_BACKWARD(RFN_WORKSPACE)
#undef RFN_WORKSPACE
#define RFN_WORKSPACE(name, pass) \
  rfn_status (*name##_workspace)(const rfn_context& context, const rfn_##name& op, int64_t* bytes);
  RFN_OPS_OF_ONE_PASS(RFN_WORKSPACE)
  RFN_DECODE_OPS_OF_ONE_PASS(RFN_WORKSPACE)
#undef RFN_WORKSPACE
#define RFN_PASS(name, pass) \
  rfn_status (*name##_##pass)(rfn_stream & stream, const rfn_##name& op, void* workspace, int64_t workspace_bytes);
#define RFN_BOTH_PASSES(name) RFN_PASS(name, forward) RFN_PASS(name, backward)
  RFN_OPS_WITH_BACKWARD(RFN_BOTH_PASSES)
  RFN_OPS_OF_ONE_PASS(RFN_PASS)
  RFN_DECODE_OPS_OF_ONE_PASS(RFN_PASS)
#undef RFN_BOTH_PASSES
#undef RFN_PASS
#define RFN_PASS(name, pass) rfn_status (*name##_##pass)(rfn_stream & stream, const rfn_##name& op);
  RFN_OPS_WITHOUT_WORKSPACE(RFN_PASS)
  RFN_DECODE_OPS_WITHOUT_WORKSPACE(RFN_PASS)
#undef RFN_PASS
#define RFN_STAGE(name) \
  rfn_status (*name)(rfn_stream & stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes);
  RFN_LSH_STAGES(RFN_STAGE)
#undef RFN_STAGE
};

// For the namespace of a backend: declarations of its ops (RFN_DECLARE_OPS, and RFN_DECLARE_DECODE_OPS where it
// decodes), and statements that put them and the rest into a table (RFN_FILL_DEVICE, RFN_FILL_OPS,
// RFN_FILL_DECODE_OPS).
#define RFN_DECLARE_PASS(name, pass) \
  rfn_status name##_##pass(rfn_stream& stream, const rfn_##name& op, void* workspace, int64_t workspace_bytes);
#define RFN_DECLARE_ONE_PASS(name, pass)                                                         \
  rfn_status name##_workspace(const rfn_context& context, const rfn_##name& op, int64_t* bytes); \
  RFN_DECLARE_PASS(name, pass)
#define RFN_DECLARE_BOTH_PASSES(name)                                                                          \
  rfn_status name##_workspace(const rfn_context& context, const rfn_##name& op, int32_t pass, int64_t* bytes); \
  RFN_DECLARE_PASS(name, forward)                                                                              \
  RFN_DECLARE_PASS(name, backward)
#define RFN_DECLARE_WITHOUT_WORKSPACE(name, pass) rfn_status name##_##pass(rfn_stream& stream, const rfn_##name& op);
#define RFN_DECLARE_STAGE(name) \
  rfn_status name(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes);
#define RFN_DECLARE_OPS                          \
  RFN_OPS_WITH_BACKWARD(RFN_DECLARE_BOTH_PASSES) \
  RFN_OPS_OF_ONE_PASS(RFN_DECLARE_ONE_PASS)      \
  RFN_OPS_WITHOUT_WORKSPACE(RFN_DECLARE_WITHOUT_WORKSPACE) RFN_LSH_STAGES(RFN_DECLARE_STAGE)
#define RFN_DECLARE_DECODE_OPS                     \
  RFN_DECODE_OPS_OF_ONE_PASS(RFN_DECLARE_ONE_PASS) \
  RFN_DECODE_OPS_WITHOUT_WORKSPACE(RFN_DECLARE_WITHOUT_WORKSPACE)

// What a backend has that is no op.
// clang-format off
#define RFN_DEVICE_SLOTS(X) \
  X(device_count) X(device_describe) \
  X(context_create) X(context_destroy) X(context_set_precision) X(memory_info) \
  X(stream_create) X(stream_wrap) X(stream_destroy) X(stream_synchronize) \
  X(event_create) X(event_destroy) X(event_record) X(event_wait) X(event_elapsed) \
  X(buffer_allocate) X(buffer_free) X(copy) X(fill_zero)
// clang-format on
#define RFN_FILL_DEVICE(text)          \
  table.abi = kBackendAbi;             \
  table.struct_size = sizeof(Backend); \
  table.name = text;                   \
  RFN_DEVICE_SLOTS(RFN_FILL_STAGE)

#define RFN_FILL_PASS(name, pass) table.name##_##pass = name##_##pass;
#define RFN_FILL_ONE_PASS(name, pass)        \
  table.name##_workspace = name##_workspace; \
  RFN_FILL_PASS(name, pass)
#define RFN_FILL_BOTH_PASSES(name) \
  RFN_FILL_ONE_PASS(name, forward) \
  RFN_FILL_PASS(name, backward)
#define RFN_FILL_STAGE(name) table.name = name;
#define RFN_FILL_OPS                          \
  RFN_OPS_WITH_BACKWARD(RFN_FILL_BOTH_PASSES) \
  RFN_OPS_OF_ONE_PASS(RFN_FILL_ONE_PASS) RFN_OPS_WITHOUT_WORKSPACE(RFN_FILL_PASS) RFN_LSH_STAGES(RFN_FILL_STAGE)
#define RFN_FILL_DECODE_OPS \
  RFN_DECODE_OPS_OF_ONE_PASS(RFN_FILL_ONE_PASS) RFN_DECODE_OPS_WITHOUT_WORKSPACE(RFN_FILL_PASS)

}  // namespace rfn
