// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/plan_packer.cuh>
#include <blockattn/cuda/runtime.cuh>
#include <utility>

namespace blockattn::inline BLOCKATTN_ABI::cuda {

namespace detail {
struct device_plan_access;
}

/// A plan set in device memory: what CUDA calls take in place of host plans. A view that is cheap
/// to copy; the memory that it was uploaded to must outlive it. One serves all layers.
class device_plan {
 public:
  device_plan() = default;

  index_t query_tokens() const noexcept { return query_tokens_; }
  index_t key_tokens() const noexcept { return key_tokens_; }
  index_t query_heads() const noexcept { return query_heads_; }
  const tile_shape& shape() const noexcept { return shape_; }
  /// Whether all plans had their transposed lists, which backward needs.
  bool has_transposed() const noexcept { return has_transposed_; }

 private:
  friend struct detail::device_plan_access;

  index_t query_tokens_ = 0;
  index_t key_tokens_ = 0;
  index_t query_heads_ = 0;
  tile_shape shape_;
  bool has_transposed_ = false;
  detail::plan_packer::counts most_;            ///< of any plan of the set
  const detail::plan_lists* lists_ = nullptr;   ///< device memory, (plans)
  const std::int32_t* plan_of_head_ = nullptr;  ///< device memory, (query_heads)
};

namespace detail {

/// For the library's own calls.
struct device_plan_access {
  /// The view of a packed plan set in `device_memory`; touches no device.
  static device_plan describe(const plan_packer& packer,
                              const plan_set& plans,
                              index_t query_heads,
                              std::byte* device_memory) {
    device_plan plan;
    plan.query_tokens_ = plans.plans()[0].query_tokens();
    plan.key_tokens_ = plans.plans()[0].key_tokens();
    plan.query_heads_ = query_heads;
    plan.shape_ = plans.plans()[0].shape();
    plan.has_transposed_ = packer.transposed();
    plan.most_ = packer.most();
    plan.lists_ = reinterpret_cast<const plan_lists*>(device_memory + packer.offset_of_lists());
    plan.plan_of_head_ =
        reinterpret_cast<const std::int32_t*>(device_memory + packer.offset_of_heads());
    return plan;
  }
  static const plan_packer::counts& most(const device_plan& plan) { return plan.most_; }
  static const plan_lists* lists(const device_plan& plan) { return plan.lists_; }
  static const std::int32_t* plan_of_head(const device_plan& plan) { return plan.plan_of_head_; }
};

inline void check_plans_for_device(const char* function,
                                   const plan_set& plans,
                                   index_t query_heads) {
  using blockattn::detail::require;
  require(query_heads >= 0, function, ": query_heads is ", query_heads, ", must not be negative");
  require(!plans.plans().empty(), function, ": the plan set holds no plan");
  const tile_plan& first = plans.plans()[0];
  check_plan_set(plans, query_heads, first.query_tokens(), first.key_tokens(), function);
  constexpr index_t most_tokens = index_t{1} << 30;
  require(first.query_tokens() < most_tokens && first.key_tokens() < most_tokens, function,
          ": the plan is for ", first.query_tokens(), " queries x ", first.key_tokens(),
          " keys, a device plan holds fewer than ", most_tokens, " of each");
  constexpr tile_shape largest = {128, 128};  // device_span::seen has so many bits
  for (std::size_t i = 0; i < plans.plans().size(); ++i) {
    const tile_shape& shape = plans.plans()[i].shape();
    require(shape == first.shape(), function, ": plan ", i, " has tiles of ", shape.queries, " x ",
            shape.keys, " but plan 0 has ", first.shape().queries, " x ", first.shape().keys);
    require(shape.queries <= largest.queries && shape.keys <= largest.keys, function, ": plan ", i,
            " has tiles of ", shape.queries, " x ", shape.keys, ", on a device they are at most ",
            largest.queries, " x ", largest.keys, "; build it with cuda::tile_shape_for");
  }
}

}  // namespace detail

/// Bytes of device memory, and of staging memory, that `upload_plan` needs. Throws what it throws.
inline index_t device_plan_size(const plan_set& plans, index_t query_heads) {
  detail::check_plans_for_device("cuda::device_plan_size", plans, query_heads);
  return detail::plan_packer(plans, query_heads).size();
}

/// Packs the plans of `query_heads` heads (one plan for all, or one of a set for each) into
/// `staging` and begins to copy them to `device_memory`, on `stream`: calls that follow on the
/// stream may use the result at once. Both pieces of memory have device_plan_size bytes;
/// `device_memory` is aligned to workspace_alignment; `staging` is host memory, aligned to 16,
/// page-locked for a copy that runs beside other work, and must not change before the copy is done,
/// nor before the last replay of a graph that captured it. The plans themselves are free when the
/// call returns. As in all calls, the stream is one of the current device.
///
/// All plans have the tile shape that the call needs (cuda::tile_shape_for); rows of tiles that
/// would outlast the rest are cut among several ctas. Throws `error` on plans of different sizes or
/// shapes, 2^30 tokens or more, and memory that is too small or misaligned. O(size of the lists).
inline device_plan upload_plan(const plan_set& plans,
                               index_t query_heads,
                               std::span<std::byte> device_memory,
                               std::span<std::byte> staging,
                               cudaStream_t stream) {
  constexpr const char* function = "cuda::upload_plan";
  detail::check_plans_for_device(function, plans, query_heads);
  const detail::plan_packer packer(plans, query_heads);
  detail::check_upload(function, device_memory, staging, packer.size());
  packer.write(staging, device_memory.data());
  detail::require_success(
      cudaMemcpyAsync(device_memory.data(), staging.data(), static_cast<std::size_t>(packer.size()),
                      cudaMemcpyHostToDevice, stream),
      function, "the copy to the device");
  return detail::device_plan_access::describe(packer, plans, query_heads, device_memory.data());
}

/// A device plan with memory of its own, for callers that do not manage any: allocates page-locked
/// and device memory, which may wait for the device, uploads on a stream, and frees both at the
/// end, after waiting for the device.
class owned_device_plan {
 public:
  owned_device_plan(const plan_set& plans, index_t query_heads, cudaStream_t stream)
      : owned_device_plan() {  // whose destructor runs when what follows throws
    constexpr const char* function = "cuda::owned_device_plan";
    const auto size = static_cast<std::size_t>(device_plan_size(plans, query_heads));
    detail::require_success(cudaMallocHost(&staging_, size), function, "allocating host memory");
    detail::require_success(cudaMalloc(&memory_, size), function, "allocating device memory");
    plan_ = upload_plan(plans, query_heads, {static_cast<std::byte*>(memory_), size},
                        {static_cast<std::byte*>(staging_), size}, stream);
  }
  owned_device_plan(owned_device_plan&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)),
        staging_(std::exchange(other.staging_, nullptr)),
        plan_(other.plan_) {}
  owned_device_plan& operator=(owned_device_plan other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(staging_, other.staging_);
    std::swap(plan_, other.plan_);
    return *this;
  }
  ~owned_device_plan() {
    if (memory_ != nullptr) static_cast<void>(cudaFree(memory_));  // waits for the device
    if (staging_ != nullptr) static_cast<void>(cudaFreeHost(staging_));
  }

  const device_plan& plan() const noexcept { return plan_; }

 private:
  owned_device_plan() = default;

  void* memory_ = nullptr;
  void* staging_ = nullptr;
  device_plan plan_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda
