// What the tests of the execution layer share.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "cuda/device.cuh"
#include "cuda_on_host/control.h"
#include "cuda_on_host/fiber.h"
#include "cuda_on_host/race.h"

namespace rfn::cuda_on_host {

#define ASSERT_CUDA(call) ASSERT_EQ((call), cudaSuccess) << last_report()
#define EXPECT_CUDA(call) EXPECT_EQ((call), cudaSuccess) << last_report()

// Device memory with a vector's contents.
template <class T>
class Device {
 public:
  explicit Device(size_t count) : count_(count) { EXPECT_EQ(cudaMalloc(&data_, count * sizeof(T)), cudaSuccess); }
  explicit Device(const std::vector<T>& values) : Device(values.size()) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  T* get() const { return data_; }
  // Empty when the device has faulted.
  std::vector<T> read() const {
    std::vector<T> values(count_);
    if (cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost) != cudaSuccess) values.clear();
    return values;
  }

 private:
  size_t count_;
  T* data_ = nullptr;
};

// Each test begins and ends with a fresh device and must leave nothing behind.
class CudaOnHost : public testing::Test {
 protected:
  void SetUp() override { reset(); }
  void TearDown() override {
    if (last_report().empty()) {
      for (const LiveObject& object : live_objects())
        ADD_FAILURE() << "leaked " << object.kind << ", object " << object.number;
    }
    reset();
  }
  void set_seed(uint64_t seed) {
    Settings s = settings();
    s.seed = seed;
    s.alignment = 16;  // bounds exact to 16 bytes
    set_settings(s);
  }
};

}  // namespace rfn::cuda_on_host
