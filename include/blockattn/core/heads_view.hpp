// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/index.hpp>
#include <type_traits>

namespace blockattn::inline BLOCKATTN_ABI {

/// A non-owning (tokens, heads, head_dim) tensor. The last dimension is contiguous; strides count
/// elements, so token-major, head-major and interleaved buffers are all views. Sequences are packed
/// on the token axis. A stride of 0 along an axis of several rows is refused, because it is most
/// often one that was forgotten, unless `broadcast` says that one row is meant for all of them.
template <class T>
struct heads_view {
  T* data = nullptr;
  index_t tokens = 0;
  index_t heads = 0;
  index_t head_dim = 0;
  index_t token_stride = 0;  ///< elements from one token to the next, same head
  index_t head_stride = 0;   ///< elements from one head to the next, same token
  bool broadcast = false;    ///< strides of 0 are meant; inputs only

  /// The head_dim values of one token in one head.
  constexpr T* row(index_t token, index_t head) const noexcept {
    return data + token * token_stride + head * head_stride;
  }

  /// A view of T serves wherever a view of const T is asked for.
  template <class ConstT>  // a template, because nvcc warns of one from const T to const T
  requires(!std::is_const_v<T> && std::is_same_v<ConstT, const T>) constexpr
  operator heads_view<ConstT>() const noexcept {
    return {data, tokens, heads, head_dim, token_stride, head_stride, broadcast};
  }
};

/// A contiguous (tokens, heads, head_dim) buffer.
template <class T>
constexpr heads_view<T> token_major(T* data,
                                    index_t tokens,
                                    index_t heads,
                                    index_t head_dim) noexcept {
  return {data, tokens, heads, head_dim, heads * head_dim, head_dim};
}

/// A contiguous (heads, tokens, head_dim) buffer.
template <class T>
constexpr heads_view<T> head_major(T* data,
                                   index_t tokens,
                                   index_t heads,
                                   index_t head_dim) noexcept {
  return {data, tokens, heads, head_dim, head_dim, tokens * head_dim};
}

/// Rows [begin, begin + count) of the token axis.
template <class T>
constexpr heads_view<T> token_slice(const heads_view<T>& view,
                                    index_t begin,
                                    index_t count) noexcept {
  return {view.data + begin * view.token_stride,
          count,
          view.heads,
          view.head_dim,
          view.token_stride,
          view.head_stride,
          view.broadcast};
}

/// A non-owning (tokens, heads) tensor of log-sum-exp values (natural logarithm). `data == nullptr`
/// means absent. Strides of 0 as in heads_view.
template <class T>
struct lse_view {
  T* data = nullptr;
  index_t tokens = 0;
  index_t heads = 0;
  index_t token_stride = 0;  ///< elements
  index_t head_stride = 0;   ///< elements
  bool broadcast = false;    ///< strides of 0 are meant; inputs only

  constexpr T& at(index_t token, index_t head) const noexcept {
    return data[token * token_stride + head * head_stride];
  }
  constexpr explicit operator bool() const noexcept { return data != nullptr; }
  template <class ConstT>
  requires(!std::is_const_v<T> && std::is_same_v<ConstT, const T>) constexpr
  operator lse_view<ConstT>() const noexcept {
    return {data, tokens, heads, token_stride, head_stride, broadcast};
  }
};

/// A contiguous (tokens, heads) buffer.
template <class T>
constexpr lse_view<T> token_major_lse(T* data, index_t tokens, index_t heads) noexcept {
  return {data, tokens, heads, heads, 1};
}

/// A contiguous (heads, tokens) buffer.
template <class T>
constexpr lse_view<T> head_major_lse(T* data, index_t tokens, index_t heads) noexcept {
  return {data, tokens, heads, 1, tokens};
}

}  // namespace blockattn::inline BLOCKATTN_ABI
