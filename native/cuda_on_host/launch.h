// How a kernel is started and how it gets shared memory on the host. Kernels use these through RFN_LAUNCH, RFN_SHARED
// and RFN_DYNAMIC_SHARED of cuda/device.cuh.
#pragma once
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include <cuda_runtime.h>

namespace rfn::cuda_on_host {

struct Launch {
  const char* name;
  const void* kernel;
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  std::function<void()> body;  // the kernel with its arguments, copied when it was launched
};
cudaError_t launch(Launch launch, cudaStream_t stream);

// An argument that points to neither device nor pinned memory would fault on a device: refused at launch.
bool kernel_may_use(const void* pointer);
cudaError_t refuse_argument(const char* kernel_name, int argument, const void* pointer);

template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                          size_t dynamic_shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernel parameters are copied as bytes");
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a kernel's parameters fit in 4 KB");
  std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  int index = 0, wrong = -1;
  const void* wrong_pointer = nullptr;
  const auto check = [&](const auto& value) {
    if constexpr (std::is_pointer_v<std::decay_t<decltype(value)>>) {
      if (wrong < 0 && value != nullptr && !kernel_may_use(static_cast<const void*>(value))) {
        wrong = index;
        wrong_pointer = static_cast<const void*>(value);
      }
    }
    ++index;
  };
  std::apply([&](const Parameters&... value) { (check(value), ...); }, values);
  if (wrong >= 0) return refuse_argument(name, wrong, wrong_pointer);
  return launch({name, reinterpret_cast<const void*>(kernel), grid, block, dynamic_shared_bytes,
                 [kernel, values] { std::apply(kernel, values); }},
                stream);
}

// ---- shared memory ------------------------------------------------------------------------------

inline constexpr size_t kSharedAlignment = 16;

void* dynamic_shared();
int new_shared_variable();  // a number for each place that declares one
void* shared_variable(int number, size_t bytes, const char* name);

// One place of one instantiation of one kernel is one Place (the type of a lambda written there), hence one variable
// per block.
template <class T, class Place>
T& shared_variable(const char* name, Place) {
  static_assert(alignof(T) <= kSharedAlignment);
  static const int number = new_shared_variable();
  return *static_cast<T*>(shared_variable(number, sizeof(T), name));
}

}  // namespace rfn::cuda_on_host
