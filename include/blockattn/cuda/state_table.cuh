// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/index.hpp>
#include <blockattn/cuda/runtime.cuh>
#include <cstddef>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// What a kernel has to know of every state of a merge, State for each. As many as a kernel's
/// parameters hold (4 KiB on the oldest drivers) travel there. A longer list is written to device
/// memory of the caller by kernels whose parameters carry a part each: the order of the stream
/// suffices, where a copy from host memory would need memory that outlives the call.
template <class State>
struct state_table {
  static constexpr int capacity = 2816 / static_cast<int>(sizeof(State));

  State here[capacity];
  const State* elsewhere;  ///< null when all are here
  int count;

  __device__ __forceinline__ const State* states() const {
    return elsewhere != nullptr ? elsewhere : here;
  }
};

/// Bytes of device memory that a table of `count` states needs.
template <class State>
constexpr index_t state_table_size(index_t count) {
  return count <= state_table<State>::capacity ? 0 : count * static_cast<index_t>(sizeof(State));
}

template <class State>
__global__ void __launch_bounds__(32)
    write_states_kernel(const __grid_constant__ state_table<State> part, State* to) {
  for (int i = static_cast<int>(threadIdx.x); i < part.count; i += 32) to[i] = part.here[i];
}

/// The table of state_of(0) to state_of(count - 1). `device_memory` has state_table_size bytes; a
/// list that needs them is written there on `stream`.
template <class State, class StateOf>
state_table<State> make_state_table(const char* function,
                                    index_t count,
                                    const StateOf& state_of,
                                    State* device_memory,
                                    cudaStream_t stream) {
  constexpr index_t capacity = state_table<State>::capacity;
  state_table<State> table{};
  for (index_t begin = 0; begin < count; begin += capacity) {
    const index_t size = std::min(capacity, count - begin);
    for (index_t i = 0; i < size; ++i)
      table.here[i] = state_of(static_cast<std::size_t>(begin + i));
    table.count = static_cast<int>(size);
    if (count <= capacity) return table;
    write_states_kernel<State><<<1, 32, 0, stream>>>(table, device_memory + begin);
    require_success(cudaGetLastError(), function, "the launch that writes the states");
  }
  table.elsewhere = count > 0 ? device_memory : nullptr;
  table.count = static_cast<int>(count);
  return table;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
