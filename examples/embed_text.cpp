// One request in C++: text in, integers out. The library brings its vocabulary, this file the
// tokenizer: WordPiece as BERT's uncased models have it, for ASCII text.
//
//   c++ -std=c++17 embed_text.cpp $(intformer config --cflags --libs) -o embed_text
//   ./embed_text my-model.so "The kitchen closes at eleven."
//
// Prints the token ids, then the first row of the answer: integers, which times the output_scale of
// metadata.json are the numbers that the model means.
#include <cctype>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "intformer.hpp"

namespace {

using Vocabulary = std::unordered_map<std::string, int32_t>;

// The string that starts at text[at], a quote; moves behind it. Of escapes it knows those that
// stand for ASCII, and keeps the others as they are: no ASCII word needs them.
std::string json_string(std::string_view text, size_t &at) {
  std::string found;
  for (at++; at < text.size() && text[at] != '"'; at++) {
    if (text[at] == '\\' && at + 1 < text.size() && std::string_view("\"\\/").find(text[at + 1]) !=
                                                        std::string_view::npos)
      at++;
    found += text[at];
  }
  at++;
  return found;
}

// "vocab": {"word": id, ...} of tokenizer.json.
Vocabulary read_vocabulary(std::string_view json) {
  Vocabulary found;
  if (json.find("\"WordPiece\"") == std::string_view::npos)
    throw std::runtime_error("the model's tokenizer is not WordPiece");
  size_t at = json.find("\"vocab\"");
  if (at == std::string_view::npos) throw std::runtime_error("no vocabulary in tokenizer.json");
  for (at = json.find('{', at) + 1; at < json.size() && json[at] != '}';) {
    if (json[at] != '"') {
      at++;
      continue;
    }
    const std::string word = json_string(json, at);
    at = json.find_first_of("0123456789", at);
    if (at == std::string_view::npos) break;
    int32_t id = 0;
    for (; at < json.size() && std::isdigit(static_cast<unsigned char>(json[at])); at++)
      id = id * 10 + (json[at] - '0');
    found.emplace(word, id);
  }
  return found;
}

class WordPiece {
 public:
  explicit WordPiece(std::string_view json) : ids_(read_vocabulary(json)) {}

  // [CLS] text [SEP]
  std::vector<int32_t> encode(const std::string &text) const {
    std::vector<int32_t> found{id("[CLS]")};
    std::string word;
    for (const char c : text) {
      const unsigned char u = static_cast<unsigned char>(c);
      if (u > 126) throw std::runtime_error("this example tokenizes ASCII text only");
      if (std::isalnum(u)) {
        word += static_cast<char>(std::tolower(u));
        continue;
      }
      add(word, found);
      word.clear();
      if (std::ispunct(u)) add(std::string(1, c), found);
    }
    add(word, found);
    found.push_back(id("[SEP]"));
    return found;
  }

 private:
  Vocabulary ids_;

  int32_t id(const std::string &word) const {
    const auto found = ids_.find(word);
    if (found == ids_.end()) throw std::runtime_error("the vocabulary lacks " + word);
    return found->second;
  }

  Vocabulary::const_iterator find(const std::string &word, size_t start, size_t end) const {
    return ids_.find((start ? "##" : "") + word.substr(start, end - start));
  }

  // The longest pieces first; a word that has none is [UNK].
  void add(const std::string &word, std::vector<int32_t> &found) const {
    const size_t before = found.size();
    if (word.size() > 100) {
      found.push_back(id("[UNK]"));
      return;
    }
    for (size_t start = 0, end; start < word.size(); start = end) {
      end = word.size();
      auto piece = find(word, start, end);
      while (piece == ids_.end() && --end > start) piece = find(word, start, end);
      if (piece == ids_.end()) {
        found.resize(before);
        found.push_back(id("[UNK]"));
        return;
      }
      found.push_back(piece->second);
    }
  }
};

}  // namespace

int main(int argc, char **argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: %s LIBRARY TEXT\n", argv[0]), 2;
  try {
    const intformer::model model(argv[1]);
    const WordPiece tokenizer(model.section("files/tokenizer.json").value_or(std::string_view()));
    const std::vector<int32_t> ids = tokenizer.encode(argv[2]);
    const intformer::rows answer = model.run(intformer::batch().add(ids));
    for (const int32_t id : ids) std::printf("%d ", id);
    std::printf("\n");
    for (size_t i = 0; i < answer.channels(); i++) std::printf("%d ", answer[0][i]);
    std::printf("\n");
  } catch (const std::exception &fault) {
    return std::fprintf(stderr, "error: %s\n", fault.what()), 1;
  }
}
