// Everything of the C ABI that is not an op: what the library says about itself, contexts and what lives in them,
// plug-ins, threads.
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

#include "harness.h"

namespace rfn::test {
namespace {

std::string header() {
  std::ifstream file(RFN_TEST_HEADER);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return std::regex_replace(text, std::regex(R"(/\*[^*]*\*+([^/*][^*]*\*+)*/)"), "");  // without comments
}

std::vector<std::string> find_all(const std::string& text, const std::string& expression) {
  const std::regex regex(expression);
  std::vector<std::string> found;
  for (std::sregex_iterator i(text.begin(), text.end(), regex), end; i != end; ++i) found.push_back((*i)[1]);
  return found;
}

// ---- what the library says about itself ----

TEST(Abi, Version_Loaded_MatchesHeader) {
  EXPECT_EQ(rfn_abi_version(), (RFN_ABI_MAJOR << 16) | RFN_ABI_MINOR);
  EXPECT_TRUE(std::regex_match(rfn_version(), std::regex(R"(\d+\.\d+\.\d+)"))) << rfn_version();
}

// Lines "name:size:field@offset,..." against the structs as the header's text has them.
TEST(Abi, Describe_EveryStruct_HasTheFieldsOfTheHeader) {
  std::map<std::string, std::vector<std::string>> wanted;
  const std::string text = header();
  const std::regex structs(R"(typedef struct (rfn_\w+) \{([^}]*)\})");
  for (std::sregex_iterator i(text.begin(), text.end(), structs), end; i != end; ++i) {
    wanted[(*i)[1]] = find_all((*i)[2], R"((\w+)(?:\[\d+\])?;)");
  }
  ASSERT_GE(wanted.size(), 16u);
  std::istringstream lines(rfn_abi_describe());
  std::string line;
  size_t count = 0;
  for (; std::getline(lines, line); ++count) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    const std::string name = line.substr(0, first);
    ASSERT_TRUE(wanted.count(name)) << line;
    EXPECT_EQ(find_all(line.substr(second), "(\\w+)@\\d+"), wanted[name]) << name;
    EXPECT_GT(std::stoi(line.substr(first + 1)), 0) << line;
  }
  EXPECT_EQ(count, wanted.size());
}

TEST(Abi, Describe_Offsets_AreTheCompilers) {
  const std::string text = rfn_abi_describe();
  const auto has = [&](const std::string& piece) { return text.find(piece) != std::string::npos; };
  EXPECT_TRUE(has("rfn_tensor:" + std::to_string(sizeof(rfn_tensor)) + ":struct_size@0,"));
  EXPECT_TRUE(has(",bytes@" + std::to_string(offsetof(rfn_tensor, bytes)) + "\n"));
  EXPECT_TRUE(has(",range_report@" + std::to_string(offsetof(rfn_reversible_block, range_report)) + ",parameters@" +
                  std::to_string(offsetof(rfn_reversible_block, parameters)) + ","));
  EXPECT_TRUE(has("rfn_attention_options:" + std::to_string(sizeof(rfn_attention_options)) + ":"));
}

// The exported symbols are the functions of the header: no more, no less.
TEST(Abi, Exports_AreTheFunctionsOfTheHeader) {
  const std::vector<std::string> functions = find_all(header(), R"(RFN_API [\w ]+?\*? ?(rfn_\w+)\()");
  const std::set<std::string> wanted(functions.begin(), functions.end());
  ASSERT_GE(wanted.size(), 60u);
  FILE* const pipe = popen("nm -D --defined-only '" RFN_TEST_LIBRARY "'", "r");
  ASSERT_NE(pipe, nullptr);
  std::set<std::string> exported;
  char line[512];
  while (std::fgets(line, sizeof(line), pipe) != nullptr) {
    const std::string text = line;
    exported.insert(text.substr(text.rfind(' ') + 1, text.size() - text.rfind(' ') - 2));
  }
  ASSERT_EQ(pclose(pipe), 0);
  EXPECT_EQ(exported, wanted);
}

TEST(Abi, BuildInfo_NamesCompilerSimdAndBlas) {
  const std::string info = rfn_build_info();
  for (const std::string key :
       {"version", "compiler", "simd", "simd_available", "blas", "kernel", "backends", "cpu_missing", "cuda_missing"}) {
    EXPECT_NE(info.find('"' + key + "\": "), std::string::npos) << key << " in " << info;
  }
  const char* const simd = std::getenv("RFN_SIMD");
  if (simd != nullptr) {
    EXPECT_NE(info.find("\"simd\": \"" + std::string(simd) + "\""), std::string::npos) << info;
  }
  EXPECT_EQ(std::count(info.begin(), info.end(), '"') % 2, 0) << info;
}

TEST(Abi, LastError_IsOfTheThread) {
  EXPECT_TRUE(Fails(rfn_fill_zero(nullptr, nullptr, 0), RFN_INVALID_ARGUMENT,
                    {"rfn_fill_zero: stream: expected a pointer, got NULL"}));
  const std::string before = rfn_last_error();
  std::thread([] {
    EXPECT_STREQ(rfn_last_error(), "");
    EXPECT_NE(rfn_stream_synchronize(nullptr), RFN_OK);
  }).join();
  rfn_build_info();
  rfn_context_destroy(nullptr);
  EXPECT_EQ(rfn_last_error(), before);
}

// ---- every function with NULL ----

TEST(Abi, Functions_Null_Refused) {
  const Context context;
  const Stream stream(context);
  rfn_event* event = nullptr;
  ASSERT_TRUE(Ok(rfn_event_create(context, &event)));
  rfn_stream* stream_out = nullptr;
  rfn_event* event_out = nullptr;
  void* buffer = nullptr;
  int32_t number = 0;
  int64_t bytes = 0;
  double milliseconds = 0;
  char text[8];
  const auto refused = [](rfn_status status, const char* argument) {
    EXPECT_TRUE(Fails(status, RFN_INVALID_ARGUMENT, {argument, "expected a pointer, got NULL"}));
  };
  refused(rfn_device_count(RFN_DEVICE_CPU, nullptr), "rfn_device_count: count");
  refused(rfn_device_describe(RFN_DEVICE_CPU, 0, nullptr, 8), "rfn_device_describe: text");
  refused(rfn_context_create(RFN_DEVICE_CPU, 0, 1, nullptr), "rfn_context_create: out");
  refused(rfn_context_threads(nullptr, &number), "context");
  refused(rfn_context_threads(context, nullptr), "threads");
  refused(rfn_context_set_precision(nullptr, RFN_PRECISION_F32), "context");
  refused(rfn_context_precision(nullptr, &number), "context");
  refused(rfn_context_precision(context, nullptr), "precision");
  refused(rfn_op_supported(nullptr, "rfn_linear_forward", &number), "context");
  refused(rfn_op_supported(context, nullptr, &number), "function");
  refused(rfn_op_supported(context, "rfn_linear_forward", nullptr), "supported");
  refused(rfn_memory_info(nullptr, &bytes, &bytes), "context");
  refused(rfn_memory_info(context, nullptr, &bytes), "free_bytes");
  refused(rfn_memory_info(context, &bytes, nullptr), "total_bytes");
  refused(rfn_stream_create(nullptr, &stream_out), "context");
  refused(rfn_stream_create(context, nullptr), "out");
  refused(rfn_stream_wrap(nullptr, text, &stream_out), "context");
  refused(rfn_stream_wrap(context, text, nullptr), "out");
  refused(rfn_stream_synchronize(nullptr), "stream");
  refused(rfn_event_create(nullptr, &event_out), "context");
  refused(rfn_event_create(context, nullptr), "out");
  refused(rfn_event_record(nullptr, stream), "event");
  refused(rfn_event_record(event, nullptr), "stream");
  refused(rfn_event_wait(nullptr, stream), "event");
  refused(rfn_event_wait(event, nullptr), "stream");
  refused(rfn_event_elapsed(nullptr, event, &milliseconds), "start");
  refused(rfn_event_elapsed(event, nullptr, &milliseconds), "stop");
  refused(rfn_event_elapsed(event, event, nullptr), "milliseconds");
  refused(rfn_buffer_allocate(nullptr, RFN_MEMORY_DEVICE, 8, &buffer), "context");
  refused(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, 8, nullptr), "out");
  refused(rfn_buffer_free(nullptr, RFN_MEMORY_DEVICE, text), "context");
  refused(rfn_copy(nullptr, text, text + 4, 4, RFN_COPY_DEVICE_TO_DEVICE), "stream");
  refused(rfn_copy(stream, nullptr, text, 4, RFN_COPY_DEVICE_TO_DEVICE), "destination");
  refused(rfn_copy(stream, text, nullptr, 4, RFN_COPY_DEVICE_TO_DEVICE), "source");
  refused(rfn_fill_zero(nullptr, text, 4), "stream");
  refused(rfn_fill_zero(stream, nullptr, 4), "destination");
  // Ends of life take NULL.
  rfn_context_destroy(nullptr);
  rfn_stream_destroy(nullptr);
  rfn_event_destroy(nullptr);
  EXPECT_TRUE(Ok(rfn_buffer_free(context, RFN_MEMORY_DEVICE, nullptr)));
  rfn_event_destroy(event);
}

// ---- contexts ----

TEST(Contexts, Create_WrongArguments_Refused) {
  int stand_in = 0;
  const auto refused = [&](rfn_status expected, int32_t type, int32_t index, int32_t threads, const char* argument) {
    rfn_context* context = reinterpret_cast<rfn_context*>(&stand_in);
    EXPECT_TRUE(Fails(rfn_context_create(type, index, threads, &context), expected, {argument}));
    EXPECT_EQ(context, nullptr);
  };
  refused(RFN_INVALID_ARGUMENT, -1, 0, 1, "device_type");
  refused(RFN_INVALID_ARGUMENT, 3, 0, 1, "device_type");
  refused(RFN_INVALID_ARGUMENT, RFN_DEVICE_CPU, 1, 1, "device_index");
  refused(RFN_INVALID_ARGUMENT, RFN_DEVICE_CPU, -1, 1, "device_index");
  refused(RFN_INVALID_ARGUMENT, RFN_DEVICE_CPU, 0, -1, "threads");
  refused(RFN_INVALID_ARGUMENT, RFN_DEVICE_CPU, 0, 1025, "threads");
}

TEST(Contexts, Threads_AskedFor_AreGiven) {
  int32_t threads = 0;
  EXPECT_TRUE(Ok(rfn_context_threads(Context(3), &threads)));
  EXPECT_EQ(threads, 3);
  EXPECT_TRUE(Ok(rfn_context_threads(Context(0), &threads)));
  EXPECT_GE(threads, 1);
  EXPECT_LE(threads, static_cast<int32_t>(std::thread::hardware_concurrency()));
}

TEST(Contexts, Destroy_WithStreamsAndBuffers_TheyStayUsable) {
  const int64_t before = rfn_live_objects();
  rfn_context* context = nullptr;
  rfn_stream* stream = nullptr;
  rfn_event* event = nullptr;
  void* buffer = nullptr;
  ASSERT_TRUE(Ok(rfn_context_create(RFN_DEVICE_CPU, 0, 1, &context)));
  ASSERT_TRUE(Ok(rfn_stream_create(context, &stream)));
  ASSERT_TRUE(Ok(rfn_event_create(context, &event)));
  ASSERT_TRUE(Ok(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, 100, &buffer)));
  EXPECT_EQ(rfn_live_objects(), before + 4);
  rfn_context_destroy(context);
  EXPECT_TRUE(Ok(rfn_fill_zero(stream, buffer, 100)));
  EXPECT_TRUE(Ok(rfn_event_record(event, stream)));
  EXPECT_TRUE(Ok(rfn_stream_synchronize(stream)));
  rfn_stream_destroy(stream);
  rfn_event_destroy(event);
  EXPECT_TRUE(Ok(rfn_buffer_free(context, RFN_MEMORY_DEVICE, buffer)));
  EXPECT_EQ(rfn_live_objects(), before);
}

TEST(Contexts, MemoryInfo_FreeIsWithinTotal) {
  int64_t free_bytes = 0, total_bytes = 0;
  EXPECT_TRUE(Ok(rfn_memory_info(Context(), &free_bytes, &total_bytes)));
  EXPECT_GT(free_bytes, 0);
  EXPECT_LE(free_bytes, total_bytes);
}

TEST(Devices, Describe_GivesJsonOrSaysHowMuchRoomItNeeds) {
  char text[1024];
  int32_t count = 0;
  EXPECT_TRUE(Ok(rfn_device_count(RFN_DEVICE_CPU, &count)));
  EXPECT_EQ(count, 1);
  ASSERT_TRUE(Ok(rfn_device_describe(RFN_DEVICE_CPU, 0, text, sizeof(text))));
  const std::string json = text;
  for (const char* const key : {"{\"name\": \"", "\"memory_bytes\": ", "\"processors\": "})
    EXPECT_NE(json.find(key), std::string::npos) << json;
  const int64_t needed = static_cast<int64_t>(json.size()) + 1;
  EXPECT_TRUE(Fails(rfn_device_describe(RFN_DEVICE_CPU, 0, text, 4), RFN_INVALID_ARGUMENT, {"capacity"}));
  EXPECT_STREQ(text, "");
  EXPECT_GT(needed, 4);
  EXPECT_TRUE(Fails(rfn_device_describe(RFN_DEVICE_CPU, 0, text, 0), RFN_INVALID_ARGUMENT, {"capacity"}));
  EXPECT_TRUE(
      Fails(rfn_device_describe(RFN_DEVICE_CPU, 1, text, sizeof(text)), RFN_INVALID_ARGUMENT, {"device_index"}));
  EXPECT_TRUE(Fails(rfn_device_describe(9, 0, text, sizeof(text)), RFN_INVALID_ARGUMENT, {"device_type"}));
  EXPECT_TRUE(Fails(rfn_device_count(9, &count), RFN_INVALID_ARGUMENT, {"device_type"}));
}

// ---- streams and events ----

TEST(Streams, Wrap_OnCpu_Unsupported) {
  const Context context;
  int native = 0;
  rfn_stream* stream = nullptr;
  EXPECT_TRUE(Fails(rfn_stream_wrap(context, &native, &stream), RFN_UNSUPPORTED, {"rfn_stream_wrap"}));
  EXPECT_EQ(stream, nullptr);
}

TEST(Events, Elapsed_RecordedOnly) {
  const Context context, other;
  const Stream stream(context), other_stream(other);
  rfn_event *start = nullptr, *stop = nullptr;
  ASSERT_TRUE(Ok(rfn_event_create(context, &start)));
  ASSERT_TRUE(Ok(rfn_event_create(context, &stop)));
  double milliseconds = -1;
  EXPECT_TRUE(Fails(rfn_event_elapsed(start, stop, &milliseconds), RFN_INVALID_ARGUMENT, {"start", "recorded"}));
  EXPECT_TRUE(Ok(rfn_event_record(start, stream)));
  EXPECT_TRUE(Fails(rfn_event_elapsed(start, stop, &milliseconds), RFN_INVALID_ARGUMENT, {"stop", "recorded"}));
  EXPECT_EQ(milliseconds, -1);
  EXPECT_TRUE(Ok(rfn_event_wait(start, stream)));
  EXPECT_TRUE(Ok(rfn_event_record(stop, stream)));
  EXPECT_TRUE(Ok(rfn_event_elapsed(start, stop, &milliseconds)));
  EXPECT_GE(milliseconds, 0);
  EXPECT_TRUE(Fails(rfn_event_record(start, other_stream), RFN_INVALID_ARGUMENT, {"context"}));
  EXPECT_TRUE(Ok(rfn_event_wait(start, other_stream)));
  rfn_event_destroy(start);
  rfn_event_destroy(stop);
}

// ---- buffers and copies ----

TEST(Buffers, Allocate_AnySize_AlignedAndUsableToTheEnd) {
  const Context context;
  for (const int32_t memory : {RFN_MEMORY_DEVICE, RFN_MEMORY_HOST}) {
    for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{4096}, int64_t{4097}, int64_t{1} << 20,
                                (int64_t{4} << 20) + 3, int64_t{9} << 20}) {
      void* buffer = nullptr;
      ASSERT_TRUE(Ok(rfn_buffer_allocate(context, memory, bytes, &buffer)));
      ASSERT_NE(buffer, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer) % 256, 0u);
      if (bytes > 0) std::memset(buffer, 0x5A, static_cast<size_t>(bytes));
      EXPECT_TRUE(Ok(rfn_buffer_free(context, memory, buffer)));
      EXPECT_TRUE(Fails(rfn_buffer_free(context, memory, buffer), RFN_INVALID_ARGUMENT, {"buffer"})) << "freed twice";
    }
  }
}

TEST(Buffers, Allocate_MoreThanThereIs_OutOfMemoryWithBothSizes) {
  const Context context;
  const int64_t before = rfn_live_objects();
  int64_t free_bytes = 0, total_bytes = 0;
  ASSERT_TRUE(Ok(rfn_memory_info(context, &free_bytes, &total_bytes)));
  for (const int64_t bytes : {total_bytes + 1, INT64_MAX / 2, INT64_MAX}) {
    void* buffer = &free_bytes;
    EXPECT_TRUE(Fails(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, bytes, &buffer), RFN_OUT_OF_MEMORY,
                      {std::to_string(bytes), std::to_string(total_bytes), "free"}));
    EXPECT_EQ(buffer, nullptr);
  }
  EXPECT_EQ(rfn_live_objects(), before);
}

TEST(Buffers, WrongArguments_Refused) {
  const Context context, other;
  void* buffer = nullptr;
  EXPECT_TRUE(Fails(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, -1, &buffer), RFN_INVALID_ARGUMENT, {"bytes"}));
  EXPECT_TRUE(Fails(rfn_buffer_allocate(context, 2, 8, &buffer), RFN_INVALID_ARGUMENT, {"memory"}));
  ASSERT_TRUE(Ok(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, 8, &buffer)));
  EXPECT_TRUE(Fails(rfn_buffer_free(other, RFN_MEMORY_DEVICE, buffer), RFN_INVALID_ARGUMENT, {"this context"}));
  EXPECT_TRUE(Fails(rfn_buffer_free(context, RFN_MEMORY_DEVICE, static_cast<char*>(buffer) + 4), RFN_INVALID_ARGUMENT,
                    {"buffer"}));
  EXPECT_TRUE(Fails(rfn_buffer_free(context, -1, buffer), RFN_INVALID_ARGUMENT, {"memory"}));
  EXPECT_TRUE(Ok(rfn_buffer_free(context, RFN_MEMORY_DEVICE, buffer)));
}

TEST(Buffers, Free_FromAnotherThreadDuringACall_Works) {
  // Garbage collectors free on threads of their own, whatever the calling thread does.
  const Context context;
  const Stream stream(context);
  std::vector<void*> buffers(200);
  for (void*& buffer : buffers) ASSERT_TRUE(Ok(rfn_buffer_allocate(context, RFN_MEMORY_DEVICE, 64, &buffer)));
  std::atomic<bool> done{false};
  std::thread collector([&] {
    for (void* const buffer : buffers) EXPECT_TRUE(Ok(rfn_buffer_free(context, RFN_MEMORY_DEVICE, buffer)));
    done = true;
  });
  std::vector<char> memory(4096);
  do {
    EXPECT_TRUE(Ok(rfn_fill_zero(stream, memory.data(), 4096)));
  } while (!done);
  collector.join();
}

TEST(Copies, EveryDirection_MovesTheBytes) {
  const Context context;
  const Stream stream(context);
  for (const int32_t direction : {RFN_COPY_HOST_TO_DEVICE, RFN_COPY_DEVICE_TO_HOST, RFN_COPY_DEVICE_TO_DEVICE}) {
    const std::vector<int32_t> source = Random(direction).integers(100, 1000);
    std::vector<int32_t> destination(100);
    EXPECT_TRUE(Ok(rfn_copy(stream, destination.data(), source.data(), 400, direction)));
    EXPECT_EQ(destination, source);
    EXPECT_TRUE(Ok(rfn_fill_zero(stream, destination.data() + 1, 396)));
    EXPECT_EQ(destination[0], source[0]);
    EXPECT_EQ(std::count(destination.begin(), destination.end(), 0), 99 + (source[0] == 0));
  }
  EXPECT_TRUE(Ok(rfn_copy(stream, nullptr, nullptr, 0, RFN_COPY_HOST_TO_DEVICE)));
  EXPECT_TRUE(Ok(rfn_fill_zero(stream, nullptr, 0)));
}

TEST(Copies, WrongArguments_Refused) {
  const Context context;
  const Stream stream(context);
  char memory[16] = {1, 2, 3};
  EXPECT_TRUE(
      Fails(rfn_copy(stream, memory, memory + 8, -1, RFN_COPY_DEVICE_TO_DEVICE), RFN_INVALID_ARGUMENT, {"bytes"}));
  EXPECT_TRUE(
      Fails(rfn_copy(stream, memory, memory + 8, 9, RFN_COPY_DEVICE_TO_DEVICE), RFN_INVALID_ARGUMENT, {"overlap"}));
  EXPECT_TRUE(
      Fails(rfn_copy(stream, memory + 8, memory, 9, RFN_COPY_DEVICE_TO_DEVICE), RFN_INVALID_ARGUMENT, {"overlap"}));
  EXPECT_TRUE(Fails(rfn_copy(stream, memory, memory, 1, RFN_COPY_DEVICE_TO_DEVICE), RFN_INVALID_ARGUMENT, {"overlap"}));
  for (const int32_t direction : {-1, 3}) {
    EXPECT_TRUE(Fails(rfn_copy(stream, memory, memory + 8, 8, direction), RFN_INVALID_ARGUMENT, {"direction"}));
  }
  EXPECT_TRUE(Fails(rfn_fill_zero(stream, memory, -1), RFN_INVALID_ARGUMENT, {"bytes"}));
  EXPECT_EQ(memory[2], 3);
  EXPECT_TRUE(Ok(rfn_copy(stream, memory, memory + 8, 8, RFN_COPY_DEVICE_TO_DEVICE)));
}

// ---- plug-ins ----

struct Environment {
  explicit Environment(const char* plugin) { setenv("RFN_CUDA_PLUGIN", plugin, 1); }
  ~Environment() { unsetenv("RFN_CUDA_PLUGIN"); }
};

// The plug-in that works, as a device of type CUDA.
class Plugin {
 public:
  Plugin() : environment_(RFN_TEST_PLUGIN_GOOD), library_(dlopen(RFN_TEST_PLUGIN_GOOD, RTLD_NOW)) {
    EXPECT_NE(library_, nullptr) << dlerror();
    EXPECT_TRUE(Ok(rfn_context_create(RFN_DEVICE_CUDA, 1, 0, &context)));
    EXPECT_TRUE(Ok(rfn_stream_create(context, &stream)));
  }
  ~Plugin() {
    rfn_stream_destroy(stream);
    rfn_context_destroy(context);
    dlclose(library_);
  }
  template <class Function>
  Function* function(const char* name) const {
    return reinterpret_cast<Function*>(dlsym(library_, name));
  }

  rfn_context* context = nullptr;
  rfn_stream* stream = nullptr;

 private:
  Environment environment_;
  void* library_;
};

// First of the plug-in tests: a plug-in that was found stays loaded.
TEST(Plugins, A_MissingOrWrong_NoDeviceAndAReason) {
  const auto missing = [](const char* plugin, const std::string& reason) {
    SCOPED_TRACE(plugin);
    const Environment environment(plugin);
    int32_t count = -1;
    EXPECT_TRUE(Ok(rfn_device_count(RFN_DEVICE_CUDA, &count)));
    EXPECT_EQ(count, 0);
    EXPECT_NE(std::string(rfn_last_error()).find(reason), std::string::npos) << rfn_last_error();
    rfn_context* context = nullptr;
    EXPECT_TRUE(
        Fails(rfn_context_create(RFN_DEVICE_CUDA, 0, 0, &context), RFN_UNSUPPORTED, {"CUDA is not available", reason}));
    EXPECT_EQ(context, nullptr);
    char text[256];
    EXPECT_TRUE(Fails(rfn_device_describe(RFN_DEVICE_CUDA, 0, text, sizeof(text)), RFN_UNSUPPORTED, {reason}));
    EXPECT_NE(std::string(rfn_build_info()).find("\"backends\": [\"cpu\"]"), std::string::npos);
  };
  missing("/nowhere/libreformer_native_cuda.so", "/nowhere/libreformer_native_cuda.so");
  missing(RFN_TEST_PLUGIN_NO_SYMBOL, "rfn_cuda_backend");
  missing(RFN_TEST_PLUGIN_OTHER_ABI, "expected backend table " + std::to_string(kBackendAbi) + " of");
  missing(RFN_TEST_PLUGIN_REFUSES, "the driver is too old");
}

TEST(Plugins, Good_IsADeviceLikeAnyOther) {
  const Plugin plugin;
  int32_t count = 0;
  EXPECT_TRUE(Ok(rfn_device_count(RFN_DEVICE_CUDA, &count)));
  EXPECT_EQ(count, 2);
  rfn_context* context = nullptr;
  EXPECT_TRUE(Fails(rfn_context_create(RFN_DEVICE_CUDA, 2, 0, &context), RFN_INVALID_ARGUMENT, {"device_index", "2"}));
  char text[64];
  EXPECT_TRUE(
      Fails(rfn_device_describe(RFN_DEVICE_CUDA, 0, text, sizeof(text)), RFN_DEVICE_ERROR, {"no description today"}));
  EXPECT_NE(std::string(rfn_build_info()).find("\"backends\": [\"cpu\", \"cuda\"]"), std::string::npos);
  void* buffer = nullptr;
  EXPECT_TRUE(Ok(rfn_buffer_allocate(plugin.context, RFN_MEMORY_DEVICE, 64, &buffer)));
  EXPECT_TRUE(Ok(rfn_buffer_free(plugin.context, RFN_MEMORY_DEVICE, buffer)));
}

TEST(Plugins, OpThatItLacks_Unsupported) {
  const Plugin plugin;
  rfn_layer_norm op = make_op<rfn_layer_norm>();
  const Tensor<float> x({2, 3}), weight({3}), bias({3}), y({2, 3});
  op.epsilon = 1e-5f;
  op.x = x;
  op.weight = weight;
  op.bias = bias;
  op.y = y;
  int64_t bytes = 0;
  EXPECT_TRUE(Fails(rfn_layer_norm_workspace(plugin.context, &op, RFN_PASS_FORWARD, &bytes), RFN_UNSUPPORTED,
                    {"rfn_layer_norm", "test backend"}));
  EXPECT_TRUE(Fails(rfn_layer_norm_forward(plugin.stream, &op, nullptr, 0), RFN_UNSUPPORTED,
                    {"rfn_layer_norm_forward", "test backend"}));
}

// What the header promises to be asked for beforehand: every function that runs an op, on a backend that has them all
// and on one that has none.
TEST(Plugins, OpSupported_EveryFunctionThatRunsAnOp) {
  const Plugin plugin;
  rfn_context* cpu = nullptr;
  ASSERT_TRUE(Ok(rfn_context_create(RFN_DEVICE_CPU, 0, 1, &cpu)));
  const std::vector<std::string> functions =
      find_all(header(), R"(RFN_API rfn_status (rfn_\w+)\(rfn_stream\* stream, const rfn_)");
#define RFN_TWO(...) +2
#define RFN_ONE(...) +1
  const size_t listed = 0 RFN_OPS_WITH_BACKWARD(RFN_TWO) RFN_OPS_OF_ONE_PASS(RFN_ONE) RFN_OPS_WITHOUT_WORKSPACE(RFN_ONE)
      RFN_LSH_STAGES(RFN_ONE);
#undef RFN_TWO
#undef RFN_ONE
  ASSERT_EQ(functions.size(), listed);
  for (const std::string& function : functions) {
    int32_t supported = -1;
    EXPECT_TRUE(Ok(rfn_op_supported(cpu, function.c_str(), &supported)));
    EXPECT_EQ(supported, 1) << function;
    EXPECT_TRUE(Ok(rfn_op_supported(plugin.context, function.c_str(), &supported)));
    EXPECT_EQ(supported, 0) << function;
  }
  for (const char* const other : {"", "rfn_", "layer_norm", "rfn_layer_norm", "rfn_layer_norm_workspace", "rfn_copy"}) {
    int32_t supported = -7;
    EXPECT_TRUE(
        Fails(rfn_op_supported(cpu, other, &supported), RFN_INVALID_ARGUMENT, {"rfn_op_supported", "function"}));
    EXPECT_EQ(supported, -7) << other;
  }
  rfn_context_destroy(cpu);
}

TEST(Plugins, Exceptions_BecomeStatuses) {
  const Plugin plugin;
  char memory[8] = {};
  EXPECT_TRUE(Fails(rfn_copy(plugin.stream, memory, memory + 4, 4, RFN_COPY_DEVICE_TO_DEVICE), RFN_INTERNAL,
                    {"thrown by copy"}));
  EXPECT_TRUE(Fails(rfn_fill_zero(plugin.stream, memory, 4), RFN_INTERNAL, {"exception"}));
  EXPECT_TRUE(Ok(rfn_stream_synchronize(plugin.stream))) << "the context is free again";
}

TEST(Plugins, StickyError_LaterCallsReportDeviceLost) {
  const Plugin plugin;
  void* buffer = nullptr;
  ASSERT_TRUE(Ok(rfn_buffer_allocate(plugin.context, RFN_MEMORY_DEVICE, 64, &buffer)));
  plugin.function<void()>("test_plugin_break_next")();
  EXPECT_TRUE(Fails(rfn_stream_synchronize(plugin.stream), RFN_DEVICE_ERROR, {"fell over"}));
  EXPECT_TRUE(Fails(rfn_stream_synchronize(plugin.stream), RFN_DEVICE_LOST, {"sticky"}));
  int64_t bytes = 0;
  void* another = nullptr;
  rfn_stream* stream = nullptr;
  EXPECT_TRUE(Fails(rfn_memory_info(plugin.context, &bytes, &bytes), RFN_DEVICE_LOST, {}));
  EXPECT_TRUE(Fails(rfn_buffer_allocate(plugin.context, RFN_MEMORY_DEVICE, 8, &another), RFN_DEVICE_LOST, {}));
  EXPECT_TRUE(Fails(rfn_stream_create(plugin.context, &stream), RFN_DEVICE_LOST, {}));
  rfn_layer_norm op = make_op<rfn_layer_norm>();
  EXPECT_TRUE(Fails(rfn_layer_norm_workspace(plugin.context, &op, RFN_PASS_FORWARD, &bytes), RFN_DEVICE_LOST, {}));
  EXPECT_TRUE(Fails(rfn_layer_norm_forward(plugin.stream, &op, nullptr, 0), RFN_DEVICE_LOST, {}));
  EXPECT_TRUE(Ok(rfn_buffer_free(plugin.context, RFN_MEMORY_DEVICE, buffer))) << "what lives can still be ended";
  const Plugin fresh;
  EXPECT_TRUE(Ok(rfn_stream_synchronize(fresh.stream))) << "a new context works";
}

// ---- one thread at a time ----

TEST(Plugins, SecondThreadDuringACall_Refused) {
  const Plugin plugin;
  ASSERT_NE(plugin.stream, nullptr);  // else nothing would ever wait
  const auto hold = plugin.function<void(int)>("test_plugin_hold");
  const auto waiting = plugin.function<int()>("test_plugin_waiting");
  hold(1);
  std::thread first([&] { EXPECT_TRUE(Ok(rfn_stream_synchronize(plugin.stream))); });
  while (waiting() == 0) std::this_thread::yield();
  void* buffer = nullptr;
  rfn_stream* stream = nullptr;
  EXPECT_TRUE(Fails(rfn_stream_synchronize(plugin.stream), RFN_BUSY, {"one thread at a time"}));
  EXPECT_TRUE(
      Fails(rfn_buffer_allocate(plugin.context, RFN_MEMORY_DEVICE, 8, &buffer), RFN_BUSY, {"one thread at a time"}));
  EXPECT_TRUE(Fails(rfn_stream_create(plugin.context, &stream), RFN_BUSY, {"one thread at a time"}));
  int64_t bytes = 0;
  EXPECT_TRUE(Ok(rfn_memory_info(plugin.context, &bytes, &bytes))) << "what only reads the context is free";
  hold(0);
  first.join();
  EXPECT_TRUE(Ok(rfn_stream_synchronize(plugin.stream)));
}

// Two threads that both call without pause: each call either works or is refused, and two contexts don't disturb each
// other.
TEST(Threads, TwoAtOnce_CallsWorkOrAreRefused) {
  const Context context(1), own(1);
  const Stream stream(context), own_stream(own);
  const int64_t n = 64, e = 64;
  const std::vector<float> values = Random(7).floats(n * e);
  std::atomic<int> worked{0}, refused{0};
  const auto run = [&](const Stream& used, bool alone) {
    const Tensor<float> x({n, e}, values), weight({e}, std::vector<float>(e, 1)), bias = Tensor<float>::zeros({e});
    const Tensor<float> y({n, e});
    rfn_layer_norm op = make_op<rfn_layer_norm>();
    op.epsilon = 1e-5f;
    op.x = x;
    op.weight = weight;
    op.bias = bias;
    op.y = y;
    for (int i = 0; i < 200; ++i) {
      const rfn_status status = forward(used, op);
      if (status == RFN_OK) {
        ++worked;
        continue;
      }
      ++refused;
      EXPECT_FALSE(alone);
      EXPECT_TRUE(Fails(status, RFN_BUSY, {"one thread at a time"}));
    }
  };
  std::thread a([&] { run(stream, false); }), b([&] { run(stream, false); }), c([&] { run(own_stream, true); });
  a.join();
  b.join();
  c.join();
  EXPECT_EQ(worked + refused, 600);
  EXPECT_GT(worked, 200);
}

}  // namespace
}  // namespace rfn::test
