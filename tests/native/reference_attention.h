// Attention in float64, pair by pair: the judge of every backend. It lists the keys of each query over all rounds and
// takes one softmax over the list.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "core/philox.h"
#include "reformer_native.h"

namespace rfn::test {

struct ReferenceAttention {
  rfn_attention_options options{};
  int64_t batch = 1, length = 0, heads = 1, head_size = 0;
  std::vector<double> q, k, v;    // [B,T,H,D]; k empty when shared
  std::vector<uint8_t> mask;      // [B,T] or empty
  std::vector<double> rotations;  // [sets,D,R,columns]
  int64_t rotation_sets = 1;
  uint64_t seed = 0, step = 0;
  int32_t layer = 0;

  std::vector<int32_t> buckets;          // [B,H,R,T]; computed by hash() unless given
  std::vector<int32_t> sorted;           // [B,H,R,padded]
  std::vector<double> out, log_sum_exp;  // [B,T,H,D], [B,H,T]
  std::vector<double> grad_q, grad_k, grad_v;
  double smallest_margin = std::numeric_limits<double>::infinity();  // of an argmax over its runner-up: small means
                                                                     // float32 may choose otherwise

  bool lsh() const { return options.kind == RFN_ATTENTION_LSH; }
  int64_t rounds() const { return lsh() ? options.rounds : 1; }
  int64_t padded() const {
    if (options.kind == RFN_ATTENTION_FULL) return length;
    return options.padded_length != 0
               ? options.padded_length
               : (length + options.chunk_length - 1) / options.chunk_length * options.chunk_length;
  }
  int64_t row(int64_t b, int64_t t, int64_t h) const { return ((b * length + t) * heads + h) * head_size; }
  bool real(int64_t b, int64_t t) const { return t < length && (mask.empty() || mask[b * length + t] != 0); }

  void hash() {
    int64_t columns = 0, product = 1;
    for (int32_t f = 0; f < options.factor_count; ++f) columns += options.factors[f] / 2, product *= options.factors[f];
    buckets.assign(batch * heads * rounds() * length, 0);
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t set = rotation_sets == 1 ? 0 : rotation_sets == heads ? h : b * heads + h;
        for (int64_t r = 0; r < rounds(); ++r) {
          for (int64_t t = 0; t < length; ++t) {
            int64_t bucket = 0, stride = 1, column = 0;
            for (int32_t f = 0; f < options.factor_count; ++f) {
              const int64_t half = options.factors[f] / 2;
              std::vector<double> z(2 * half);
              for (int64_t j = 0; j < half; ++j) {
                double sum = 0;
                for (int64_t d = 0; d < head_size; ++d) {
                  sum += q[row(b, t, h) + d] * rotations[((set * head_size + d) * rounds() + r) * columns + column + j];
                }
                z[j] = sum, z[half + j] = -sum;
              }
              const int64_t best = std::max_element(z.begin(), z.end()) - z.begin();
              for (int64_t j = 0; j < 2 * half; ++j) {
                if (j != best && real(b, t)) smallest_margin = std::min(smallest_margin, z[best] - z[j]);
              }
              bucket += stride * best;
              stride *= options.factors[f];
              column += half;
            }
            if (options.pad_bucket != 0 && !real(b, t)) bucket = product;
            buckets[((b * heads + h) * rounds() + r) * length + t] = static_cast<int32_t>(bucket);
          }
        }
      }
    }
  }

  void sort() {
    sorted.resize(batch * heads * rounds() * padded());
    for (int64_t i = 0; i < batch * heads * rounds(); ++i) {
      int32_t* const row_of = sorted.data() + i * padded();
      std::iota(row_of, row_of + padded(), 0);
      const int32_t* const bucket = buckets.data() + i * length;
      std::stable_sort(row_of, row_of + length, [&](int32_t x, int32_t y) { return bucket[x] < bucket[y]; });
    }
  }

  struct Key {
    int64_t round, position;
    double log_count, multiplier;
  };

  // Keys of the query at `position`, self left out where it is only a last resort.
  std::vector<Key> keys_of(int64_t b, int64_t h, int64_t position, int64_t first_round, int64_t last_round) const {
    std::vector<Key> keys;
    if (!real(b, position)) return keys;
    const int64_t pair = b * heads + h, c = options.chunk_length,
                  n = lsh() || options.kind == RFN_ATTENTION_LOCAL ? padded() / c : 1;
    const int64_t total = n * rounds(), before = options.chunks_before, after = options.chunks_after;
    const Philox random = philox(seed, step, layer, RFN_SITE_ATTENTION_PROBABILITIES);
    const uint32_t threshold = dropout_threshold(options.dropout);
    const bool strict = lsh() && options.window == RFN_WINDOW_STRICT,
               same = strict || (lsh() && options.window == RFN_WINDOW_SAME_BUCKET);
    const auto bucket = [&](int64_t r, int64_t t) { return buckets[(pair * rounds() + r) * length + t]; };
    const auto slot_of = [&](int64_t r, int64_t t) {
      const int32_t* const first = sorted.data() + (pair * rounds() + r) * padded();
      return std::find(first, first + padded(), static_cast<int32_t>(t)) - first;
    };
    const auto add = [&](int64_t r, int64_t key, int64_t element) {
      if (!real(b, key) || (options.causal != 0 && key > position) || (options.shared_qk != 0 && key == position))
        return;
      double log_count = 0;
      if (lsh() && options.duplicates == RFN_DUPLICATES_LOG_COUNT) {
        int64_t count = 0;
        for (int64_t s = 0; s < rounds(); ++s) {
          if (same && bucket(s, position) != bucket(s, key)) continue;
          const int64_t from = slot_of(s, position), to = slot_of(s, key);
          bool visible = false;
          if (strict) {
            visible = from > to && from - to <= before * c;
          } else {
            for (int64_t o = -before; o <= after; ++o) {
              visible =
                  visible || from / c + o == to / c || (options.wrap != 0 && (from / c + o - to / c) % total == 0);
            }
          }
          count += visible ? 1 : 0;
        }
        log_count = count > 0 ? std::log(static_cast<double>(count)) : std::log(1e-9);
      }
      double multiplier = 1;
      if (options.dropout > 0)
        multiplier = dropout_multiplier(philox_word(random, static_cast<uint64_t>(element)), threshold,
                                        1.0f / (1.0f - options.dropout));
      keys.push_back({r, key, log_count, multiplier});
    };
    if (options.kind == RFN_ATTENTION_FULL) {
      for (int64_t j = 0; j < length; ++j) add(0, j, (pair * length + position) * length + j);
      return keys;
    }
    for (int64_t r = first_round; r < last_round; ++r) {
      const int64_t slot = lsh() ? slot_of(r, position) : position, center = r * n + slot / c;
      const int64_t row_element =
          ((pair * rounds() + r) * padded() + (strict ? position : slot)) * c * (1 + before + after);
      std::vector<int64_t> met;
      for (int64_t o = -before; o <= after; ++o) {
        int64_t chunk = center + o;
        if (options.wrap != 0 && !strict) {
          chunk = ((chunk % total) + total) % total;
        } else if (chunk < r * n || chunk >= (r + 1) * n) {
          continue;
        }
        if (options.repeat_chunks == 0 && std::find(met.begin(), met.end(), chunk) != met.end()) continue;
        met.push_back(chunk);
        for (int64_t x = 0; x < c; ++x) {
          const int64_t key_round = chunk / n, key_slot = chunk % n * c + x;
          const int64_t key = lsh() ? sorted[(pair * rounds() + key_round) * padded() + key_slot] : key_slot;
          if (key >= length) continue;
          if (same && (key_round != r || bucket(r, position) != bucket(r, key))) continue;
          if (strict && !(slot > key_slot && slot - key_slot <= before * c)) continue;
          add(r, key, row_element + (strict ? slot - key_slot - 1 : (o + before) * c + x));
        }
      }
    }
    return keys;
  }

  double scale() const {
    return options.logit_scale != 0 ? options.logit_scale : 1 / std::sqrt(static_cast<double>(head_size));
  }

  // 1 / norm of a key.
  double inverse_norm(const double* key) const {
    double squares = 0;
    for (int64_t d = 0; d < head_size; ++d) squares += key[d] * key[d];
    if (options.key_norm == RFN_KEY_NORM_RMS) return 1 / std::sqrt(squares / static_cast<double>(head_size) + 1e-6);
    if (options.key_norm == RFN_KEY_NORM_L2) return 1 / std::max(std::sqrt(squares), 1e-12);
    return 1;
  }

  const double* key_row(int64_t b, int64_t t, int64_t h) const {
    return (options.shared_qk != 0 ? q : k).data() + row(b, t, h);
  }

  void forward() { forward(0, rounds()); }

  void forward(int64_t first_round, int64_t last_round) {
    out.assign(batch * length * heads * head_size, 0);
    log_sum_exp.assign(batch * heads * length, -std::numeric_limits<double>::infinity());
    each_row(
        first_round, last_round,
        [&](int64_t b, int64_t h, int64_t t, const std::vector<Key>& keys, const std::vector<double>& p, double total) {
          double* const o = out.data() + row(b, t, h);
          if (keys.empty()) {
            if (real(b, t) && options.shared_qk != 0) std::copy_n(v.data() + row(b, t, h), head_size, o);
            return;
          }
          log_sum_exp[(b * heads + h) * length + t] = total;
          for (size_t j = 0; j < keys.size(); ++j) {
            for (int64_t d = 0; d < head_size; ++d)
              o[d] += p[j] * keys[j].multiplier * v[row(b, keys[j].position, h) + d];
          }
        });
  }

  void backward(const std::vector<double>& grad_out, const std::vector<double>& grad_log_sum_exp = {}) {
    backward(grad_out, grad_log_sum_exp, 0, rounds());
  }

  void backward(const std::vector<double>& grad_out, const std::vector<double>& grad_log_sum_exp, int64_t first_round,
                int64_t last_round) {
    forward(first_round, last_round);
    grad_q.assign(q.size(), 0);
    grad_v.assign(v.size(), 0);
    grad_k.assign(k.size(), 0);
    std::vector<double>& key_gradient = options.shared_qk != 0 ? grad_q : grad_k;
    each_row(first_round, last_round,
             [&](int64_t b, int64_t h, int64_t t, const std::vector<Key>& keys, const std::vector<double>& p, double) {
               const double* const dout = grad_out.data() + row(b, t, h);
               if (keys.empty()) {
                 if (real(b, t) && options.shared_qk != 0) {
                   for (int64_t d = 0; d < head_size; ++d) grad_v[row(b, t, h) + d] += dout[d];
                 }
                 return;
               }
               double delta = grad_log_sum_exp.empty() ? 0 : -grad_log_sum_exp[(b * heads + h) * length + t];
               for (int64_t d = 0; d < head_size; ++d) delta += dout[d] * out[row(b, t, h) + d];
               for (size_t j = 0; j < keys.size(); ++j) {
                 const int64_t key = keys[j].position;
                 double along = 0;
                 for (int64_t d = 0; d < head_size; ++d) along += dout[d] * v[row(b, key, h) + d];
                 const double ds = p[j] * (keys[j].multiplier * along - delta);
                 const double* const x = key_row(b, key, h);
                 const double inverse = inverse_norm(x);
                 double projection = 0;  // of the gradient of the normalised key on the key
                 for (int64_t d = 0; d < head_size; ++d)
                   projection += scale() * ds * q[row(b, t, h) + d] * x[d] * inverse;
                 for (int64_t d = 0; d < head_size; ++d) {
                   grad_v[row(b, key, h) + d] += p[j] * keys[j].multiplier * dout[d];
                   grad_q[row(b, t, h) + d] += scale() * ds * x[d] * inverse;
                   double dk = scale() * ds * q[row(b, t, h) + d];
                   if (options.key_norm == RFN_KEY_NORM_RMS)
                     dk -= x[d] * inverse * projection / static_cast<double>(head_size);
                   if (options.key_norm == RFN_KEY_NORM_L2) dk -= x[d] * inverse * projection;
                   key_gradient[row(b, key, h) + d] += inverse * dk;
                 }
               }
             });
  }

 private:
  // body(example, head, position, keys, probabilities before dropout, log-sum-exp)
  template <class Body>
  void each_row(int64_t first_round, int64_t last_round, const Body& body) const {
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t t = 0; t < length; ++t) {
          const std::vector<Key> keys = keys_of(b, h, t, first_round, last_round);
          std::vector<double> s(keys.size());
          for (size_t j = 0; j < keys.size(); ++j) {
            const double* const x = key_row(b, keys[j].position, h);
            double dot = 0;
            for (int64_t d = 0; d < head_size; ++d) dot += q[row(b, t, h) + d] * x[d];
            s[j] = scale() * dot * inverse_norm(x) - keys[j].log_count;
          }
          const double maximum = s.empty() ? 0 : *std::max_element(s.begin(), s.end());
          double sum = 0;
          for (const double value : s) sum += std::exp(value - maximum);
          const double total = maximum + std::log(sum);
          for (double& value : s) value = std::exp(value - total);
          body(b, h, t, keys, s, total);
        }
      }
    }
  }
};

}  // namespace rfn::test
