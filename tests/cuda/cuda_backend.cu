// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_backend.hpp"

#include <blockattn/cuda/forward.cuh>
#include <stdexcept>

namespace blockattn_test {

namespace {

void require_success(cudaError_t status, const char* action) {
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

constexpr tile_shape coarse_tile_shape_for(index_t head_dim, index_t value_dim) noexcept {
  return cuda::tile_shape_for(head_dim, value_dim);
}

/// The plans of masks in the tiles that the kernels take.
std::vector<tile_plan> make_plans(const head_masks& masks, const tile_shape& shape) {
  std::vector<tile_plan> plans;
  for (const attention_mask& mask : masks.masks) plans.push_back(make_tile_plan(mask, shape));
  return plans;
}

}  // namespace

bool has_cuda_device() {
  cudaDeviceProp properties;
  const bool found = cudaGetDeviceProperties(&properties, 0) == cudaSuccess;
  static_cast<void>(cudaGetLastError());
  return found && properties.major >= 8;
}

template <class Q, class K, class V, class O>
void cuda_backend::forward(const forward_arguments<Q, K, V, O>& arguments,
                           const head_masks& masks,
                           const attention_options& options) const {
  const tensor_image<const Q> q(arguments.q);
  const tensor_image<const K> k(arguments.k);
  const tensor_image<const V> v(arguments.v);
  const tensor_image<O> o(arguments.o);
  const tensor_image<float> lse(as_heads(arguments.lse));
  const tensor_image<const float> sinks(token_major(
      arguments.sink_logits.data(), 1, static_cast<index_t>(arguments.sink_logits.size()), 1));
  const index_t heads = arguments.q.heads;
  const auto shape_for =
      masks.shapes[0].queries % 2 == 1 ? cuda::fine_tile_shape_for : coarse_tile_shape_for;
  const std::vector<tile_plan> plans =
      make_plans(masks, shape_for(arguments.q.head_dim, arguments.v.head_dim));

  cudaStream_t stream = nullptr;
  require_success(cudaStreamCreate(&stream), "cudaStreamCreate");
  {
    const cuda::owned_device_plan plan(plan_set(plans, masks.head_to_mask), heads, stream);
    const index_t size =
        cuda::forward_workspace_size(plan.plan(), arguments.q.head_dim, arguments.v.head_dim);
    constexpr std::size_t canary = 1024;
    const device_bytes workspace(static_cast<std::size_t>(size) + canary);
    cuda::forward(
        forward_arguments<Q, K, V, O>{
            .q = q.view(),
            .k = k.view(),
            .v = v.view(),
            .o = o.view(),
            .lse = as_lse(lse.view(), arguments.lse),
            .sink_logits = {sinks.view().data, arguments.sink_logits.size()}},
        plan.plan(), options, workspace.span().first(static_cast<std::size_t>(size)), stream);
    require_success(cudaStreamSynchronize(stream), "cuda::forward");
    const std::vector<std::byte> after = workspace.read();
    if (std::count(after.end() - canary, after.end(), std::byte{0xff}) != canary) {
      throw std::runtime_error("the device wrote behind its workspace");
    }
  }
  require_success(cudaStreamDestroy(stream), "cudaStreamDestroy");
  q.bring_back();
  k.bring_back();
  v.bring_back();
  o.bring_back();
  lse.bring_back();
  sinks.bring_back();
}

#define BLOCKATTN_TEST_FORWARD(T, O)                                                           \
  template void cuda_backend::forward(const forward_arguments<T, T, T, O>&, const head_masks&, \
                                      const attention_options&) const;
BLOCKATTN_TEST_FORWARD(bfloat16, bfloat16)
BLOCKATTN_TEST_FORWARD(bfloat16, float)
BLOCKATTN_TEST_FORWARD(float16, float16)
BLOCKATTN_TEST_FORWARD(float16, float)
BLOCKATTN_TEST_FORWARD(float16, bfloat16)
#undef BLOCKATTN_TEST_FORWARD

void refused_forward(const forward_arguments<bfloat16>& arguments,
                     const plan_set& plans,
                     index_t query_heads,
                     const attention_options& options) {
  const cuda::detail::plan_packer packer(plans, query_heads);
  const cuda::device_plan plan =
      cuda::detail::device_plan_access::describe(packer, plans, query_heads, nullptr);
  try {
    cuda::detail::check_forward_call("", arguments, plan, options);
  } catch (const error&) {
    cuda::forward(arguments, plan, options, {}, nullptr);
  }
}

index_t device_plan_size(const plan_set& plans, index_t query_heads) {
  return cuda::device_plan_size(plans, query_heads);
}

tile_shape device_tile_shape(index_t head_dim, index_t value_dim) {
  return cuda::tile_shape_for(head_dim, value_dim);
}

}  // namespace blockattn_test
