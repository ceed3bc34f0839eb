// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <blockattn/core/error.hpp>
#include <blockattn/cuda/config.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Throws `error` with CUDA's own words when a call of its runtime failed.
inline void require_success(cudaError_t status, const char* function, const char* action) {
  if (status == cudaSuccess) return;
  blockattn::detail::fail(function, ": ", action, " failed: ", cudaGetErrorString(status));
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
