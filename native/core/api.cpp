// Every function of reformer_native.h: the one door. Checks arguments, keeps one thread per context, counts objects,
// and calls the backend.
#include <atomic>
#include <cinttypes>
#include <cstring>
#include <memory>
#include <string>

#include "core/backend.h"
#include "core/complete.h"
#include "core/describe.h"
#include "core/embedded.h"
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
      *out = embedded_backend();
      return *out == nullptr ? RFN_UNSUPPORTED : RFN_OK;
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
      return fail(RFN_BUSY,
                  "context: expected one thread at a time, got a call while another one is running; give each thread "
                  "a context of its own");
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

rfn_status unsupported(const rfn_context& context, const char* function) {
  return fail(RFN_UNSUPPORTED, "%s: the %s backend does not have this op", function, context.backend->name);
}

// What every op does, whatever its struct. `function` is the function called, `name` the op's name in messages; `pass`
// is empty for ops of one pass.

template <class Op, class Size, class... Pass>
rfn_status query_op(const char* function, const char* name, const rfn_context* context, const Op* op, int64_t* bytes,
                    Size Backend::*size, Pass... pass) {
  if (context == nullptr) return null_argument(function, "context");
  if (op == nullptr) return null_argument(function, "op");
  if (bytes == nullptr) return null_argument(function, "bytes");
  return guard([&]() -> rfn_status {
    RFN_TRY(check_not_faulted(*context));
    return with_complete(name, *op, [&](const Op& complete) -> rfn_status {
      RFN_TRY(validate(complete, pass..., Call::kQuery, {}));
      const Backend& backend = *context->backend;
      if (backend.*size == nullptr) return unsupported(*context, function);
      int64_t needed = 0;
      RFN_TRY((backend.*size)(*context, complete, pass..., &needed));
      *bytes = needed;
      return RFN_OK;
    });
  });
}

// body(op) inside the stream's context, all of whose fields may be read.
template <class Op, class Body>
rfn_status enter_op(const char* function, const char* name, rfn_stream* stream, const Op* op, const Body& body) {
  if (stream == nullptr) return null_argument(function, "stream");
  if (op == nullptr) return null_argument(function, "op");
  return enter(*stream->context, [&] { return with_complete(name, *op, body); });
}

// Runs an op that was validated, if its workspace is large enough; `pass` is that of the workspace.
template <class Op, class Size, class Run, class... Pass>
rfn_status run_validated(const char* function, const char* name, rfn_stream& stream, const Op& op,
                         const Workspace& workspace, Size Backend::*size, Run Backend::*run, Pass... pass) {
  const Backend& backend = *stream.context->backend;
  if (backend.*run == nullptr || backend.*size == nullptr) return unsupported(*stream.context, function);
  int64_t needed = 0;
  RFN_TRY((backend.*size)(*stream.context, op, pass..., &needed));
  RFN_TRY(validate_workspace(name, workspace, needed));
  return (backend.*run)(stream, op, workspace.data, workspace.bytes);
}

template <class Op, class Size, class Run, class... Pass>
rfn_status run_op(const char* function, const char* name, rfn_stream* stream, const Op* op, const Workspace& workspace,
                  Size Backend::*size, Run Backend::*run, Pass... pass) {
  return enter_op(function, name, stream, op, [&](const Op& complete) -> rfn_status {
    RFN_TRY(validate(complete, pass..., Call::kRun, workspace));
    return run_validated(function, name, *stream, complete, workspace, size, run, pass...);
  });
}

template <class Op, class Run>
rfn_status run_without_workspace(const char* function, const char* name, rfn_stream* stream, const Op* op,
                                 Run Backend::*run) {
  return enter_op(function, name, stream, op, [&](const Op& complete) -> rfn_status {
    RFN_TRY(validate(complete, Call::kRun, {}));
    const Backend& backend = *stream->context->backend;
    if (backend.*run == nullptr) return unsupported(*stream->context, function);
    return (backend.*run)(*stream, complete);
  });
}

template <class Run>
rfn_status run_stage(const char* function, const char* name, rfn_stream* stream, const rfn_attention* op,
                     const Workspace& workspace, LshStage stage, Run Backend::*run) {
  return enter_op(function, name, stream, op, [&](const rfn_attention& complete) -> rfn_status {
    RFN_TRY(validate_stage(complete, stage, workspace));
    return run_validated(function, name, *stream, complete, workspace, &Backend::attention_workspace, run,
                         stage_pass(stage));
  });
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
    context->precision.store(precision, std::memory_order_relaxed);
    return RFN_OK;
  });
}

rfn_status rfn_context_precision(const rfn_context* context, int32_t* precision) {
  RFN_NOT_NULL(context);
  RFN_NOT_NULL(precision);
  *precision = context->precision.load(std::memory_order_relaxed);
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

rfn_status rfn_op_supported(const rfn_context* context, const char* function, int32_t* supported) {
  RFN_NOT_NULL(context);
  RFN_NOT_NULL(function);
  RFN_NOT_NULL(supported);
  const Backend& backend = *context->backend;
#define RFN_OP(name, pass) {"rfn_" #name "_" #pass, backend.name##_##pass != nullptr},
#define RFN_BOTH_PASSES(name) RFN_OP(name, forward) RFN_OP(name, backward)
#define RFN_STAGE(name) {"rfn_" #name, backend.name != nullptr},
  const struct {
    const char* name;
    bool there;
  } ops[] = {RFN_OPS_WITH_BACKWARD(RFN_BOTH_PASSES) RFN_OPS_OF_ONE_PASS(RFN_OP) RFN_OPS_WITHOUT_WORKSPACE(RFN_OP)
                 RFN_LSH_STAGES(RFN_STAGE)};
#undef RFN_STAGE
#undef RFN_BOTH_PASSES
#undef RFN_OP
  for (const auto& op : ops) {
    if (std::strcmp(op.name, function) != 0) continue;
    *supported = op.there ? 1 : 0;
    return RFN_OK;
  }
  return fail(RFN_INVALID_ARGUMENT, "%s: function: expected the name of a function that runs an op, got %.64s",
              __func__, function);
}

#define RFN_PASS(name, pass, ...)                                                                                      \
  rfn_status rfn_##name##_##pass(rfn_stream* stream, const rfn_##name* op, void* workspace, int64_t workspace_bytes) { \
    return run_op(__func__, #name, stream, op, {workspace, workspace_bytes}, &Backend::name##_workspace,               \
                  &Backend::name##_##pass __VA_ARGS__);                                                                \
  }
#define RFN_BOTH_PASSES(name)                                                                                         \
  rfn_status rfn_##name##_workspace(const rfn_context* context, const rfn_##name* op, int32_t pass, int64_t* bytes) { \
    return query_op(__func__, #name, context, op, bytes, &Backend::name##_workspace, pass);                           \
  }                                                                                                                   \
  RFN_PASS(name, forward, , int32_t{RFN_PASS_FORWARD})                                                                \
  RFN_PASS(name, backward, , int32_t{RFN_PASS_BACKWARD})
RFN_OPS_WITH_BACKWARD(RFN_BOTH_PASSES)
#undef RFN_BOTH_PASSES

#define RFN_ONE_PASS(name, pass)                                                                        \
  rfn_status rfn_##name##_workspace(const rfn_context* context, const rfn_##name* op, int64_t* bytes) { \
    return query_op(__func__, #name, context, op, bytes, &Backend::name##_workspace);                   \
  }                                                                                                     \
  RFN_PASS(name, pass, )
RFN_OPS_OF_ONE_PASS(RFN_ONE_PASS)
#undef RFN_ONE_PASS
#undef RFN_PASS

#define RFN_WITHOUT_WORKSPACE(name, pass)                                               \
  rfn_status rfn_##name##_##pass(rfn_stream* stream, const rfn_##name* op) {            \
    return run_without_workspace(__func__, #name, stream, op, &Backend::name##_##pass); \
  }
RFN_OPS_WITHOUT_WORKSPACE(RFN_WITHOUT_WORKSPACE)
#undef RFN_WITHOUT_WORKSPACE

#define RFN_STAGE(name)                                                                                          \
  rfn_status rfn_##name(rfn_stream* stream, const rfn_attention* op, void* workspace, int64_t workspace_bytes) { \
    return run_stage(__func__, #name, stream, op, {workspace, workspace_bytes}, LshStage::name, &Backend::name); \
  }
RFN_LSH_STAGES(RFN_STAGE)
#undef RFN_STAGE
