// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <blockattn/core/heads_view.hpp>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

/// \file
/// Host tensors on the device, for the object files that call the library's CUDA headers.

namespace blockattn_test {

using namespace blockattn;

inline void require_success(cudaError_t status, const char* action) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(action) + ": " + cudaGetErrorString(status));
  }
}

/// Device memory that is freed at the end.
class device_bytes {
 public:
  explicit device_bytes(std::size_t size) : size_(size) {
    require_success(cudaMalloc(&bytes_, std::max<std::size_t>(size, 1)), "cudaMalloc");
    require_success(cudaMemset(bytes_, 0xff, size), "cudaMemset");
  }
  device_bytes(const device_bytes&) = delete;
  device_bytes& operator=(const device_bytes&) = delete;
  ~device_bytes() { static_cast<void>(cudaFree(bytes_)); }

  std::span<std::byte> span() const { return {static_cast<std::byte*>(bytes_), size_}; }
  std::vector<std::byte> read() const {
    std::vector<std::byte> host(size_);
    require_success(cudaMemcpy(host.data(), bytes_, size_, cudaMemcpyDeviceToHost), "cudaMemcpy");
    return host;
  }

 private:
  void* bytes_ = nullptr;
  std::size_t size_;
};

/// A run of host memory on the device: the same bytes, as far from a multiple of 128, between
/// margins of 0xff, which is NaN in all storage types.
class device_image {
 public:
  device_image(void* begin, std::size_t size)
      : host_(static_cast<std::byte*>(begin)),
        size_(size),
        offset_(margin + reinterpret_cast<std::uintptr_t>(begin) % 128),
        memory_(offset_ + size + margin) {
    require_success(cudaMemcpy(data(), host_, size_, cudaMemcpyHostToDevice), "cudaMemcpy");
  }

  std::byte* data() const { return memory_.span().data() + offset_; }

  /// Compares margins and, for an input, the bytes; brings an output's back.
  void bring_back(bool is_input) const {
    const std::vector<std::byte> now = memory_.read();
    for (std::size_t i = 0; i < now.size(); ++i) {
      const bool inside = offset_ <= i && i < offset_ + size_;
      if (inside && !is_input) continue;
      if (now[i] != (inside ? host_[i - offset_] : std::byte{0xff})) {
        throw std::runtime_error("the device wrote into an input or a margin");
      }
    }
    if (!is_input) std::copy_n(now.begin() + static_cast<std::ptrdiff_t>(offset_), size_, host_);
  }

 private:
  static constexpr std::size_t margin = 1024;

  std::byte* host_;
  std::size_t size_;
  std::size_t offset_;
  device_bytes memory_;
};

/// All bytes from the first row of a view to its last.
template <class T>
class tensor_image {
 public:
  explicit tensor_image(const heads_view<T>& view) : host_(view) {
    if (view.tokens * view.heads * view.head_dim == 0) return;
    const index_t tokens = (view.tokens - 1) * view.token_stride;
    const index_t heads = (view.heads - 1) * view.head_stride;
    T* const begin = view.data + std::min<index_t>(tokens, 0) + std::min<index_t>(heads, 0);
    const index_t size = std::abs(tokens) + std::abs(heads) + view.head_dim;
    first_ = view.data - begin;
    image_.emplace(const_cast<std::remove_const_t<T>*>(begin),
                   static_cast<std::size_t>(size) * sizeof(T));
  }

  heads_view<T> view() const {
    heads_view<T> device = host_;
    if (image_) device.data = reinterpret_cast<T*>(image_->data()) + first_;
    return device;
  }
  void bring_back() const {
    if (image_) image_->bring_back(std::is_const_v<T>);
  }

 private:
  heads_view<T> host_;
  index_t first_ = 0;
  std::optional<device_image> image_;
};

template <class T>
heads_view<T> as_heads(const lse_view<T>& lse) {
  return {lse.data, lse ? lse.tokens : 0, lse.heads, 1, lse.token_stride, lse.head_stride};
}
template <class T>
lse_view<T> as_lse(const heads_view<T>& view, const lse_view<T>& host) {
  return {view.data, host.tokens, host.heads, view.token_stride, view.head_stride};
}

template <class T>
heads_view<T> as_heads(std::span<T> values) {
  return token_major(values.data(), 1, static_cast<index_t>(values.size()), 1);
}

/// A stream that ends with its scope.
class device_stream {
 public:
  device_stream() { require_success(cudaStreamCreate(&stream_), "cudaStreamCreate"); }
  device_stream(const device_stream&) = delete;
  device_stream& operator=(const device_stream&) = delete;
  ~device_stream() { static_cast<void>(cudaStreamDestroy(stream_)); }

  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Calls `enqueue(workspace)` with a workspace of `size` bytes that hold NaN, waits for the stream,
/// and sees that nothing was written behind it.
template <class Enqueue>
void run_in_workspace(cudaStream_t stream, index_t size, const Enqueue& enqueue) {
  constexpr std::size_t canary = 1024;
  const device_bytes workspace(static_cast<std::size_t>(size) + canary);
  enqueue(workspace.span().first(static_cast<std::size_t>(size)));
  require_success(cudaStreamSynchronize(stream), "the call");
  const std::vector<std::byte> after = workspace.read();
  if (std::count(after.end() - canary, after.end(), std::byte{0xff}) != canary) {
    throw std::runtime_error("the device wrote behind its workspace");
  }
}

}  // namespace blockattn_test
