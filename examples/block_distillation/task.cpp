// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "task.hpp"

#include <algorithm>
#include <array>
#include <blockattn/layout/pack_sequences.hpp>
#include <numeric>
#include <string_view>
#include <utility>

#include "random.hpp"

namespace distillation {
namespace {

constexpr std::array<std::string_view, 3> marks = {".", "?", "in"};
enum mark : int { stop, question, in };

constexpr std::array<std::string_view, 40> people = {
    "ada",   "alan",  "anna",  "arun",  "boris", "carl",  "chen",  "clara", "dana", "diego",
    "elena", "emil",  "eva",   "felix", "gina",  "grace", "hana",  "hugo",  "igor", "ines",
    "jack",  "jonas", "kofi",  "lars",  "leila", "leo",   "maria", "mina",  "nina", "noah",
    "olga",  "omar",  "oscar", "paula", "petra", "priya", "rosa",  "samir", "vera", "yuki"};

constexpr std::array<std::string_view, 4> roles = {"capital", "port", "north", "south"};

constexpr std::array<std::string_view, 6> countries = {"france",  "italy", "spain",
                                                       "germany", "japan", "brazil"};

/// roles.size() of each country, in the order of the roles.
constexpr std::array<std::string_view, 24> cities = {
    "paris",  "marseille", "lille",   "nice",    "rome",     "genoa",   "milan",  "palermo",
    "madrid", "valencia",  "bilbao",  "seville", "berlin",   "hamburg", "kiel",   "munich",
    "tokyo",  "yokohama",  "sapporo", "fukuoka", "brasilia", "santos",  "manaus", "curitiba"};

/// Shares of the sentences behind the first block that are relative or repeat an earlier direct
/// fact; share of the documents that restate them all; most questions of a final block, and how
/// many of them ask for relative facts.
constexpr double relative_share = 0.5;
constexpr double repeated_share = 0.25;
constexpr double restated_share = 0.4;
constexpr std::size_t most_questions = 12;
constexpr std::size_t relative_questions = 6;

constexpr int first_person = static_cast<int>(marks.size());
constexpr int first_role = first_person + static_cast<int>(people.size());
constexpr int first_country = first_role + static_cast<int>(roles.size());
constexpr int first_city = first_country + static_cast<int>(countries.size());

/// One sentence: who lives where, and how the text says so.
struct home {
  int person;
  int city;
  int role = -1;          ///< its word, or -1 for a direct fact
  bool restated = false;  ///< relative, and the city is stated, too
  bool repeated = false;  ///< direct, and an earlier sentence says the same

  bool is_relative() const { return role >= 0; }
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

  ba::block_layout layout() const {
    return ba::with_final_block(ba::block_layout::from_lengths(lengths_));
  }

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

int below(std::size_t bound, random_source& random) {
  return static_cast<int>(random.below(static_cast<std::uint32_t>(bound)));
}

std::vector<home> draw_homes(const document_size& size,
                             ba::index_t blocks,
                             int country,
                             random_source& random) {
  const std::vector<int> order = shuffled(static_cast<int>(people.size()), random);
  std::vector<home> homes;
  const bool restates = random.chance(restated_share);
  std::size_t people_met = 0;
  for (ba::index_t i = 0; i < blocks * size.sentences_per_block; ++i) {
    const double drawn = i < size.sentences_per_block ? 1 : random.uniform();
    home one;
    if (drawn > relative_share && drawn <= relative_share + repeated_share) {
      one = homes[static_cast<std::size_t>(below(homes.size(), random))];
      if (!one.is_relative()) {
        one.repeated = true;
        homes.push_back(one);
        continue;
      }
    }
    one = {.person = first_person + order[people_met++], .city = first_city};
    if (drawn <= relative_share) {
      const int role = below(roles.size(), random);
      one.city += country * static_cast<int>(roles.size()) + role;
      one.role = first_role + role;
      one.restated = restates;
    } else {
      one.city += below(cities.size(), random);
    }
    homes.push_back(one);
  }
  return homes;
}

/// The homes asked about, in random order: most of them relative and not restated, the others
/// direct.
std::vector<home> draw_questions(const std::vector<home>& homes, random_source& random) {
  std::vector<home> asked;
  const std::vector<int> order = shuffled(static_cast<int>(homes.size()), random);
  const auto take = [&](bool relative, std::size_t until) {
    for (const int index : order) {
      const home& one = homes[static_cast<std::size_t>(index)];
      if (asked.size() < until && one.is_relative() == relative && !one.restated && !one.repeated) {
        asked.push_back(one);
      }
    }
  };
  take(true, relative_questions);
  take(false, most_questions);
  std::vector<home> mixed;
  for (const int place : shuffled(static_cast<int>(asked.size()), random)) {
    mixed.push_back(asked[static_cast<std::size_t>(place)]);
  }
  return mixed;
}

ba::block_layout write_sequence(const document_size& size, random_source& random, batch& target) {
  const ba::index_t blocks =
      size.fewest_blocks +
      random.below(static_cast<std::uint32_t>(size.most_blocks - size.fewest_blocks + 1));
  const int country = below(countries.size(), random);
  const std::vector<home> homes = draw_homes(size, blocks, country, random);
  writer text(target);
  for (std::size_t i = 0; i < homes.size(); ++i) {
    const home& one = homes[i];
    text.write(one.person);
    text.write(one.is_relative() ? one.role : one.city,
               one.repeated ? target_kind::restated : target_kind::text);
    if (one.restated) text.write(one.city, target_kind::restated);
    text.write(mark::stop);
    if ((i + 1) % static_cast<std::size_t>(size.sentences_per_block) != 0) continue;
    text.end_block();
    if (blocks == 1 || i >= static_cast<std::size_t>(size.sentences_per_block)) continue;
    text.write(mark::in);
    text.write(first_country + country);
    text.write(mark::stop);
    text.end_block();
  }
  for (const home& one : draw_questions(homes, random)) {
    text.write(mark::question);
    text.write(one.person);
    text.write(one.city, one.is_relative() ? target_kind::relative : target_kind::direct);
  }
  text.end_block();
  return text.layout();
}

}  // namespace

int vocabulary_size() { return first_city + static_cast<int>(cities.size()); }

std::string word(int id) {
  const auto from = [id](const auto& words, int first) {
    return std::string(words[static_cast<std::size_t>(id - first)]);
  };
  if (id < first_person) return from(marks, 0);
  if (id < first_role) return from(people, first_person);
  if (id < first_country) return from(roles, first_role);
  if (id < first_city) return from(countries, first_country);
  return from(cities, first_city);
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
