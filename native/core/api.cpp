// Every function of reformer_native.h: the one door. Checks arguments, keeps one thread per context, counts objects,
// and calls the backend.
#include <atomic>
#include <cinttypes>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>

#include "core/backend.h"
#include "core/describe.h"
#include "core/error.h"
#include "core/guard.h"
#include "core/plugin.h"
#include "core/validate.h"

namespace rfn {
namespace {

constexpr int32_t kMostThreads = 1024;

std::atomic<int64_t> live_objects{0};

rfn_status null_argument(const char* function, const char* argument) {
  return fail(RFN_INVALID_ARGUMENT, "%s: %s: expected a pointer, got NULL", function, argument);
}

#define RFN_NOT_NULL(argument) \
  if ((argument) == nullptr) return null_argument(__func__, #argument)

rfn_status find_backend(const char* function, int32_t device_type, const Backend** out) {
  switch (device_type) {
    case RFN_DEVICE_CPU:
      *out = &cpu::backend();
      return RFN_OK;
    case RFN_DEVICE_CUDA:
    case RFN_DEVICE_CUDA_ON_HOST:
      *out = cuda_backend(device_type);
      return *out == nullptr ? RFN_UNSUPPORTED : RFN_OK;
    default:
      return fail(RFN_INVALID_ARGUMENT,
                  "%s: device_type: expected RFN_DEVICE_CPU (0), RFN_DEVICE_CUDA (1) or RFN_DEVICE_CUDA_ON_HOST (2), "
                  "got %" PRId32,
                  function, device_type);
  }
}

rfn_status check_not_faulted(const rfn_context& context) {
  if (!context.faulted.load(std::memory_order_acquire)) return RFN_OK;
  return fail(RFN_DEVICE_LOST, "context: an earlier device error was sticky; destroy the context and create a new one");
}

// One call inside a context, for as long as it lives.
class Entry {
 public:
  explicit Entry(rfn_context& context)
      : context_(context), entered_(!context.entered.exchange(true, std::memory_order_acquire)) {}
  ~Entry() {
    if (entered_) context_.entered.store(false, std::memory_order_release);
  }
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;

  rfn_status status() const {
    if (!entered_)
      return fail(RFN_INVALID_ARGUMENT,
                  "context: expected one thread at a time, got a call while another call is running");
    return check_not_faulted(context_);
  }

 private:
  rfn_context& context_;
  const bool entered_;
};

template <class Body>
rfn_status enter(rfn_context& context, const Body& body) noexcept {
  return guard([&]() -> rfn_status {
    const Entry entry(context);
    RFN_TRY(entry.status());
    return body();
  });
}

void retain(rfn_context& context) {
  context.references.fetch_add(1, std::memory_order_relaxed);
  live_objects.fetch_add(1, std::memory_order_relaxed);
}

// Ends a stream, event or buffer, and the context with the last of them.
void release(rfn_context* context) {
  live_objects.fetch_sub(1, std::memory_order_relaxed);
  if (context->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  context->backend->context_destroy(*context);
  delete context;
}

// The text that `describe` returns, kept for this thread; made anew by every call, since whether CUDA is available may
// change.
template <std::string (*describe)()>
const char* kept_text() {
  thread_local std::string text;
  const rfn_status status = guard([] {
    text = describe();
    return RFN_OK;
  });
  return status == RFN_OK ? text.c_str() : "";
}

rfn_status not_implemented(const rfn_context& context, const char* function) {
  return fail(RFN_UNSUPPORTED, "%s: the %s backend does not have this op", function, context.backend->name);
}

// The size that a struct had before it grew at its end, which callers of an earlier minor version pass.
template <class Op>
constexpr size_t kEarlierSize = sizeof(Op);
template <>
constexpr size_t kEarlierSize<rfn_reversible_block> = offsetof(rfn_reversible_block, kept_stream1);

// body(op), all of whose fields may be read.
template <class Op, class Body>
rfn_status with_complete(const char* name, const Op& op, const Body& body) {
  if constexpr (kEarlierSize<Op> != sizeof(Op)) {
    if (op.struct_size == kEarlierSize<Op>) {
      Op complete = {};
      std::memcpy(&complete, &op, kEarlierSize<Op>);
      complete.struct_size = sizeof(Op);
      return body(complete);
    }
  }
  RFN_TRY(validate_struct(name, op.struct_size, sizeof(Op)));
  return body(op);
}

// Workspace of an op that was validated; `query` is its workspace slot.
template <class Query, class Op>
rfn_status check_workspace(const char* name, Query query, const rfn_context& context, const Op& op, int32_t pass,
                           const Workspace& workspace) {
  int64_t needed = 0;
  RFN_TRY(query(context, op, pass, &needed));
  return validate_workspace(name, workspace, needed);
}

}  // namespace
}  // namespace rfn

using namespace rfn;

// ---- status ----

uint32_t rfn_abi_version(void) { return (RFN_ABI_MAJOR << 16) | RFN_ABI_MINOR; }

const char* rfn_abi_describe(void) { return kept_text<describe_abi>(); }

const char* rfn_version(void) { return RFN_VERSION; }

const char* rfn_build_info(void) { return kept_text<describe_build>(); }

const char* rfn_last_error(void) { return last_error(); }

int64_t rfn_live_objects(void) { return live_objects.load(std::memory_order_relaxed); }

// ---- devices, contexts, streams, memory ----

rfn_status rfn_device_count(int32_t device_type, int32_t* count) {
  RFN_NOT_NULL(count);
  return guard([&]() -> rfn_status {
    const Backend* backend = nullptr;
    const rfn_status found = find_backend("rfn_device_count", device_type, &backend);
    if (found == RFN_UNSUPPORTED) {
      *count = 0;
      return RFN_OK;  // the reason stays in rfn_last_error
    }
    RFN_TRY(found);
    return backend->device_count(count);
  });
}

rfn_status rfn_device_describe(int32_t device_type, int32_t device_index, char* text, int64_t capacity) {
  RFN_NOT_NULL(text);
  return guard([&]() -> rfn_status {
    if (capacity < 1)
      return fail(RFN_INVALID_ARGUMENT, "rfn_device_describe: capacity: expected at least 1, got %" PRId64, capacity);
    text[0] = '\0';
    const Backend* backend = nullptr;
    RFN_TRY(find_backend("rfn_device_describe", device_type, &backend));
    return backend->device_describe(device_index, text, capacity);
  });
}

rfn_status rfn_context_create(int32_t device_type, int32_t device_index, int32_t threads, rfn_context** out) {
  RFN_NOT_NULL(out);
  return guard([&]() -> rfn_status {
    *out = nullptr;
    const Backend* backend = nullptr;
    RFN_TRY(find_backend("rfn_context_create", device_type, &backend));
    if (threads < 0 || threads > kMostThreads) {
      return fail(RFN_INVALID_ARGUMENT, "rfn_context_create: threads: expected 0 (all) to %" PRId32 ", got %" PRId32,
                  kMostThreads, threads);
    }
    int32_t devices = 0;
    RFN_TRY(backend->device_count(&devices));
    if (devices == 0) return RFN_UNSUPPORTED;  // the backend has said why
    if (device_index < 0 || device_index >= devices) {
      return fail(RFN_INVALID_ARGUMENT,
                  "rfn_context_create: device_index: expected 0 to %" PRId32 ", got %" PRId32 " (%s devices: %" PRId32
                  ")",
                  devices - 1, device_index, backend->name, devices);
    }
    auto context = std::make_unique<rfn_context>();
    context->backend = backend;
    context->device_type = device_type;
    context->device_index = device_index;
    context->threads = threads;
    RFN_TRY(backend->context_create(*context));
    retain(*context);
    *out = context.release();
    return RFN_OK;
  });
}

void rfn_context_destroy(rfn_context* context) {
  if (context != nullptr) release(context);
}

rfn_status rfn_context_threads(const rfn_context* context, int32_t* threads) {
  RFN_NOT_NULL(context);
  RFN_NOT_NULL(threads);
  *threads = context->threads;
  return RFN_OK;
}

rfn_status rfn_context_set_precision(rfn_context* context, int32_t precision) {
  RFN_NOT_NULL(context);
  if (precision < RFN_PRECISION_F32 || precision > RFN_PRECISION_F16) {
    return fail(RFN_INVALID_ARGUMENT,
                "rfn_context_set_precision: precision: expected RFN_PRECISION_* (0 to 3), got %" PRId32, precision);
  }
  return enter(*context, [&]() -> rfn_status {
    RFN_TRY(context->backend->context_set_precision(*context, precision));
    context->precision = precision;
    return RFN_OK;
  });
}

rfn_status rfn_context_precision(const rfn_context* context, int32_t* precision) {
  RFN_NOT_NULL(context);
  RFN_NOT_NULL(precision);
  *precision = context->precision;
  return RFN_OK;
}

rfn_status rfn_memory_info(const rfn_context* context, int64_t* free_bytes, int64_t* total_bytes) {
  RFN_NOT_NULL(context);
  RFN_NOT_NULL(free_bytes);
  RFN_NOT_NULL(total_bytes);
  return guard([&]() -> rfn_status {
    RFN_TRY(check_not_faulted(*context));
    return context->backend->memory_info(*context, free_bytes, total_bytes);
  });
}

namespace rfn {
namespace {

// A stream or an event: `create` fills its native part.
template <class Object, class Create>
rfn_status create_object(rfn_context& context, Object** out, const Create& create) {
  return enter(context, [&]() -> rfn_status {
    auto object = std::make_unique<Object>();
    object->context = &context;
    RFN_TRY(create(*object));
    retain(context);
    *out = object.release();
    return RFN_OK;
  });
}

rfn_status check_same_context(const char* function, const char* first, const rfn_context* a, const char* second,
                              const rfn_context* b) {
  if (a == b) return RFN_OK;
  return fail(RFN_INVALID_ARGUMENT, "%s: %s: expected the context of %s, got another one", function, second, first);
}

}  // namespace
}  // namespace rfn

rfn_status rfn_stream_create(rfn_context* context, rfn_stream** out) {
  RFN_NOT_NULL(out);
  *out = nullptr;
  RFN_NOT_NULL(context);
  return create_object<rfn_stream>(*context, out, [&](rfn_stream& stream) {
    stream.owned = true;
    return context->backend->stream_create(stream);
  });
}

rfn_status rfn_stream_wrap(rfn_context* context, void* native_stream, rfn_stream** out) {
  RFN_NOT_NULL(out);
  *out = nullptr;
  RFN_NOT_NULL(context);
  return create_object<rfn_stream>(*context, out, [&](rfn_stream& stream) {
    stream.owned = false;
    return context->backend->stream_wrap(stream, native_stream);
  });
}

void rfn_stream_destroy(rfn_stream* stream) {
  if (stream == nullptr) return;
  rfn_context* const context = stream->context;
  context->backend->stream_destroy(*stream);
  delete stream;
  release(context);
}

rfn_status rfn_stream_synchronize(rfn_stream* stream) {
  RFN_NOT_NULL(stream);
  return enter(*stream->context, [&] { return stream->context->backend->stream_synchronize(*stream); });
}

rfn_status rfn_event_create(rfn_context* context, rfn_event** out) {
  RFN_NOT_NULL(out);
  *out = nullptr;
  RFN_NOT_NULL(context);
  return create_object<rfn_event>(*context, out,
                                  [&](rfn_event& event) { return context->backend->event_create(event); });
}

void rfn_event_destroy(rfn_event* event) {
  if (event == nullptr) return;
  rfn_context* const context = event->context;
  context->backend->event_destroy(*event);
  delete event;
  release(context);
}

rfn_status rfn_event_record(rfn_event* event, rfn_stream* stream) {
  RFN_NOT_NULL(event);
  RFN_NOT_NULL(stream);
  RFN_TRY(check_same_context(__func__, "event", event->context, "stream", stream->context));
  return enter(*event->context, [&] { return event->context->backend->event_record(*event, *stream); });
}

rfn_status rfn_event_wait(rfn_event* event, rfn_stream* stream) {
  RFN_NOT_NULL(event);
  RFN_NOT_NULL(stream);
  if (event->context->device_type != stream->context->device_type) {
    return fail(RFN_INVALID_ARGUMENT,
                "%s: stream: expected a context on a device of the event's type, got another type", __func__);
  }
  return enter(*stream->context, [&] { return stream->context->backend->event_wait(*event, *stream); });
}

rfn_status rfn_event_elapsed(rfn_event* start, rfn_event* stop, double* milliseconds) {
  RFN_NOT_NULL(start);
  RFN_NOT_NULL(stop);
  RFN_NOT_NULL(milliseconds);
  RFN_TRY(check_same_context(__func__, "start", start->context, "stop", stop->context));
  return enter(*start->context, [&] { return start->context->backend->event_elapsed(*start, *stop, milliseconds); });
}

namespace rfn {
namespace {

rfn_status check_memory_kind(const char* function, int32_t memory) {
  if (memory == RFN_MEMORY_DEVICE || memory == RFN_MEMORY_HOST) return RFN_OK;
  return fail(RFN_INVALID_ARGUMENT, "%s: memory: expected RFN_MEMORY_DEVICE (0) or RFN_MEMORY_HOST (1), got %" PRId32,
              function, memory);
}

rfn_status check_bytes(const char* function, int64_t bytes) {
  if (bytes >= 0) return RFN_OK;
  return fail(RFN_INVALID_ARGUMENT, "%s: bytes: expected at least 0, got %" PRId64, function, bytes);
}

}  // namespace
}  // namespace rfn

rfn_status rfn_buffer_allocate(rfn_context* context, int32_t memory, int64_t bytes, void** out) {
  RFN_NOT_NULL(out);
  *out = nullptr;
  RFN_NOT_NULL(context);
  RFN_TRY(check_memory_kind(__func__, memory));
  RFN_TRY(check_bytes(__func__, bytes));
  return enter(*context, [&]() -> rfn_status {
    RFN_TRY(context->backend->buffer_allocate(*context, memory, bytes, out));
    retain(*context);
    return RFN_OK;
  });
}

// Like every other end of life, from any thread at any time: garbage collectors free on threads of their own.
rfn_status rfn_buffer_free(rfn_context* context, int32_t memory, void* buffer) {
  RFN_NOT_NULL(context);
  if (buffer == nullptr) return RFN_OK;
  RFN_TRY(check_memory_kind(__func__, memory));
  const rfn_status status = guard([&] { return context->backend->buffer_free(*context, memory, buffer); });
  if (status == RFN_OK) release(context);
  return status;
}

rfn_status rfn_copy(rfn_stream* stream, void* destination, const void* source, int64_t bytes, int32_t direction) {
  RFN_NOT_NULL(stream);
  RFN_TRY(check_bytes(__func__, bytes));
  if (direction < RFN_COPY_HOST_TO_DEVICE || direction > RFN_COPY_DEVICE_TO_DEVICE) {
    return fail(RFN_INVALID_ARGUMENT, "%s: direction: expected RFN_COPY_* (0 to 2), got %" PRId32, __func__, direction);
  }
  if (bytes > 0) {
    RFN_NOT_NULL(destination);
    RFN_NOT_NULL(source);
    const uintptr_t to = reinterpret_cast<uintptr_t>(destination), from = reinterpret_cast<uintptr_t>(source);
    if ((to > from ? to - from : from - to) < static_cast<uint64_t>(bytes)) {
      return fail(RFN_INVALID_ARGUMENT, "%s: source: expected memory apart from the destination, got an overlap",
                  __func__);
    }
  }
  return enter(*stream->context, [&]() -> rfn_status {
    return bytes == 0 ? RFN_OK : stream->context->backend->copy(*stream, destination, source, bytes, direction);
  });
}

rfn_status rfn_fill_zero(rfn_stream* stream, void* destination, int64_t bytes) {
  RFN_NOT_NULL(stream);
  RFN_TRY(check_bytes(__func__, bytes));
  if (bytes > 0) RFN_NOT_NULL(destination);
  return enter(*stream->context, [&]() -> rfn_status {
    return bytes == 0 ? RFN_OK : stream->context->backend->fill_zero(*stream, destination, bytes);
  });
}

// ---- ops ----

#define RFN_ENTRY(name)                                                                                               \
  rfn_status rfn_##name##_workspace(const rfn_context* context, const rfn_##name* op, int32_t pass, int64_t* bytes) { \
    RFN_NOT_NULL(context);                                                                                            \
    RFN_NOT_NULL(op);                                                                                                 \
    RFN_NOT_NULL(bytes);                                                                                              \
    return guard([&]() -> rfn_status {                                                                                \
      RFN_TRY(check_not_faulted(*context));                                                                           \
      return with_complete(#name, *op, [&](const rfn_##name& complete) -> rfn_status {                                \
        RFN_TRY(validate(complete, pass, Call::kQuery, {}));                                                          \
        if (context->backend->name##_workspace == nullptr) return not_implemented(*context, "rfn_" #name);            \
        int64_t needed = 0;                                                                                           \
        RFN_TRY(context->backend->name##_workspace(*context, complete, pass, &needed));                               \
        *bytes = needed;                                                                                              \
        return RFN_OK;                                                                                                \
      });                                                                                                             \
    });                                                                                                               \
  }
RFN_OPS_WITH_BACKWARD(RFN_ENTRY)
RFN_OPS_FORWARD_ONLY(RFN_ENTRY)
#undef RFN_ENTRY

// One pass: RFN_ENTRY_PASS(layer_norm, forward, RFN_PASS_FORWARD) is rfn_layer_norm_forward.
#define RFN_ENTRY_PASS(name, direction, pass)                                                                 \
  rfn_status rfn_##name##_##direction(rfn_stream* stream, const rfn_##name* op, void* workspace,              \
                                      int64_t workspace_bytes) {                                              \
    RFN_NOT_NULL(stream);                                                                                     \
    RFN_NOT_NULL(op);                                                                                         \
    rfn_context& context = *stream->context;                                                                  \
    return enter(context, [&]() -> rfn_status {                                                               \
      const Workspace scratch{workspace, workspace_bytes};                                                    \
      return with_complete(#name, *op, [&](const rfn_##name& complete) -> rfn_status {                        \
        RFN_TRY(validate(complete, pass, Call::kRun, scratch));                                               \
        if (context.backend->name##_##direction == nullptr)                                                   \
          return not_implemented(context, "rfn_" #name "_" #direction);                                       \
        RFN_TRY(check_workspace(#name, context.backend->name##_workspace, context, complete, pass, scratch)); \
        return context.backend->name##_##direction(*stream, complete, workspace, workspace_bytes);            \
      });                                                                                                     \
    });                                                                                                       \
  }
#define RFN_ENTRY(name) RFN_ENTRY_PASS(name, forward, RFN_PASS_FORWARD)
RFN_OPS_WITH_BACKWARD(RFN_ENTRY)
RFN_OPS_FORWARD_ONLY(RFN_ENTRY)
#undef RFN_ENTRY
#define RFN_ENTRY(name) RFN_ENTRY_PASS(name, backward, RFN_PASS_BACKWARD)
RFN_OPS_WITH_BACKWARD(RFN_ENTRY)
#undef RFN_ENTRY
#undef RFN_ENTRY_PASS

#define RFN_ENTRY(name)                                                                                         \
  rfn_status rfn_##name##_forward(rfn_stream* stream, const rfn_##name* op) {                                   \
    RFN_NOT_NULL(stream);                                                                                       \
    RFN_NOT_NULL(op);                                                                                           \
    rfn_context& context = *stream->context;                                                                    \
    return enter(context, [&]() -> rfn_status {                                                                 \
      RFN_TRY(validate_struct(#name, op->struct_size, sizeof(*op)));                                            \
      RFN_TRY(validate(*op, RFN_PASS_FORWARD, Call::kRun, {}));                                                 \
      if (context.backend->name##_forward == nullptr) return not_implemented(context, "rfn_" #name "_forward"); \
      return context.backend->name##_forward(*stream, *op);                                                     \
    });                                                                                                         \
  }
RFN_OPS_WITHOUT_WORKSPACE(RFN_ENTRY)
#undef RFN_ENTRY

#define RFN_ENTRY(name)                                                                                              \
  rfn_status rfn_##name(rfn_stream* stream, const rfn_attention* op, void* workspace, int64_t workspace_bytes) {     \
    RFN_NOT_NULL(stream);                                                                                            \
    RFN_NOT_NULL(op);                                                                                                \
    rfn_context& context = *stream->context;                                                                         \
    return enter(context, [&]() -> rfn_status {                                                                      \
      const Workspace scratch{workspace, workspace_bytes};                                                           \
      RFN_TRY(validate_struct(#name, op->struct_size, sizeof(*op)));                                                 \
      RFN_TRY(validate_stage(*op, LshStage::name, scratch));                                                         \
      if (context.backend->name == nullptr) return not_implemented(context, "rfn_" #name);                           \
      RFN_TRY(check_workspace(#name, context.backend->attention_workspace, context, *op, stage_pass(LshStage::name), \
                              scratch));                                                                             \
      return context.backend->name(*stream, *op, workspace, workspace_bytes);                                        \
    });                                                                                                              \
  }
RFN_LSH_STAGES(RFN_ENTRY)
#undef RFN_ENTRY
