// What a process does with the library, one story for each first argument; test_process.cpp runs them under limits and
// compares what they print. The library is loaded by name, the second argument.
#include <dlfcn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "reformer_native.h"

namespace {

struct Library {
  void* handle;
  decltype(&rfn_context_create) context_create;
  decltype(&rfn_context_destroy) context_destroy;
  decltype(&rfn_stream_create) stream_create;
  decltype(&rfn_stream_destroy) stream_destroy;
  decltype(&rfn_linear_forward) linear_forward;
  decltype(&rfn_last_error) last_error;

  explicit Library(const char* path) : handle(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (handle == nullptr) {
      std::printf("%s\n", dlerror());
      std::exit(3);
    }
    find("rfn_context_create", &context_create);
    find("rfn_context_destroy", &context_destroy);
    find("rfn_stream_create", &stream_create);
    find("rfn_stream_destroy", &stream_destroy);
    find("rfn_linear_forward", &linear_forward);
    find("rfn_last_error", &last_error);
  }

  template <class Function>
  void find(const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(handle, name));
    if (*function == nullptr) std::exit(3);
  }
};

// A product of several tiles, in memory of the program's own.
constexpr int64_t kRows = 3000, kInner = 80, kOuter = 120;
float x[kRows * kInner], weight[kOuter * kInner], y[kRows * kOuter];

rfn_tensor matrix(float* data, int64_t rows, int64_t columns) {
  rfn_tensor tensor = {};
  tensor.struct_size = sizeof tensor;
  tensor.dtype = RFN_F32;
  tensor.rank = 2;
  tensor.shape[0] = rows;
  tensor.shape[1] = columns;
  tensor.data = data;
  tensor.bytes = rows * columns * static_cast<int64_t>(sizeof(float));
  return tensor;
}

rfn_linear product() {
  for (int64_t i = 0; i < kRows * kInner; ++i) x[i] = static_cast<float>(i * 7919 % 1009) / 1009 - 0.5f;
  for (int64_t i = 0; i < kOuter * kInner; ++i) weight[i] = static_cast<float>(i * 104729 % 997) / 997 - 0.5f;
  rfn_linear op = {};
  op.struct_size = sizeof op;
  op.x = matrix(x, kRows, kInner);
  op.weight = matrix(weight, kOuter, kInner);
  op.y = matrix(y, kRows, kOuter);
  return op;
}

// FNV-1a of the result's bits.
uint64_t bits_of_y() {
  uint64_t hash = 14695981039346656037u;
  for (size_t i = 0; i < sizeof y; ++i)
    hash = (hash ^ reinterpret_cast<const unsigned char*>(y)[i]) * uint64_t{1099511628211};
  return hash;
}

// Runs the product twice and prints its bits, or the status and the sentence.
int run(const Library& library, rfn_context* context) {
  rfn_stream* stream = nullptr;
  rfn_linear op = product();
  rfn_status status = library.stream_create(context, &stream);
  for (int i = 0; i < 2 && status == RFN_OK; ++i) status = library.linear_forward(stream, &op, nullptr, 0);
  library.stream_destroy(stream);
  if (status == RFN_OK) {
    std::printf("bits %016" PRIx64 "\n", bits_of_y());
  } else {
    std::printf("status %d: %s\n", status, library.last_error());
  }
  std::fflush(stdout);
  return status == RFN_OK ? 0 : 1;
}

int open_and_run(const Library& library, int32_t threads) {
  rfn_context* context = nullptr;
  const rfn_status status = library.context_create(RFN_DEVICE_CPU, 0, threads, &context);
  if (status != RFN_OK) {
    std::printf("status %d: %s\n", status, library.last_error());
    return 1;
  }
  const int result = run(library, context);
  library.context_destroy(context);
  return result;
}

int exit_code_of(pid_t child) {
  int status = 0;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 4;
}

// threads N: an op with that many threads.
int threads(const char* path, int32_t count) { return open_and_run(Library(path), count); }

// processes N: the same where the system grants no further thread.
int processes(const char* path, int32_t count) {
  const Library library(path);
  // The limit doesn't bind root.
  if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) return 3;
  const rlimit none = {0, 0};
  if (setrlimit(RLIMIT_NPROC, &none) != 0) return 3;
  return open_and_run(library, count);
}

// memory N: the same where nothing more can be mapped.
int memory(const char* path, int32_t count) {
  const Library library(path);
  const rlimit none = {0, 0};
  if (setrlimit(RLIMIT_AS, &none) != 0) return 3;
  return open_and_run(library, count);
}

// fork N: an op in the parent, one in a child with the same context, one in a child's child with a new one, one in the
// parent while they have ended.
int forked(const char* path, int32_t count) {
  const Library library(path);
  rfn_context* context = nullptr;
  if (library.context_create(RFN_DEVICE_CPU, 0, count, &context) != RFN_OK) return 3;
  int result = run(library, context);
  const pid_t child = fork();
  if (child == 0) {
    int inside = run(library, context);
    const pid_t grandchild = fork();
    if (grandchild == 0) _exit(open_and_run(library, count));
    inside |= exit_code_of(grandchild);
    _exit(inside);
  }
  result |= exit_code_of(child);
  result |= run(library, context);
  library.context_destroy(context);
  return result;
}

// busyfork N: forks while other threads are inside ops of contexts of their own.
int busy_fork(const char* path, int32_t count) {
  const Library library(path);
  rfn_linear op = product();
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (int i = 0; i < 3; ++i) {
    others.emplace_back([&] {
      std::vector<float> own(kRows * kOuter);
      rfn_linear mine = op;
      mine.y = matrix(own.data(), kRows, kOuter);
      rfn_context* context = nullptr;
      rfn_stream* stream = nullptr;
      if (library.context_create(RFN_DEVICE_CPU, 0, count, &context) != RFN_OK) std::exit(3);
      if (library.stream_create(context, &stream) != RFN_OK) std::exit(3);
      while (!stop) library.linear_forward(stream, &mine, nullptr, 0);
      library.stream_destroy(stream);
      library.context_destroy(context);
    });
  }
  int result = 0;
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) _exit(open_and_run(library, count));
    result |= exit_code_of(child);
  }
  stop = true;
  for (std::thread& other : others) other.join();
  return result;
}

// reload N: an op, the library closed, the same again twice.
int reload(const char* path, int32_t count) {
  int result = 0;
  for (int i = 0; i < 3; ++i) {
    const Library library(path);
    result |= open_and_run(library, count);
    if (dlclose(library.handle) != 0) return 3;
    usleep(20000);  // threads that wait awake go to sleep, those that sleep stay
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::string story = argv[1];
  const int32_t count = std::atoi(argv[3]);
  if (story == "threads") return threads(argv[2], count);
  if (story == "processes") return processes(argv[2], count);
  if (story == "memory") return memory(argv[2], count);
  if (story == "fork") return forked(argv[2], count);
  if (story == "busyfork") return busy_fork(argv[2], count);
  if (story == "reload") return reload(argv[2], count);
  return 2;
}
