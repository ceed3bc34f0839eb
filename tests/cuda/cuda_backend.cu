// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_backend.hpp"

#include <blockattn/cuda/backward.cuh>
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
std::vector<tile_plan> make_plans(const head_masks& masks,
                                  const tile_shape& shape,
                                  const plan_options& options = {}) {
  std::vector<tile_plan> plans;
  for (const attention_mask& mask : masks.masks) {
    plans.push_back(make_tile_plan(mask, shape, options));
  }
  return plans;
}

template <class T>
heads_view<T> as_heads(std::span<T> values) {
  return token_major(values.data(), 1, static_cast<index_t>(values.size()), 1);
}

/// Uploads the plans of masks, calls `enqueue(plan, workspace, stream)` with a workspace of
/// `size_of(plan)` bytes that hold NaN, waits, and sees that nothing was written behind it.
template <class SizeOf, class Enqueue>
void run_on_device(const std::vector<tile_plan>& plans,
                   const std::vector<index_t>& head_to_mask,
                   index_t query_heads,
                   const SizeOf& size_of,
                   const Enqueue& enqueue) {
  cudaStream_t stream = nullptr;
  require_success(cudaStreamCreate(&stream), "cudaStreamCreate");
  {
    const cuda::owned_device_plan plan(plan_set(plans, head_to_mask), query_heads, stream);
    const auto size = static_cast<std::size_t>(size_of(plan.plan()));
    constexpr std::size_t canary = 1024;
    const device_bytes workspace(size + canary);
    enqueue(plan.plan(), workspace.span().first(size), stream);
    require_success(cudaStreamSynchronize(stream), "the call");
    const std::vector<std::byte> after = workspace.read();
    if (std::count(after.end() - canary, after.end(), std::byte{0xff}) != canary) {
      throw std::runtime_error("the device wrote behind its workspace");
    }
  }
  require_success(cudaStreamDestroy(stream), "cudaStreamDestroy");
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
  const tensor_image<const float> sinks(as_heads(arguments.sink_logits));
  const auto shape_for =
      masks.shapes[0].queries % 2 == 1 ? cuda::fine_tile_shape_for : coarse_tile_shape_for;
  const index_t head_dim = arguments.q.head_dim;
  const index_t value_dim = arguments.v.head_dim;
  run_on_device(
      make_plans(masks, shape_for(head_dim, value_dim)), masks.head_to_mask, arguments.q.heads,
      [&](const cuda::device_plan& plan) {
        return cuda::forward_workspace_size(plan, head_dim, value_dim);
      },
      [&](const cuda::device_plan& plan, std::span<std::byte> workspace, cudaStream_t stream) {
        cuda::forward(forward_arguments<Q, K, V, O>{.q = q.view(),
                                                    .k = k.view(),
                                                    .v = v.view(),
                                                    .o = o.view(),
                                                    .lse = as_lse(lse.view(), arguments.lse),
                                                    .sink_logits = {sinks.view().data,
                                                                    arguments.sink_logits.size()}},
                      plan, options, workspace, stream);
      });
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

template <class... Types>
void cuda_backend::backward(const backward_arguments<Types...>& arguments,
                            const head_masks& masks,
                            const attention_options& options) const {
  const auto& a = arguments;
  const tensor_image q(a.q);
  const tensor_image k(a.k);
  const tensor_image v(a.v);
  const tensor_image o(a.o);
  const tensor_image d_o(a.d_o);
  const tensor_image lse(as_heads(a.lse));
  const tensor_image d_lse(as_heads(a.d_lse));
  const tensor_image sinks(as_heads(a.sink_logits));
  const tensor_image d_q(a.d_q);
  const tensor_image d_k(a.d_k);
  const tensor_image d_v(a.d_v);
  const tensor_image d_sinks(as_heads(a.d_sink_logits));
  run_on_device(
      make_plans(masks, cuda::backward_tile_shape(), {.transposed = true}), masks.head_to_mask,
      a.q.heads, cuda::backward_workspace_size,
      [&](const cuda::device_plan& plan, std::span<std::byte> workspace, cudaStream_t stream) {
        cuda::backward(
            backward_arguments<Types...>{
                .q = q.view(),
                .k = k.view(),
                .v = v.view(),
                .o = o.view(),
                .lse = as_lse(lse.view(), a.lse),
                .d_o = d_o.view(),
                .d_q = d_q.view(),
                .d_k = d_k.view(),
                .d_v = d_v.view(),
                .d_lse = as_lse(d_lse.view(), a.d_lse),
                .sink_logits = {sinks.view().data, a.sink_logits.size()},
                .d_sink_logits = {d_sinks.view().data, a.d_sink_logits.size()}},
            plan, options, workspace, stream);
      });
  const auto bring_back = [](const auto&... images) { (images.bring_back(), ...); };
  bring_back(q, k, v, o, d_o, lse, d_lse, sinks, d_q, d_k, d_v, d_sinks);
}

template void cuda_backend::backward(
    const backward_arguments<bfloat16, bfloat16, bfloat16, bfloat16, bfloat16, bfloat16, bfloat16>&,
    const head_masks&,
    const attention_options&) const;
template void cuda_backend::backward(
    const backward_arguments<bfloat16, bfloat16, bfloat16, bfloat16, float, float, float>&,
    const head_masks&,
    const attention_options&) const;
template void cuda_backend::backward(
    const backward_arguments<float16, float16, float16, float16, float16, float16, float16>&,
    const head_masks&,
    const attention_options&) const;

void refused_backward(const backward_arguments<bfloat16>& arguments,
                      const plan_set& plans,
                      index_t query_heads,
                      const attention_options& options) {
  const cuda::detail::plan_packer packer(plans, query_heads);
  const cuda::device_plan plan =
      cuda::detail::device_plan_access::describe(packer, plans, query_heads, nullptr);
  try {
    cuda::detail::check_backward_call("", arguments, plan, options);
  } catch (const error&) {
    cuda::backward(arguments, plan, options, {}, nullptr);
  }
}

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
