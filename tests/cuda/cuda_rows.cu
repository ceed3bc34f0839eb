// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_rows.hpp"

#include <blockattn/cuda/merge.cuh>
#include <blockattn/cuda/merge_backward.cuh>
#include <blockattn/cuda/rotate.cuh>
#include <blockattn/cuda/scatter_rows.cuh>
#include <memory>

#include "cuda/device_images.cuh"

namespace blockattn_test {

namespace {

/// The tensors of a call, on the device.
class device_tensors {
 public:
  explicit device_tensors(bool on_device) : on_device_(on_device) {}

  template <class T>
  heads_view<T> operator()(const heads_view<T>& view) {
    if (!on_device_ || view.tokens * view.heads * view.head_dim == 0) return view;
    const index_t tokens = (view.tokens - 1) * view.token_stride;
    const index_t heads = (view.heads - 1) * view.head_stride;
    T* const begin = view.data + std::min<index_t>(tokens, 0) + std::min<index_t>(heads, 0);
    const index_t size = std::abs(tokens) + std::abs(heads) + view.head_dim;
    auto* const bytes = reinterpret_cast<std::byte*>(const_cast<std::remove_const_t<T>*>(begin));
    tensor& image = image_of(bytes, static_cast<std::size_t>(size) * sizeof(T));
    if (!std::is_const_v<T>) image.is_input = false;
    heads_view<T> device = view;
    device.data = reinterpret_cast<T*>(image.image->data()) + (view.data - begin);
    return device;
  }
  template <class T>
  lse_view<T> operator()(const lse_view<T>& lse) {
    if (!lse) return lse;
    const heads_view<T> device = (*this)(
        heads_view<T>{lse.data, lse.tokens, lse.heads, 1, lse.token_stride, lse.head_stride});
    return {device.data, lse.tokens, lse.heads, lse.token_stride, lse.head_stride};
  }
  template <class T>
  std::span<T> operator()(std::span<T> values) {
    return {(*this)(token_major(values.data(), std::ssize(values), 1, 1)).data, values.size()};
  }

  /// Calls `enqueue(workspace, stream)`, with size() bytes of workspace on a device, and brings the
  /// results back.
  template <class Size, class Enqueue>
  void run(const Size& size, const Enqueue& enqueue) const {
    if (!on_device_) return enqueue(std::span<std::byte>(), cudaStream_t{});
    const device_stream stream;
    run_in_workspace(stream, size(),
                     [&](std::span<std::byte> workspace) { enqueue(workspace, stream); });
    for (const tensor& t : tensors_) t.image->bring_back(t.is_input);
  }
  /// The same of a call without a workspace.
  template <class Enqueue>
  void run(const Enqueue& enqueue) const {
    run([] { return index_t{0}; },
        [&](std::span<std::byte>, cudaStream_t stream) { enqueue(stream); });
  }
  /// The same of a call that takes a layout.
  template <class Enqueue>
  void run(const block_layout& layout, const Enqueue& enqueue) const {
    if (!on_device_) {
      return enqueue(cuda::detail::device_layout_access::describe(layout, nullptr), nullptr);
    }
    std::vector<std::byte> staging(static_cast<std::size_t>(cuda::device_layout_size(layout)));
    run([&] { return std::ssize(staging); },
        [&](std::span<std::byte> memory, cudaStream_t stream) {
          enqueue(cuda::upload_layout(layout, memory, staging, stream), stream);
        });
  }

 private:
  struct tensor {
    std::byte* begin;
    bool is_input;
    std::unique_ptr<device_image> image;
  };

  tensor& image_of(std::byte* begin, std::size_t size) {
    for (tensor& t : tensors_) {
      if (t.begin == begin) return t;
    }
    tensors_.push_back({begin, true, std::make_unique<device_image>(begin, size)});
    return tensors_.back();
  }

  bool on_device_;
  std::vector<tensor> tensors_;
};

template <class P>
std::vector<partial_state<P>> states_on(device_tensors& device,
                                        std::span<const partial_state<P>> states) {
  std::vector<partial_state<P>> result(states.begin(), states.end());
  for (partial_state<P>& state : result) {
    state.o = device(state.o);
    state.lse = device(state.lse);
    state.row_log_weights = device(state.row_log_weights);
  }
  return result;
}

}  // namespace

template <class P, class O>
void cuda_rows::merge(const merge_arguments<P, O>& arguments) const {
  device_tensors device(on_device);
  const auto states = states_on<P>(device, arguments.states);
  const merge_arguments<P, O> there{.states = states,
                                    .o = device(arguments.o),
                                    .lse = device(arguments.lse),
                                    .sink_logits = device(arguments.sink_logits)};
  device.run([&] { return cuda::merge_workspace_size(there.states); },
             [&](std::span<std::byte> workspace, cudaStream_t stream) {
               cuda::merge(there, workspace, stream);
             });
}

template <class P, class O, class D>
void cuda_rows::merge_backward(const merge_backward_arguments<P, O, D>& arguments) const {
  device_tensors device(on_device);
  const auto states = states_on<P>(device, arguments.states);
  std::vector<partial_state_gradient<D>> gradients;
  for (const partial_state_gradient<D>& gradient : arguments.gradients) {
    gradients.push_back({.d_o = device(gradient.d_o),
                         .d_lse = device(gradient.d_lse),
                         .d_row_log_weights = device(gradient.d_row_log_weights)});
  }
  const merge_backward_arguments<P, O, D> there{.states = states,
                                                .d_o = device(arguments.d_o),
                                                .d_lse = device(arguments.d_lse),
                                                .gradients = gradients,
                                                .sink_logits = device(arguments.sink_logits),
                                                .d_sink_logits = device(arguments.d_sink_logits)};
  device.run([&] { return cuda::merge_backward_workspace_size(there); },
             [&](std::span<std::byte> workspace, cudaStream_t stream) {
               cuda::merge_backward(there, workspace, stream);
             });
}

template <class In, class Out>
void cuda_rows::rotate(const rope& rotation,
                       const heads_view<In>& in,
                       const heads_view<Out>& out,
                       std::span<const double> positions) const {
  device_tensors device(on_device);
  device.run([&, in_there = device(in), out_there = device(out),
              positions_there = device(positions)](cudaStream_t stream) {
    cuda::rotate(rotation, in_there, out_there, positions_there, stream);
  });
}

template <class In, class Out>
void cuda_rows::rotate_backward(const rope& rotation,
                                const heads_view<In>& d_out,
                                const heads_view<Out>& d_in,
                                std::span<const double> positions) const {
  device_tensors device(on_device);
  device.run([&, d_out_there = device(d_out), d_in_there = device(d_in),
              positions_there = device(positions)](cudaStream_t stream) {
    cuda::rotate_backward(rotation, d_out_there, d_in_there, positions_there, stream);
  });
}

template <class T>
void cuda_rows::rotate(const rope& rotation,
                       const heads_view<T>& rows,
                       std::span<const double> positions) const {
  device_tensors device(on_device);
  device.run([&, there = device(rows), positions_there = device(positions)](cudaStream_t stream) {
    cuda::rotate(rotation, there, positions_there, stream);
  });
}

template <class T>
void cuda_rows::rotate_backward(const rope& rotation,
                                const heads_view<T>& rows,
                                std::span<const double> positions) const {
  device_tensors device(on_device);
  device.run([&, there = device(rows), positions_there = device(positions)](cudaStream_t stream) {
    cuda::rotate_backward(rotation, there, positions_there, stream);
  });
}

template <class T>
void cuda_rows::reposition(const rope& rotation, const heads_view<T>& rows, double delta) const {
  device_tensors device(on_device);
  device.run([&, there = device(rows)](cudaStream_t stream) {
    cuda::reposition(rotation, there, delta, stream);
  });
}

template <class T>
void cuda_rows::reposition(const rope& rotation,
                           const heads_view<T>& rows,
                           std::span<const double> deltas) const {
  device_tensors device(on_device);
  device.run([&, there = device(rows), deltas_there = device(deltas)](cudaStream_t stream) {
    cuda::reposition(rotation, there, deltas_there, stream);
  });
}

template <class T>
void cuda_rows::scatter_rows(const block_layout& layout,
                             std::span<const T> source_rows,
                             std::span<const T> sink_rows,
                             std::span<T> out,
                             index_t columns) const {
  device_tensors device(on_device);
  device.run(layout, [&, sources = device(source_rows), sinks = device(sink_rows),
                      to = device(out)](const cuda::device_layout& there, cudaStream_t stream) {
    cuda::scatter_rows(there, sources, sinks, to, columns, stream);
  });
}

template <class T>
void cuda_rows::gather_rows(const block_layout& layout,
                            std::span<const T> rows,
                            std::span<T> out,
                            index_t columns) const {
  device_tensors device(on_device);
  device.run(layout, [&, from = device(rows), to = device(out)](const cuda::device_layout& there,
                                                                cudaStream_t stream) {
    cuda::gather_rows(there, from, to, columns, stream);
  });
}

template <class DOut, class DSource, class DSinks>
void cuda_rows::scatter_rows_backward(const block_layout& layout,
                                      std::span<const DOut> d_out,
                                      std::span<DSource> d_source_rows,
                                      std::span<DSinks> d_sink_rows,
                                      index_t columns) const {
  device_tensors device(on_device);
  device.run(layout,
             [&, from = device(d_out), sources = device(d_source_rows),
              sinks = device(d_sink_rows)](const cuda::device_layout& there, cudaStream_t stream) {
               cuda::scatter_rows_backward(there, from, sources, sinks, columns, stream);
             });
}

template <class DOut, class DSource, class DSinks>
void cuda_rows::scatter_rows_backward_accumulate(const block_layout& layout,
                                                 std::span<const DOut> d_out,
                                                 std::span<DSource> d_source_rows,
                                                 std::span<DSinks> d_sink_rows,
                                                 index_t columns) const {
  device_tensors device(on_device);
  device.run(layout,
             [&, from = device(d_out), sources = device(d_source_rows),
              sinks = device(d_sink_rows)](const cuda::device_layout& there, cudaStream_t stream) {
               cuda::scatter_rows_backward_accumulate(there, from, sources, sinks, columns, stream);
             });
}

template <class DOut, class DRows>
void cuda_rows::gather_rows_backward(const block_layout& layout,
                                     std::span<const DOut> d_out,
                                     std::span<DRows> d_rows,
                                     index_t columns) const {
  device_tensors device(on_device);
  device.run(layout, [&, from = device(d_out), to = device(d_rows)](
                         const cuda::device_layout& there, cudaStream_t stream) {
    cuda::gather_rows_backward(there, from, to, columns, stream);
  });
}

template <class DOut, class DRows>
void cuda_rows::gather_rows_backward_accumulate(const block_layout& layout,
                                                std::span<const DOut> d_out,
                                                std::span<DRows> d_rows,
                                                index_t columns) const {
  device_tensors device(on_device);
  device.run(layout, [&, from = device(d_out), to = device(d_rows)](
                         const cuda::device_layout& there, cudaStream_t stream) {
    cuda::gather_rows_backward_accumulate(there, from, to, columns, stream);
  });
}

#define BLOCKATTN_TEST_MERGE(P, O) \
  template void cuda_rows::merge(const merge_arguments<P, O>&) const;
BLOCKATTN_TEST_MERGE(float, float)
BLOCKATTN_TEST_MERGE(bfloat16, bfloat16)
BLOCKATTN_TEST_MERGE(float16, float16)
BLOCKATTN_TEST_MERGE(float16, float)
BLOCKATTN_TEST_MERGE(float, bfloat16)
#undef BLOCKATTN_TEST_MERGE

#define BLOCKATTN_TEST_MERGE_BACKWARD(P, O, D) \
  template void cuda_rows::merge_backward(const merge_backward_arguments<P, O, D>&) const;
BLOCKATTN_TEST_MERGE_BACKWARD(float, float, float)
BLOCKATTN_TEST_MERGE_BACKWARD(bfloat16, bfloat16, bfloat16)
BLOCKATTN_TEST_MERGE_BACKWARD(float16, float16, float16)
BLOCKATTN_TEST_MERGE_BACKWARD(float16, float, bfloat16)
#undef BLOCKATTN_TEST_MERGE_BACKWARD

#define BLOCKATTN_TEST_ROTATE(In, Out)                                                        \
  template void cuda_rows::rotate(const rope&, const heads_view<In>&, const heads_view<Out>&, \
                                  std::span<const double>) const;                             \
  template void cuda_rows::rotate_backward(const rope&, const heads_view<In>&,                \
                                           const heads_view<Out>&, std::span<const double>) const;
BLOCKATTN_TEST_ROTATE(const float16, float16)
BLOCKATTN_TEST_ROTATE(const float, float)
BLOCKATTN_TEST_ROTATE(const float, bfloat16)
BLOCKATTN_TEST_ROTATE(const bfloat16, bfloat16)
BLOCKATTN_TEST_ROTATE(const bfloat16, float16)
#undef BLOCKATTN_TEST_ROTATE

#define BLOCKATTN_TEST_ROTATE_IN_PLACE(T)                                                         \
  template void cuda_rows::rotate(const rope&, const heads_view<T>&, std::span<const double>)     \
      const;                                                                                      \
  template void cuda_rows::rotate_backward(const rope&, const heads_view<T>&,                     \
                                           std::span<const double>) const;                        \
  template void cuda_rows::reposition(const rope&, const heads_view<T>&, double) const;           \
  template void cuda_rows::reposition(const rope&, const heads_view<T>&, std::span<const double>) \
      const;
BLOCKATTN_TEST_ROTATE_IN_PLACE(float)
BLOCKATTN_TEST_ROTATE_IN_PLACE(bfloat16)
BLOCKATTN_TEST_ROTATE_IN_PLACE(float16)
#undef BLOCKATTN_TEST_ROTATE_IN_PLACE

#define BLOCKATTN_TEST_SCATTER(T)                                                             \
  template void cuda_rows::scatter_rows(const block_layout&, std::span<const T>,              \
                                        std::span<const T>, std::span<T>, index_t) const;     \
  template void cuda_rows::gather_rows(const block_layout&, std::span<const T>, std::span<T>, \
                                       index_t) const;
BLOCKATTN_TEST_SCATTER(std::uint8_t)
BLOCKATTN_TEST_SCATTER(std::int32_t)
BLOCKATTN_TEST_SCATTER(double)
BLOCKATTN_TEST_SCATTER(bfloat16)
#undef BLOCKATTN_TEST_SCATTER

#define BLOCKATTN_TEST_SCATTER_BACKWARD(DOut, DSource, DSinks)                                    \
  template void cuda_rows::scatter_rows_backward(const block_layout&, std::span<const DOut>,      \
                                                 std::span<DSource>, std::span<DSinks>, index_t)  \
      const;                                                                                      \
  template void cuda_rows::scatter_rows_backward_accumulate(                                      \
      const block_layout&, std::span<const DOut>, std::span<DSource>, std::span<DSinks>, index_t) \
      const;                                                                                      \
  template void cuda_rows::gather_rows_backward(const block_layout&, std::span<const DOut>,       \
                                                std::span<DSource>, index_t) const;               \
  template void cuda_rows::gather_rows_backward_accumulate(                                       \
      const block_layout&, std::span<const DOut>, std::span<DSource>, index_t) const;
BLOCKATTN_TEST_SCATTER_BACKWARD(float, float, float)
BLOCKATTN_TEST_SCATTER_BACKWARD(bfloat16, bfloat16, float)
BLOCKATTN_TEST_SCATTER_BACKWARD(float16, float, float16)
#undef BLOCKATTN_TEST_SCATTER_BACKWARD

}  // namespace blockattn_test
