/* C++17 interface of a compiled intformer library, over intformer.h; needs intformer_open.c alone.
 *
 *   intformer::model model("./model.so");
 *   intformer::batch batch;
 *   batch.add({101, 7592, 2088, 102});
 *   intformer::rows answer = model.run(batch);    answer[0]: the integers of the first row
 *
 * What fails throws intformer::error. A model is a pointer to static data: copy it freely, there is
 * nothing to close. run() may be called from any thread at any time. */
#ifndef INTFORMER_HPP
#define INTFORMER_HPP

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "intformer.h"

namespace intformer {

/* A one-line message, and the code of intformer.h (0: the library could not be opened). */
class error : public std::runtime_error {
 public:
  error(int code, const std::string &message) : std::runtime_error(message), code_(code) {}
  int code() const noexcept { return code_; }

 private:
  int code_;
};

/* Sequences of tokens, packed: there is no padding. */
class batch {
 public:
  /* Adds a sequence; types: one per token, or none (all 0). */
  batch &add(const std::vector<int32_t> &ids, const std::vector<int32_t> &types = {}) {
    if (ids.empty()) throw error(INTFORMER_BAD_INPUT, "a sequence has no tokens");
    if (!types.empty() && types.size() != ids.size())
      throw error(INTFORMER_BAD_INPUT, std::to_string(types.size()) + " token types for " +
                                           std::to_string(ids.size()) + " tokens");
    if (ids.size() > static_cast<size_t>(INT32_MAX) - ids_.size())
      throw error(INTFORMER_BAD_INPUT, "more than 2^31 - 1 tokens in a batch");
    types_.resize(ids_.size() + ids.size());
    for (size_t i = 0; i < types.size(); i++) types_[ids_.size() + i] = types[i];
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    offsets_.push_back(static_cast<int32_t>(ids_.size()));
    return *this;
  }

  /* Asks for the row of a token of the sequence added last (masked-LM models). */
  batch &want(size_t token) {
    if (size() == 0 || token >= static_cast<size_t>(offsets_.back() - offsets_[size() - 1]))
      throw error(INTFORMER_BAD_INPUT, "token " + std::to_string(token) + " is not in the sequence");
    positions_.push_back(offsets_[size() - 1] + static_cast<int32_t>(token));
    return *this;
  }

  size_t size() const noexcept { return offsets_.size() - 1; } /* sequences */
  size_t tokens() const noexcept { return ids_.size(); }

  /* What the C interface takes; points into this batch. */
  intformer_input input() const noexcept {
    intformer_input in{};
    in.num_tokens = static_cast<int32_t>(ids_.size());
    in.batch = static_cast<int32_t>(size());
    in.num_positions = static_cast<int32_t>(positions_.size());
    in.input_ids = ids_.data();
    in.cu_seqlens = offsets_.data();
    in.token_type_ids = types_.data();
    in.positions = positions_.empty() ? nullptr : positions_.data();
    return in;
  }

 private:
  std::vector<int32_t> ids_, types_, positions_, offsets_{0};
};

/* The numbers of a run: one row per sequence, token or wanted token, as the model has it. */
class rows {
 public:
  rows(std::vector<int32_t> numbers, size_t channels)
      : numbers_(std::move(numbers)), channels_(channels) {}
  size_t size() const noexcept { return channels_ ? numbers_.size() / channels_ : 0; }
  size_t channels() const noexcept { return channels_; }
  const int32_t *operator[](size_t row) const noexcept { return data() + row * channels_; }
  const int32_t *data() const noexcept { return numbers_.data(); }
  const std::vector<int32_t> &numbers() const noexcept { return numbers_; }

 private:
  std::vector<int32_t> numbers_;
  size_t channels_;
};

class model {
 public:
  /* Opens a library file, after checking that it is whole and fits this machine. */
  explicit model(const std::string &path) {
    char message[4096];
    api_ = intformer_open(path.c_str(), message, sizeof message);
    if (!api_) throw error(0, message);
  }

  /* One that is linked into the program: model(intformer_get_NAME()). */
  explicit model(const intformer_api *api) : api_(api) {
    if (!api_) throw error(0, "no library");
  }

  /* Integers; real value = integer * output_scale of metadata(). */
  rows run(const batch &of) const {
    if (of.size() == 0) throw error(INTFORMER_BAD_INPUT, "the batch is empty");
    const intformer_input in = of.input();
    std::vector<int32_t> numbers(api_->output_size(&in));
    char message[512];
    const int code = api_->run(&in, numbers.data(), numbers.size(), message, sizeof message);
    if (code) throw error(code, message);
    return rows(std::move(numbers), channels());
  }

  std::string_view name() const noexcept { return api_->name; }
  size_t channels() const noexcept { return api_->output_channels; }

  /* Data carried along, such as "files/tokenizer.json"; see intformer.h for the names. */
  std::optional<std::string_view> section(const std::string &name) const noexcept {
    size_t size = 0;
    const void *data = api_->section(name.c_str(), &size);
    if (!data) return std::nullopt;
    return std::string_view(static_cast<const char *>(data), size);
  }

  std::vector<std::string> sections() const {
    std::vector<std::string> names;
    while (const char *name = api_->section_name(names.size())) names.emplace_back(name);
    return names;
  }

  /* JSON: head, labels, output_scale, limits and all else that the compiler knew. */
  std::string_view metadata() const {
    return section("metadata.json").value_or(std::string_view());
  }

  int threads() const noexcept { return api_->get_threads(); }
  void set_threads(int threads) const { /* 0: as many as the system allows */
    const int code = api_->set_threads(threads);
    if (code) throw error(code, std::to_string(threads) + " threads");
  }

  /* Name of the kernels in use; "" where none runs here, and run() says why. */
  std::string_view variant() const noexcept {
    const char *name = api_->variant();
    return name ? name : std::string_view();
  }
  void set_variant(const std::string &name = "") const { /* "": the library chooses */
    char message[1024];
    const int code =
        api_->set_variant(name.empty() ? nullptr : name.c_str(), message, sizeof message);
    if (code) throw error(code, message);
  }

  const intformer_api *api() const noexcept { return api_; }

 private:
  const intformer_api *api_;
};

}  // namespace intformer

#endif
