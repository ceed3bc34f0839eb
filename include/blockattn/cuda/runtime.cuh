// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <blockattn/core/error.hpp>
#include <blockattn/core/workspace.hpp>
#include <blockattn/cuda/config.cuh>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Throws `error` with CUDA's own words when a call of its runtime failed.
inline void require_success(cudaError_t status, const char* function, const char* action) {
  if (status == cudaSuccess) return;
  blockattn::detail::fail(function, ": ", action, " failed: ", cudaGetErrorString(status));
}

/// Null for an empty span: what is not given may still have an address.
template <class T>
T* data_of(std::span<T> values) {
  return values.empty() ? nullptr : values.data();
}

/// What tables in staging memory are aligned to.
inline constexpr index_t staging_alignment = 16;

/// Refuses memory that `size` bytes of tables cannot go through.
inline void check_upload(const char* function,
                         std::span<std::byte> device_memory,
                         std::span<std::byte> staging,
                         index_t size) {
  using blockattn::detail::check_memory;
  check_memory(function, "device_memory", device_memory, size, workspace_alignment);
  check_memory(function, "staging", staging, size, staging_alignment);
}

/// Before a kernel that `launch_behind` launches reads or writes memory: waits until the kernel
/// before it on the stream is done and its writes are there. Nothing on devices that start kernels
/// in order.
__device__ __forceinline__ void wait_for_launcher() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel on the stream, if `launch_behind` launches it, come to the processors once
/// all ctas of this one have got here; it then waits for this one's end.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// Launches a kernel that calls `wait_for_launcher`, so that its ctas may be brought to the
/// processors before the kernel ahead has left them all. Where the code that runs was compiled for
/// devices before 9.0, and so would not wait, it starts in order.
template <class Parameters>
void launch_behind(const char* function,
                   void (*kernel)(Parameters),
                   const dim3& grid,
                   int threads,
                   int shared_bytes,
                   cudaStream_t stream,
                   const Parameters& parameters) {
  cudaFuncAttributes code{};
  require_success(cudaFuncGetAttributes(&code, kernel), function, "looking at a kernel");
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = code.ptxVersion >= 90 ? 1 : 0;
  require_success(cudaLaunchKernelEx(&config, kernel, parameters), function, "a launch");
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
