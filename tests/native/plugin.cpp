// A stand-in for the CUDA plug-in: a device without any arithmetic, to test how the core finds a plug-in and what it
// makes of its answers. Compiled several times; RFN_PLUGIN_KIND chooses what is wrong with it.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "core/backend.h"

#define RFN_PLUGIN_GOOD 0
#define RFN_PLUGIN_OTHER_ABI 1
#define RFN_PLUGIN_REFUSES 2
#define RFN_PLUGIN_NO_SYMBOL 3

#define RFN_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using rfn::Backend;

rfn_status (*fail)(rfn_status, const char*) = nullptr;
std::atomic<bool> hold{false};     // stream_synchronize waits while this is set
std::atomic<bool> waiting{false};  // it does
std::atomic<bool> break_next{false};

Backend table() {
  Backend b = {};  // every slot that is not set below is an op that this backend lacks
  b.abi = rfn::kBackendAbi;
  b.struct_size = sizeof(Backend);
  b.name = "test";
  b.device_count = [](int32_t* count) { return *count = 2, RFN_OK; };
  b.device_describe = [](int32_t, char*, int64_t) { return fail(RFN_DEVICE_ERROR, "no description today"); };
  b.context_create = [](rfn_context& context) { return context.threads = 1, RFN_OK; };
  b.context_destroy = [](rfn_context&) {};
  b.context_set_precision = [](rfn_context&, int32_t) { return RFN_OK; };
  b.memory_info = [](const rfn_context&, int64_t* free_bytes, int64_t* total_bytes) {
    return *free_bytes = 1, *total_bytes = 2, RFN_OK;
  };
  b.stream_create = [](rfn_stream&) { return RFN_OK; };
  b.stream_wrap = [](rfn_stream& stream, void* native) { return stream.native = native, RFN_OK; };
  b.stream_destroy = [](rfn_stream&) {};
  b.stream_synchronize = [](rfn_stream& stream) {
    if (break_next.exchange(false)) {
      stream.context->faulted = true;
      return fail(RFN_DEVICE_ERROR, "the device fell over");
    }
    while (hold) {
      waiting = true;
      std::this_thread::yield();
    }
    waiting = false;
    return RFN_OK;
  };
  b.event_create = [](rfn_event&) { return RFN_OK; };
  b.event_destroy = [](rfn_event&) {};
  b.buffer_allocate = [](rfn_context&, int32_t, int64_t bytes, void** out) {
    *out = std::malloc(static_cast<size_t>(bytes));
    return RFN_OK;
  };
  b.buffer_free = [](rfn_context&, int32_t, void* buffer) {
    std::free(buffer);
    return RFN_OK;
  };
  b.copy = [](rfn_stream&, void*, const void*, int64_t, int32_t) -> rfn_status {
    throw std::runtime_error("thrown by copy");
  };
  b.fill_zero = [](rfn_stream&, void*, int64_t) -> rfn_status { throw 7; };
  return b;
}

}  // namespace

#if RFN_PLUGIN_KIND == RFN_PLUGIN_NO_SYMBOL
#define rfn_cuda_backend rfn_another_name
#endif
RFN_EXPORT const Backend* rfn_cuda_backend(uint32_t abi, rfn_status (*report)(rfn_status, const char*)) {
  fail = report;
  if (RFN_PLUGIN_KIND == RFN_PLUGIN_REFUSES || abi != rfn::kBackendAbi) {
    fail(RFN_UNSUPPORTED, "the driver is too old");
    return nullptr;
  }
  static Backend backend = table();
  if (RFN_PLUGIN_KIND == RFN_PLUGIN_OTHER_ABI) backend.abi = rfn::kBackendAbi + 1;
  return &backend;
}

RFN_EXPORT void test_plugin_hold(int value) { hold = value != 0; }
RFN_EXPORT int test_plugin_waiting(void) { return waiting; }
RFN_EXPORT void test_plugin_break_next(void) { break_next = true; }
