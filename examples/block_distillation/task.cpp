// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "task.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <string_view>
#include <utility>

#include "random.hpp"

namespace distillation {
namespace {

constexpr std::array<std::string_view, 2> marks = {".", "?"};
enum mark : int { stop, question };

constexpr std::array<std::string_view, 40> people = {
    "ada",   "alan",  "anna",  "arun",  "boris", "carl",  "chen",  "clara", "dana", "diego",
    "elena", "emil",  "eva",   "felix", "gina",  "grace", "hana",  "hugo",  "igor", "ines",
    "jack",  "jonas", "kofi",  "lars",  "leila", "leo",   "maria", "mina",  "nina", "noah",
    "olga",  "omar",  "oscar", "paula", "petra", "priya", "rosa",  "samir", "vera", "yuki"};

constexpr std::array<std::string_view, 16> cities = {
    "accra", "athens", "berlin", "bogota", "cairo", "delhi", "dublin", "hanoi",
    "kyoto", "lagos",  "lima",   "lisbon", "oslo",  "paris", "quito",  "rome"};

/// Share of the sentences, from the second block on, that are links; share of those that are
/// restated; most questions of a final block; the share of them that ask for links.
constexpr double linked_share = 0.6;
constexpr double restated_share = 0.5;
constexpr std::size_t most_questions = 8;
constexpr std::size_t linked_questions = 6;

constexpr int first_person = static_cast<int>(marks.size());
constexpr int first_city = first_person + static_cast<int>(people.size());

/// One person of a sequence: where they live and what the text says about it.
struct resident {
  int name;
  int city;
  int home;  ///< the person whom a link points to, or -1 for a direct fact; an index
  bool restated = false;
};

/// Writes one sequence behind another on the axis of a batch.
class writer {
 public:
  explicit writer(batch& target) : target_(target) {}

  void write(int id, target_kind kind_as_target = target_kind::text) {
    if (continues_) {
      target_.next.back() = id;
      target_.kinds.back() = kind_as_target;
    }
    target_.ids.push_back(id);
    target_.next.push_back(0);
    target_.kinds.push_back(target_kind::none);
    continues_ = true;
    ++block_length_;
  }
  void end_block() { lengths_.push_back(std::exchange(block_length_, 0)); }

  ba::block_layout layout() const { return ba::block_layout::from_lengths(lengths_); }

 private:
  batch& target_;
  std::vector<ba::index_t> lengths_;
  ba::index_t block_length_ = 0;
  bool continues_ = false;
};

/// A random order of 0 ... count - 1.
std::vector<int> shuffled(int count, random_source& random) {
  std::vector<int> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  for (std::size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random.below(static_cast<std::uint32_t>(i))]);
  }
  return order;
}

std::vector<resident> draw_residents(const document_size& size,
                                     ba::index_t blocks,
                                     random_source& random) {
  const std::vector<int> names = shuffled(static_cast<int>(people.size()), random);
  std::vector<resident> residents;
  std::vector<int> earlier;  // direct facts of earlier blocks
  for (ba::index_t block = 0; block < blocks; ++block) {
    std::vector<int> here;
    for (ba::index_t s = 0; s < size.sentences_per_block; ++s) {
      resident one{.name = first_person + names[residents.size()], .city = 0, .home = -1};
      if (!earlier.empty() && random.chance(linked_share)) {
        one.home = earlier[random.below(static_cast<std::uint32_t>(earlier.size()))];
        one.city = residents[static_cast<std::size_t>(one.home)].city;
        one.restated = random.chance(restated_share);
      } else {
        one.city = first_city + static_cast<int>(random.below(cities.size()));
        here.push_back(static_cast<int>(residents.size()));
      }
      residents.push_back(one);
    }
    earlier.insert(earlier.end(), here.begin(), here.end());
  }
  return residents;
}

/// The people asked about: most of them for an unrestated link, the rest for a direct fact, no two
/// of one household (the answer for one would give the other away).
std::vector<int> draw_questions(const std::vector<resident>& residents, random_source& random) {
  std::vector<int> asked;
  std::vector<char> used(residents.size(), 0);
  const std::vector<int> order = shuffled(static_cast<int>(residents.size()), random);
  const auto take = [&](bool linked, std::size_t until) {
    for (const int index : order) {
      const resident& one = residents[static_cast<std::size_t>(index)];
      const int household = one.home < 0 ? index : one.home;
      if (asked.size() >= until) return;
      if (one.restated || (one.home >= 0) != linked || used[static_cast<std::size_t>(household)]) {
        continue;
      }
      used[static_cast<std::size_t>(household)] = 1;
      asked.push_back(index);
    }
  };
  take(true, linked_questions);
  take(false, most_questions);
  std::vector<int> mixed;
  for (const int place : shuffled(static_cast<int>(asked.size()), random)) {
    mixed.push_back(asked[static_cast<std::size_t>(place)]);
  }
  return mixed;
}

ba::block_layout write_sequence(const document_size& size, random_source& random, batch& target) {
  const ba::index_t blocks =
      size.fewest_blocks +
      random.below(static_cast<std::uint32_t>(size.most_blocks - size.fewest_blocks + 1));
  const std::vector<resident> residents = draw_residents(size, blocks, random);
  writer text(target);
  for (std::size_t i = 0; i < residents.size(); ++i) {
    const resident& one = residents[i];
    text.write(one.name);
    if (one.home < 0) {
      text.write(one.city);
    } else {
      text.write(residents[static_cast<std::size_t>(one.home)].name);
      if (one.restated) text.write(one.city, target_kind::restated);
    }
    text.write(mark::stop);
    if ((i + 1) % static_cast<std::size_t>(size.sentences_per_block) == 0) text.end_block();
  }
  for (const int index : draw_questions(residents, random)) {
    const resident& one = residents[static_cast<std::size_t>(index)];
    text.write(mark::question);
    text.write(one.name);
    text.write(one.city, one.home < 0 ? target_kind::direct : target_kind::linked);
  }
  text.end_block();
  return text.layout();
}

}  // namespace

int vocabulary_size() { return first_city + static_cast<int>(cities.size()); }

std::string word(int id) {
  const auto index = static_cast<std::size_t>(id);
  if (id < first_person) return std::string(marks[index]);
  if (id < first_city) return std::string(people[index - marks.size()]);
  return std::string(cities[index - marks.size() - people.size()]);
}

batch draw_batch(const document_size& size, ba::index_t tokens, std::uint64_t seed) {
  batch result;
  random_source random(seed);
  std::vector<ba::block_layout> layouts;
  while (std::ssize(result.ids) < tokens) layouts.push_back(write_sequence(size, random, result));
  result.layout = ba::pack_sequences(layouts);
  return result;
}

}  // namespace distillation
