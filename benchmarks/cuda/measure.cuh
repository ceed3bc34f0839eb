// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <blockattn/cuda/tensor_core.cuh>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

/// \file
/// What the CUDA benchmarks share: device memory, random bf16 values, medians, the rate of a copy.

namespace measure {

inline void require(bool success, const char* what) {
  if (success) return;
  std::fprintf(stderr, "%s failed\n", what);
  std::exit(1);
}
inline void require(cudaError_t status, const char* what) { require(status == cudaSuccess, what); }

struct free_device {
  void operator()(void* memory) const { static_cast<void>(cudaFree(memory)); }
};
using device_memory = std::unique_ptr<void, free_device>;

inline device_memory allocate(std::size_t bytes) {
  void* memory = nullptr;
  require(cudaMalloc(&memory, bytes), "cudaMalloc");
  return device_memory(memory);
}

/// Roughly normal values from a hash of their index (the sum of four uniform ones).
static __global__ void fill_kernel(std::uint16_t* values, std::size_t count, std::uint64_t seed) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    std::uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ULL + seed;
    float sum = 0;
    for (int k = 0; k < 4; ++k) {
      x ^= x >> 33;
      x *= 0xff51afd7ed558ccdULL;
      x ^= x >> 29;
      sum += static_cast<float>(x & 0xffff) / 65536.0F - 0.5F;
    }
    values[i] = static_cast<std::uint16_t>(
        blockattn::cuda::detail::tensor_operand<blockattn::storage_format::bf16>::pack(1.73F * sum,
                                                                                       0.0F));
  }
}

inline device_memory random_values(std::size_t count, std::uint64_t seed) {
  device_memory memory = allocate(2 * count);
  fill_kernel<<<1024, 256>>>(static_cast<std::uint16_t*>(memory.get()), count, seed);
  require(cudaDeviceSynchronize(), "fill_kernel");
  return memory;
}

/// Median milliseconds of 15 runs after 3 warm-ups.
template <class Run>
double milliseconds(const Run& run) {
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "cudaEventCreate");
  require(cudaEventCreate(&end), "cudaEventCreate");
  for (int i = 0; i < 3; ++i) run();
  std::vector<float> times(15);
  for (float& time : times) {
    require(cudaEventRecord(begin), "cudaEventRecord");
    run();
    require(cudaEventRecord(end), "cudaEventRecord");
    require(cudaEventSynchronize(end), "the timed work");
    require(cudaEventElapsedTime(&time, begin, end), "cudaEventElapsedTime");
  }
  std::sort(times.begin(), times.end());
  require(cudaEventDestroy(begin), "cudaEventDestroy");
  require(cudaEventDestroy(end), "cudaEventDestroy");
  return times[times.size() / 2];
}

inline std::span<std::byte> bytes(const device_memory& memory, std::size_t size) {
  return {static_cast<std::byte*>(memory.get()), size};
}

/// Bytes read and written by a device-to-device copy of 2 GiB, in TB/s.
inline double copy_rate() {
  const std::size_t size = std::size_t{2} << 30;
  const device_memory from = allocate(size);
  const device_memory to = allocate(size);
  const double time = milliseconds([&] {
    require(cudaMemcpyAsync(to.get(), from.get(), size, cudaMemcpyDeviceToDevice), "the copy");
  });
  return 2.0 * static_cast<double>(size) / time * 1e-9;
}

}  // namespace measure
