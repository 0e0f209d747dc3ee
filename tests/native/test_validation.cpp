// What the door does with any op: structs of earlier versions, random words, sizes whose products overflow, messages.
#include <array>
#include <cstddef>
#include <tuple>

#include "core/complete.h"
#include "validation.h"

namespace rfn::test {
namespace {

// An op's struct that has grown at its end in two minor versions.
struct Grown {
  uint32_t struct_size;
  int32_t first;
  int64_t second;  // since the first of them
  int64_t third;   // since the second
};

}  // namespace
}  // namespace rfn::test

template <>
struct rfn::EarlierSizes<rfn::test::Grown> {
  static constexpr std::array list = {offsetof(test::Grown, second), offsetof(test::Grown, third)};
};

namespace rfn::test {
namespace {

// What programs pass that were compiled before a struct grew: what they do not know is absent, and not read from them.
TEST(EarlierMinorVersion, StructThatHasGrown_IsTakenAndItsNewFieldsAreAbsent) {
  const Grown now = {sizeof(Grown), 1, 2, 3};
  const auto given = [&](size_t size) {
    const volatile size_t given_size = size;  // the compiler would else warn of fields that are not there
    std::vector<uint8_t> bytes(given_size);   // not a byte more: a checker of memory sees reads behind it
    std::memcpy(bytes.data(), &now, size);
    const uint32_t struct_size = static_cast<uint32_t>(size);
    std::memcpy(bytes.data(), &struct_size, sizeof(struct_size));
    Grown seen = {};
    const rfn_status status =
        with_complete("grown", *reinterpret_cast<const Grown*>(bytes.data()), [&](const Grown& complete) {
          seen = complete;
          return RFN_OK;
        });
    return std::make_tuple(status, seen.struct_size, seen.first, seen.second, seen.third);
  };
  const uint32_t whole = sizeof(Grown);
  EXPECT_EQ(given(sizeof(Grown)), std::make_tuple(RFN_OK, whole, 1, int64_t{2}, int64_t{3}));
  EXPECT_EQ(given(offsetof(Grown, third)), std::make_tuple(RFN_OK, whole, 1, int64_t{2}, int64_t{0}));
  EXPECT_EQ(given(offsetof(Grown, second)), std::make_tuple(RFN_OK, whole, 1, int64_t{0}, int64_t{0}));
  for (const size_t size : {size_t{4}, size_t{12}, sizeof(Grown) - 1}) {
    EXPECT_EQ(std::get<0>(given(size)), RFN_INVALID_ARGUMENT) << size;
    EXPECT_NE(std::string(last_error()).find("grown: struct_size: expected 24"), std::string::npos) << last_error();
  }
}

// One or two words of a correct call replaced by others: it runs, or is refused; no memory but its own is touched
// (guards, AddressSanitizer). Words that are part of a pointer stay, and no tensor claims more memory than it has: both
// are the caller's affair.
void fuzz(const Stream& stream, Call& call, Random& random) {
  constexpr uint32_t kWords[] = {0,  1,        2,        3,          4,          5,          7,          8,
                                 64, 1u << 16, 1u << 30, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FC00000, 0x3F000000};
  constexpr int64_t kLargestWorkspace = int64_t{64} << 20;
  const Checker correct(stream, call);
  const std::vector<uint8_t> before(call.bytes, call.bytes + call.size);
  int ran = 0, refused = 0;
  for (int trial = 0; trial < 400; ++trial) {
    for (int64_t change = random.below(2); change >= 0; --change) {
      uint8_t* const word = call.bytes + 4 * random.below(static_cast<int64_t>(call.size / 4));
      bool pointer = false;
      for (const auto& a : call.arguments) {
        const uint8_t* const data = reinterpret_cast<const uint8_t*>(a.data);
        pointer = pointer || (word >= data && word < data + sizeof(void*));
      }
      if (!pointer) std::memcpy(word, &kWords[random.below(std::size(kWords))], 4);
    }
    for (const auto& a : call.arguments)
      if (a.view != nullptr) a.view->bytes = std::min(a.view->bytes, a.memory->bytes());
    int64_t bytes = 0;
    rfn_status status = call.has_query() ? call.query(stream.context(), call.bytes, call.pass, &bytes) : RFN_OK;
    if (status == RFN_OK && bytes <= kLargestWorkspace) {
      const GuardedMemory workspace(bytes, 0);
      status = call.run(stream, call.bytes, workspace.data(), bytes);
    }
    EXPECT_TRUE(status == RFN_OK || status == RFN_INVALID_ARGUMENT) << call.name << ": " << rfn_last_error();
    ++(status == RFN_OK ? ran : refused);
    std::copy(before.begin(), before.end(), call.bytes);
  }
  EXPECT_GT(ran, 0) << call.name;
  EXPECT_GT(refused, 0) << call.name;
}

// ONE(op, functions, set-up) or BOTH(op, set-up) for a correct call of each op; not of those of many tensors,
// whose ops point to arrays as long as they say.
// clang-format off
#define RFN_EVERY_CALL(ONE, BOTH) \
  BOTH(embedding, embedding(call, RFN_POSITIONS_AXIAL)) \
  BOTH(layer_norm, layer_norm(call)) \
  BOTH(linear, linear(call)) \
  BOTH(layer_norm, layer_norm(call, RFN_F16)) \
  BOTH(linear, linear(call, RFN_BF16)) \
  BOTH(feed_forward, feed_forward(call, RFN_F16)) \
  BOTH(attention, attention(call)) \
  BOTH(attention, attention(call, RFN_BF16)) \
  BOTH(feed_forward, feed_forward(call)) \
  BOTH(reversible_block, block(call, RFN_RESIDUAL_EXACT, Kept::kActivations)) \
  ONE(reversible_block_decode, RFN_ONE_PASS(reversible_block_decode, forward), decode(call, RFN_RESIDUAL_EXACT)) \
  BOTH(final_norm, final_norm(call, RFN_COMBINE_CONCATENATE)) \
  BOTH(head_loss, head(call)) \
  ONE(random_normal, RFN_NO_WORKSPACE(random_normal, forward), random_normal(call)) \
  ONE(bucket_rings, RFN_NO_WORKSPACE(bucket_rings, forward), bucket_rings(call)) \
  ONE(sample, RFN_ONE_PASS(sample, forward), sample(call))
// clang-format on

TEST_F(Validation, AnyOp_RandomWords_RunsOrRefuses) {
  Random random(20);
#define RFN_FUZZ(op, pass, ...)  \
  {                              \
    OpCall<rfn_##op> call(pass); \
    __VA_ARGS__;                 \
    fuzz(stream, call, random);  \
  }
#define RFN_FUZZ_BOTH(op, ...) RFN_FUZZ(op, RFN_FORWARD(op), __VA_ARGS__) RFN_FUZZ(op, RFN_BACKWARD(op), __VA_ARGS__)
  RFN_EVERY_CALL(RFN_FUZZ, RFN_FUZZ_BOTH)
#undef RFN_FUZZ_BOTH
#undef RFN_FUZZ
}

// Sizes of a correct call replaced by huge and by negative ones, everywhere that the old size stands, so that they fit
// each other, and in the numbers of the options: it is refused, or a workspace that no memory has is asked for. Nothing
// overflows on the way (UndefinedBehaviorSanitizer).
void huge_sizes(const Stream& stream, Call& call, Random& random) {
  constexpr int64_t kSizes[] = {0,
                                -1,
                                INT64_MIN,
                                INT32_MAX,
                                int64_t{1} << 31,
                                int64_t{1} << 32,
                                int64_t{1} << 40,
                                int64_t{1} << 48,
                                int64_t{1} << 62,
                                INT64_MAX - 7,
                                INT64_MAX - 1,
                                INT64_MAX};
  const auto draw = [&] {
    return random.below(2) == 0 ? kSizes[random.below(std::size(kSizes))] : INT64_MAX >> random.below(62);
  };
  const std::vector<uint8_t> before(call.bytes, call.bytes + call.size);
  std::vector<int64_t*> numbers;  // 64 bits that are neither an address nor a capacity
  for (size_t at = 8; at + 8 <= call.size; at += 8) {
    bool is_number = true;
    for (const auto& argument : call.arguments) {
      const uint8_t *const word = call.bytes + at, *const data = reinterpret_cast<const uint8_t*>(argument.data);
      const size_t length = argument.view == nullptr ? sizeof(void*) : sizeof(void*) + sizeof(int64_t);
      is_number = is_number && !(word >= data && word < data + length);
    }
    if (is_number) numbers.push_back(reinterpret_cast<int64_t*>(call.bytes + at));
  }
  for (int trial = 0; trial < 400; ++trial) {
    for (int64_t change = random.below(3); change >= 0; --change) {
      const auto& chosen =
          call.arguments[static_cast<size_t>(random.below(static_cast<int64_t>(call.arguments.size())))];
      if (chosen.view == nullptr || chosen.view->rank < 1 || chosen.view->rank > 4 || random.below(4) == 0) {
        *numbers[static_cast<size_t>(random.below(static_cast<int64_t>(numbers.size())))] = draw();
        continue;
      }
      const int64_t old = chosen.view->shape[random.below(chosen.view->rank)], size = draw();
      for (const auto& argument : call.arguments) {
        if (argument.view == nullptr) continue;
        for (int64_t& other : argument.view->shape) other = other == old ? size : other;
      }
    }
    int64_t bytes = -7;
    if (call.has_query()) {
      const rfn_status status = call.query(stream.context(), call.bytes, call.pass, &bytes);
      EXPECT_TRUE(status == RFN_OK || status == RFN_INVALID_ARGUMENT) << call.name << ": " << rfn_last_error();
      EXPECT_TRUE(status == RFN_OK ? bytes >= 0 : bytes == -7) << call.name << ": " << bytes;
    }
    if (bytes <= 0) {  // without a workspace nothing runs that needs one
      const rfn_status status = call.run(stream, call.bytes, nullptr, 0);
      EXPECT_TRUE(status == RFN_OK || status == RFN_INVALID_ARGUMENT) << call.name << ": " << rfn_last_error();
    }
    std::copy(before.begin(), before.end(), call.bytes);
  }
}

TEST_F(Validation, AnyOp_HugeSizes_RefusedWithoutOverflow) {
  Random random(21);
#define RFN_HUGE(op, pass, ...)       \
  {                                   \
    OpCall<rfn_##op> call(pass);      \
    __VA_ARGS__;                      \
    huge_sizes(stream, call, random); \
  }
#define RFN_HUGE_BOTH(op, ...) RFN_HUGE(op, RFN_FORWARD(op), __VA_ARGS__) RFN_HUGE(op, RFN_BACKWARD(op), __VA_ARGS__)
  RFN_EVERY_CALL(RFN_HUGE, RFN_HUGE_BOTH)
#undef RFN_HUGE_BOTH
#undef RFN_HUGE
  const std::pair<const char*, Stage> stages[] = {{"lsh_hash", rfn_lsh_hash},
                                                  {"lsh_sort", rfn_lsh_sort},
                                                  {"lsh_attend", rfn_lsh_attend},
                                                  {"lsh_combine", rfn_lsh_combine},
                                                  {"lsh_combine_backward", rfn_lsh_combine_backward},
                                                  {"lsh_attend_backward", rfn_lsh_attend_backward}};
  for (const auto& [name, stage] : stages) {
    OpCall<rfn_attention> call(name, stage);
    stage_tensors(call, stage);
    huge_sizes(stream, call, random);
  }
}

// The smallest case of the kind: rounding up to a multiple of the chunk.
TEST_F(Validation, Attention_LengthThatNothingHolds_RefusedBeforeItIsPadded) {
  rfn_attention op = make_op<rfn_attention>();
  op.options = lsh_options();
  op.options.chunk_length = 2;
  op.options.padded_length = 0;
  op.q = op.v = shape({1, INT64_MAX, 1, 2});
  int64_t bytes = -7;
  EXPECT_TRUE(Fails(rfn_attention_workspace(context, &op, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"attention: q: expected F32 [B,T,H,D] with sizes of 1 to 2147483647"}));
  EXPECT_TRUE(Fails(rfn_lsh_sort(stream, &op, nullptr, 0), RFN_INVALID_ARGUMENT, {"lsh_sort: q", "sizes of 1 to"}));
  EXPECT_EQ(bytes, -7);
}

// Sizes that fit one by one and whose products do not fit 64 bits, or any memory.
TEST_F(Validation, WorkspaceQuery_ProductsOverflow_Refused) {
  const int64_t huge = INT32_MAX;
  int64_t bytes = -7;
  rfn_layer_norm norm = make_op<rfn_layer_norm>();
  norm.epsilon = 1e-5f;
  norm.x = shape({huge, huge});
  EXPECT_TRUE(Fails(rfn_layer_norm_workspace(context, &norm, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"layer_norm", "x", "elements"}));

  rfn_feed_forward feed = make_op<rfn_feed_forward>();
  feed.x = shape({huge, 1});
  feed.w1 = shape({huge, 1});
  EXPECT_TRUE(Fails(rfn_feed_forward_workspace(context, &feed, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"feed_forward", "N * F"}));

  rfn_attention attention = make_op<rfn_attention>();
  attention.options = lsh_options();
  attention.options.padded_length = 0;
  attention.q = attention.v = shape({1, huge / 8, 8, 1});
  attention.options.rounds = INT32_MAX;
  EXPECT_TRUE(Fails(rfn_attention_workspace(context, &attention, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"attention", "B * H * R"}));
  attention.options.rounds = 1;
  attention.q = attention.v = shape({1, 2, 65536, 65536});
  EXPECT_TRUE(Fails(rfn_attention_workspace(context, &attention, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"attention", "H * D"}));
  EXPECT_EQ(bytes, -7);
}

TEST_F(Validation, Messages_Tensor_NameExpectedAndGot) {
  rfn_attention op = make_op<rfn_attention>();
  op.options = lsh_options();
  op.q = shape({2, 7, 4});
  int64_t bytes = 0;
  EXPECT_TRUE(Fails(rfn_attention_workspace(context, &op, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"attention: q: expected F32 [B,T,H,D], got F32 rank 3 [2,7,4]"}));
  op.q = shape({2, 9, 4, 16});
  op.v = shape({2, 9, 4, 8});
  EXPECT_TRUE(Fails(rfn_attention_workspace(context, &op, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"attention: v: expected F32 [B,T,H,D] = [2,9,4,16], got F32 rank 4 [2,9,4,8]"}));
  op.v = shape({2, 9, 4, 16}, RFN_I32);
  EXPECT_TRUE(Fails(rfn_attention_workspace(context, &op, RFN_PASS_FORWARD, &bytes), RFN_INVALID_ARGUMENT,
                    {"attention: v: expected F32 (the type of q) [B,T,H,D], got I32 rank 4 [2,9,4,16]"}));
}

}  // namespace
}  // namespace rfn::test
