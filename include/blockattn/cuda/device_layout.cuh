// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/workspace.hpp>
#include <blockattn/cuda/runtime.cuh>
#include <blockattn/layout/block_layout.hpp>
#include <cstring>

namespace blockattn::inline BLOCKATTN_ABI::cuda {

namespace detail {

/// The index maps of a layout, in device memory. O(blocks) numbers serve all tokens: a token's
/// block is found by bisection.
struct layout_map {
  const index_t* offsets;         ///< (blocks + 1) first token of each block
  const index_t* source_offsets;  ///< (blocks + 1) first source token of each block
  const index_t* sink_sets;       ///< (sets of sinks) first token of each set, in axis order
  index_t blocks;
  index_t tokens_per_set;
  int sinks_at_end;

  /// A row that scatter_rows reads.
  struct origin {
    index_t row;  ///< of the sources, or of all sinks in axis order
    bool is_sink;
  };

  __device__ __forceinline__ index_t block_of(const index_t* offsets_of_axis, index_t token) const {
    index_t begin = 0;
    index_t end = blocks;  // the last block of [begin, end) that begins at or before the token
    while (end - begin > 1) {
      const index_t middle = (begin + end) / 2;
      (offsets_of_axis[middle] <= token ? begin : end) = middle;
    }
    return begin;
  }
  __device__ __forceinline__ origin origin_of(index_t token) const {
    const index_t block = block_of(offsets, token);
    const index_t sources = source_offsets[block + 1] - source_offsets[block];
    const index_t sinks = offsets[block + 1] - offsets[block] - sources;
    const index_t within = token - offsets[block];
    const index_t sink = sinks_at_end ? within - sources : within;
    if (0 <= sink && sink < sinks) return {offsets[block] - source_offsets[block] + sink, true};
    return {source_offsets[block] + within - (sinks_at_end ? 0 : sinks), false};
  }
  __device__ __forceinline__ index_t token_of(index_t source) const {
    const index_t block = block_of(source_offsets, source);
    const index_t sources = source_offsets[block + 1] - source_offsets[block];
    const index_t sinks = offsets[block + 1] - offsets[block] - sources;
    return offsets[block] + (sinks_at_end ? 0 : sinks) + (source - source_offsets[block]);
  }
  /// The token of a sink, counted in axis order.
  __device__ __forceinline__ index_t token_of_sink(index_t sink) const {
    return sink_sets[sink / tokens_per_set] + sink % tokens_per_set;
  }
};

struct device_layout_access;

}  // namespace detail

/// A block_layout in device memory: what scatter_rows and its like take on a device. A view that is
/// cheap to copy; the memory that it was uploaded to must outlive it.
class device_layout {
 public:
  device_layout() = default;

  index_t tokens() const noexcept { return tokens_; }
  index_t source_tokens() const noexcept { return source_tokens_; }
  const sink_token_options& sink_options() const noexcept { return sinks_; }

 private:
  friend struct detail::device_layout_access;

  index_t tokens_ = 0;
  index_t source_tokens_ = 0;
  index_t sink_sets_ = 0;
  sink_token_options sinks_ = {.tokens_per_block = 0};
  detail::layout_map map_ = {};
};

namespace detail {

/// For the library's own calls.
struct device_layout_access {
  static index_t sink_sets(const block_layout& layout) {
    const index_t sinks = layout.tokens() - layout.source_tokens();
    return sinks == 0 ? 0 : sinks / layout.sink_options().tokens_per_block;
  }
  static index_t size(const block_layout& layout) {
    return (2 * (layout.blocks() + 1) + sink_sets(layout)) * static_cast<index_t>(sizeof(index_t));
  }
  /// The view of a layout in `device_memory`; touches no device.
  static device_layout describe(const block_layout& layout, std::byte* device_memory) {
    const auto* const numbers = reinterpret_cast<const index_t*>(device_memory);
    const sink_token_options& sinks = layout.sink_options();
    device_layout view;
    view.tokens_ = layout.tokens();
    view.source_tokens_ = layout.source_tokens();
    view.sink_sets_ = sink_sets(layout);
    view.sinks_ = sinks;
    view.map_ = {.offsets = numbers,
                 .source_offsets = numbers + layout.blocks() + 1,
                 .sink_sets = numbers + 2 * (layout.blocks() + 1),
                 .blocks = layout.blocks(),
                 .tokens_per_set = sinks.tokens_per_block,
                 .sinks_at_end = sinks.placement == sink_placement::block_end ? 1 : 0};
    return view;
  }
  static const layout_map& map(const device_layout& layout) { return layout.map_; }
  static index_t sink_sets(const device_layout& layout) { return layout.sink_sets_; }

  static void write(const block_layout& layout, std::byte* staging) {
    const auto put = [&](index_t value) {
      std::memcpy(staging, &value, sizeof(value));
      staging += sizeof(value);
    };
    for (index_t b = 0; b < layout.blocks(); ++b) put(layout.block(b).begin);
    put(layout.tokens());
    for (index_t b = 0; b < layout.blocks(); ++b) put(layout.source_range(b).begin);
    put(layout.source_tokens());
    for (index_t b = 0; b < layout.blocks(); ++b) {
      const index_range sinks = layout.sink_tokens(b);
      if (!sinks.empty()) put(sinks.begin);
    }
  }
};

}  // namespace detail

/// Bytes of device memory, and of staging memory, that `upload_layout` needs: 24 for each block at
/// most, and 16.
inline index_t device_layout_size(const block_layout& layout) {
  return detail::device_layout_access::size(layout);
}

/// Writes the index maps of a layout into `staging` and begins to copy them to `device_memory`, on
/// `stream`: calls that follow on the stream may use the result at once. Memory as upload_plan
/// takes it: both pieces have device_layout_size bytes, `device_memory` is aligned to
/// workspace_alignment, `staging` is host memory, aligned to 16, page-locked for a copy that runs
/// beside other work, and must not change before the copy is done. Throws `error` on memory that is
/// too small or misaligned. O(blocks).
inline device_layout upload_layout(const block_layout& layout,
                                   std::span<std::byte> device_memory,
                                   std::span<std::byte> staging,
                                   cudaStream_t stream) {
  constexpr const char* function = "cuda::upload_layout";
  const index_t size = device_layout_size(layout);
  detail::check_upload(function, device_memory, staging, size);
  detail::device_layout_access::write(layout, staging.data());
  detail::require_success(
      cudaMemcpyAsync(device_memory.data(), staging.data(), static_cast<std::size_t>(size),
                      cudaMemcpyHostToDevice, stream),
      function, "the copy to the device");
  return detail::device_layout_access::describe(layout, device_memory.data());
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda
