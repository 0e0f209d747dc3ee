// Optimizers, the norm of gradients, and sampling.
#include <algorithm>
#include <vector>

#include "core/checks.h"
#include "core/tensor.h"

namespace rfn {
namespace {

// Arrays of tensors, as long as the op says. An entry that the op does not read is passed over everywhere.
struct List {
  const char* name;
  const rfn_tensor* tensors;
  Access access;
};

// Calls each(entry) for all entries, whose tensors are held against each other and against what was checked before.
template <class Each>
void for_entries(Checks& checks, int64_t count, const Each& each) {
  for (int64_t i = 0; checks.ok() && i < count; ++i) {
    const size_t before = checks.checked();
    each(i);
    checks.finish();
    checks.forget(before);
  }
}

// Nothing that is written shares memory with another entry: by a walk over all of them in the order of their memory.
template <size_t lists, class Reads>
void entries_apart(Checks& checks, int64_t count, const List (&list)[lists], const Reads& reads) {
  struct Entry {
    uintptr_t begin, end;
    size_t list;
    int64_t index;
  };
  if (!checks.ok() || checks.is_query()) return;
  thread_local std::vector<Entry> entries;  // grows to the longest list and stays
  entries.clear();
  for (int64_t i = 0; i < count; ++i) {
    for (size_t l = 0; l < lists; ++l) {
      if (!reads(l, i)) continue;
      const rfn_tensor& tensor = list[l].tensors[i];
      const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.data);
      entries.push_back({begin, begin + static_cast<uintptr_t>(elements(tensor)) * sizeof(float), l, i});
    }
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
  const Entry *furthest = nullptr, *furthest_written = nullptr;  // of those before
  for (const Entry& entry : entries) {
    const bool written = list[entry.list].access == Access::kWritten;
    const Entry* const other = written ? furthest : furthest_written;
    if (other != nullptr && entry.begin < other->end) {
      return checks.failed("%s: expected memory apart from %s, got an overlap",
                           Name(list[entry.list].name, entry.index).text,
                           Name(list[other->list].name, other->index).text);
    }
    if (furthest == nullptr || entry.end > furthest->end) furthest = &entry;
    if (written && (furthest_written == nullptr || entry.end > furthest_written->end)) furthest_written = &entry;
  }
}

// Checks of an op over many parameters: its arrays, and the parameters' decays.
template <class Op>
void check_parameters(Checks& checks, const Op& op) {
  checks.integer("step", op.step, 1, INT64_MAX);
  checks.integer("count", op.count, 1, kLargestSize);
  if (op.parameters == nullptr) checks.failed("parameters: expected a pointer, got NULL");
  if (op.gradients == nullptr && !checks.is_query()) checks.failed("gradients: expected a pointer, got NULL");
  checks.optional_result("clip", op.clip);
  for (int64_t i = 0; checks.ok() && op.weight_decays != nullptr && i < op.count; ++i)
    checks.at_least(Name("weight_decays", i).text, op.weight_decays[i], 0);
}

void check_parameter(Checks& checks, const rfn_tensor& parameter, const Name& name) {
  if (is_absent(parameter)) checks.failed("%s: expected F32 of any shape, got an absent tensor", name.text);
  checks.any_shape(name.text, parameter, Access::kWritten);
}

}  // namespace

rfn_status validate(const rfn_global_norm& op, Call call, const Workspace& workspace) {
  Checks checks("global_norm", call, workspace);
  checks.at_least("max_norm", op.max_norm, 0);
  checks.integer("count", op.count, 1, kLargestSize);
  if (op.gradients == nullptr) checks.failed("gradients: expected a pointer, got NULL");
  checks.result("result", op.result);
  for_entries(checks, op.count, [&](int64_t i) {
    const Name name("gradients", i);
    if (is_absent(op.gradients[i])) checks.failed("%s: expected F32 of any shape, got an absent tensor", name.text);
    checks.any_shape(name.text, op.gradients[i], Access::kRead);
  });
  return checks.finish();
}

rfn_status validate(const rfn_adamw& op, Call call, const Workspace& workspace) {
  Checks checks("adamw", call, workspace);
  checks.at_least("learning_rate", op.learning_rate, 0);
  checks.fraction("beta1", op.beta1);
  checks.fraction("beta2", op.beta2);
  checks.more_than("epsilon", op.epsilon, 0);
  check_parameters(checks, op);
  const List lists[] = {{"parameters", op.parameters, Access::kWritten},
                        {"gradients", op.gradients, Access::kRead},
                        {"moments1", op.moments1, Access::kWritten},
                        {"moments2", op.moments2, Access::kWritten}};
  for (const List& list : lists) {
    if (list.tensors == nullptr) checks.failed("%s: expected a pointer, got NULL", list.name);
  }
  for_entries(checks, op.count, [&](int64_t i) {
    const Name name("parameters", i);
    check_parameter(checks, op.parameters[i], name);
    for (const List& list : lists) {
      if (&list == lists) continue;
      checks.same_shape(Name(list.name, i).text, list.tensors[i], name.text, op.parameters[i], list.access);
    }
  });
  entries_apart(checks, op.count, lists, [](size_t, int64_t) { return true; });
  return checks.finish();
}

rfn_status validate(const rfn_adafactor& op, Call call, const Workspace& workspace) {
  Checks checks("adafactor", call, workspace);
  checks.at_least("learning_rate", op.learning_rate, 0);
  checks.more_than("decay_exponent", op.decay_exponent, 0);
  checks.more_than("clip_threshold", op.clip_threshold, 0);
  checks.at_least("epsilon1", op.epsilon1, 0);
  checks.at_least("epsilon2", op.epsilon2, 0);
  checks.flag("scale_parameter", op.scale_parameter);
  check_parameters(checks, op);
  const List lists[] = {{"parameters", op.parameters, Access::kWritten},
                        {"gradients", op.gradients, Access::kRead},
                        {"rows", op.rows, Access::kWritten},
                        {"columns", op.columns, Access::kWritten},
                        {"moments2", op.moments2, Access::kWritten}};
  const auto reads = [&](size_t list, int64_t i) { return list < 2 || (list == 4) == (op.parameters[i].rank < 2); };
  for_entries(checks, op.count, [&](int64_t i) {
    const Name name("parameters", i);
    const rfn_tensor& parameter = op.parameters[i];
    check_parameter(checks, parameter, name);
    for (size_t l = 1; checks.ok() && l < std::size(lists); ++l) {
      if (!reads(l, i)) continue;
      const List& list = lists[l];
      if (list.tensors == nullptr) {  // a query reads the parameters' shapes alone
        if (!checks.is_query()) checks.failed("%s: expected a pointer, got NULL", list.name);
        continue;
      }
      const rfn_tensor& tensor = list.tensors[i];
      const Name entry(list.name, i);
      const char* const text = entry.text;
      const int64_t columns = parameter.rank < 2 ? 1 : parameter.shape[parameter.rank - 1];
      if (l == 2) {
        checks.output(text, tensor, RFN_F32, "[rows]", {elements(parameter) / columns});
      } else if (l == 3) {
        checks.output(text, tensor, RFN_F32, "[columns]", {columns});
      } else {
        checks.same_shape(text, tensor, name.text, parameter, list.access);
      }
    }
  });
  entries_apart(checks, op.count, lists, reads);
  return checks.finish();
}

rfn_status validate(const rfn_sample& op, Call call, const Workspace& workspace) {
  Checks checks("sample", call, workspace);
  checks.at_least("temperature", op.temperature, 0);
  if (!(op.top_p > 0 && op.top_p <= 1))
    checks.failed("top_p: expected 0 < value <= 1, got %g", static_cast<double>(op.top_p));
  checks.integer("top_k", op.top_k, 0, INT32_MAX);
  const int64_t rows = op.logits.shape[0], vocabulary = op.logits.shape[1];
  checks.anchor("logits", op.logits, RFN_F32, "[N,V]", {rows, vocabulary});
  checks.output("ids", op.ids, RFN_I32, "[N]", {rows});
  return checks.finish();
}

}  // namespace rfn
