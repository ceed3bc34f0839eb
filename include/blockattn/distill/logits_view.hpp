// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/error.hpp>
#include <blockattn/core/index.hpp>
#include <type_traits>

namespace blockattn::inline BLOCKATTN_ABI {

/// A non-owning (tokens, vocabulary) matrix of logits, or of their gradients. The vocabulary is
/// contiguous; rows may be further apart (entries that pad the vocabulary are left out by it).
/// `data == nullptr` means absent.
template <class T>
struct logits_view {
  T* data = nullptr;
  index_t tokens = 0;
  index_t vocabulary = 0;
  index_t token_stride = 0;  ///< elements from one token to the next
  bool broadcast = false;    ///< a token_stride of 0 is meant; inputs only

  constexpr T* row(index_t token) const noexcept { return data + token * token_stride; }
  constexpr explicit operator bool() const noexcept { return data != nullptr; }
  template <class ConstT>  // a template, because nvcc warns of one from const T to const T
  requires(!std::is_const_v<T> && std::is_same_v<ConstT, const T>) constexpr
  operator logits_view<ConstT>() const noexcept {
    return {data, tokens, vocabulary, token_stride, broadcast};
  }
};

/// A contiguous (tokens, vocabulary) buffer.
template <class T>
constexpr logits_view<T> dense_logits(T* data, index_t tokens, index_t vocabulary) noexcept {
  return {data, tokens, vocabulary, vocabulary};
}

}  // namespace blockattn::inline BLOCKATTN_ABI
