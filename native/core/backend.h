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
  int32_t threads;    // CPU worker threads
  int32_t precision;  // RFN_PRECISION_*
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

// Ops with NAME_workspace, NAME_forward and NAME_backward.
#define RFN_OPS_WITH_BACKWARD(X) \
  X(embedding) X(layer_norm) X(linear) X(attention) X(feed_forward) X(reversible_block) X(final_norm) X(head_loss)
// Ops with NAME_workspace and NAME_forward.
#define RFN_OPS_FORWARD_ONLY(X) X(global_norm) X(adafactor) X(sample) X(reversible_block_decode)
// Ops with NAME_forward and no workspace.
#define RFN_OPS_WITHOUT_WORKSPACE(X) X(random_normal) X(adamw) X(bucket_rings)
// Stages of LSH attention; they take rfn_attention and the workspace of attention's forward or backward pass.
#define RFN_LSH_STAGES(X) \
  X(lsh_hash) X(lsh_sort) X(lsh_attend) X(lsh_combine) X(lsh_combine_backward) X(lsh_attend_backward)

namespace rfn {

inline constexpr uint32_t kBackendAbi =
    3;  // raised with every change of this table or of a struct that it takes; a plug-in of another number is refused

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

#define RFN_SLOT(name) \
  rfn_status (*name##_workspace)(const rfn_context& context, const rfn_##name& op, int32_t pass, int64_t* bytes);
  RFN_OPS_WITH_BACKWARD(RFN_SLOT)
  RFN_OPS_FORWARD_ONLY(RFN_SLOT)
#undef RFN_SLOT
#define RFN_SLOT(name) \
  rfn_status (*name##_forward)(rfn_stream & stream, const rfn_##name& op, void* workspace, int64_t workspace_bytes);
  RFN_OPS_WITH_BACKWARD(RFN_SLOT)
  RFN_OPS_FORWARD_ONLY(RFN_SLOT)
#undef RFN_SLOT
#define RFN_SLOT(name) \
  rfn_status (*name##_backward)(rfn_stream & stream, const rfn_##name& op, void* workspace, int64_t workspace_bytes);
  RFN_OPS_WITH_BACKWARD(RFN_SLOT)
#undef RFN_SLOT
#define RFN_SLOT(name) rfn_status (*name##_forward)(rfn_stream & stream, const rfn_##name& op);
  RFN_OPS_WITHOUT_WORKSPACE(RFN_SLOT)
#undef RFN_SLOT
#define RFN_SLOT(name) \
  rfn_status (*name)(rfn_stream & stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes);
  RFN_LSH_STAGES(RFN_SLOT)
#undef RFN_SLOT
};

// Declarations of every op slot, for the namespace of a backend; and the op part of its table, in the table's order.
#define RFN_DECLARE_WORKSPACE(name) \
  rfn_status name##_workspace(const rfn_context& context, const rfn_##name& op, int32_t pass, int64_t* bytes);
#define RFN_DECLARE_FORWARD(name) \
  rfn_status name##_forward(rfn_stream& stream, const rfn_##name& op, void* workspace, int64_t workspace_bytes);
#define RFN_DECLARE_BACKWARD(name) \
  rfn_status name##_backward(rfn_stream& stream, const rfn_##name& op, void* workspace, int64_t workspace_bytes);
#define RFN_DECLARE_SIMPLE(name) rfn_status name##_forward(rfn_stream& stream, const rfn_##name& op);
#define RFN_DECLARE_STAGE(name) \
  rfn_status name(rfn_stream& stream, const rfn_attention& op, void* workspace, int64_t workspace_bytes);
#define RFN_DECLARE_OPS                                                                     \
  RFN_OPS_WITH_BACKWARD(RFN_DECLARE_WORKSPACE)                                              \
  RFN_OPS_FORWARD_ONLY(RFN_DECLARE_WORKSPACE) RFN_OPS_WITH_BACKWARD(RFN_DECLARE_FORWARD)    \
      RFN_OPS_FORWARD_ONLY(RFN_DECLARE_FORWARD) RFN_OPS_WITH_BACKWARD(RFN_DECLARE_BACKWARD) \
          RFN_OPS_WITHOUT_WORKSPACE(RFN_DECLARE_SIMPLE) RFN_LSH_STAGES(RFN_DECLARE_STAGE)
#define RFN_WORKSPACE_SLOT(name) name##_workspace,
#define RFN_FORWARD_SLOT(name) name##_forward,
#define RFN_BACKWARD_SLOT(name) name##_backward,
#define RFN_STAGE_SLOT(name) name,
#define RFN_OP_SLOTS                                                                  \
  RFN_OPS_WITH_BACKWARD(RFN_WORKSPACE_SLOT)                                           \
  RFN_OPS_FORWARD_ONLY(RFN_WORKSPACE_SLOT) RFN_OPS_WITH_BACKWARD(RFN_FORWARD_SLOT)    \
      RFN_OPS_FORWARD_ONLY(RFN_FORWARD_SLOT) RFN_OPS_WITH_BACKWARD(RFN_BACKWARD_SLOT) \
          RFN_OPS_WITHOUT_WORKSPACE(RFN_FORWARD_SLOT) RFN_LSH_STAGES(RFN_STAGE_SLOT)

namespace cpu {
const Backend& backend();
RFN_DECLARE_OPS
}  // namespace cpu

}  // namespace rfn
