// Tensor cores, ldmatrix, cp.async, named barriers and narrow formats of ptx.h.
#include "cuda_on_host/ptx.h"

#include "cuda_on_host/executor.h"

namespace rfn::cuda {
namespace {

using namespace cuda_on_host;

Executor& self() { return *running_executor; }

void need_capability(int capability, const char* instruction) {
  if (self().settings().capability < capability) {
    self().fail(cudaErrorIllegalInstruction, std::string(instruction) + " needs compute capability " +
                                                 std::to_string(capability / 10) + "." +
                                                 std::to_string(capability % 10));
  }
}

// ---- mma ----------------------------------------------------------------------------------------

// d[16][8] += a[16][K] b[K][8]. Products of two bf16, f16 or tf32 numbers are exact in float32, so a fused multiply-add
// gives the same bits.
template <int K>
__attribute__((always_inline)) inline void multiply_add(float (&d)[16][8], const float (&a)[16][K],
                                                        const float (&b)[K][8]) {
  for (int i = 0; i < 16; ++i) {
    float row[8];
    for (int j = 0; j < 8; ++j) row[j] = d[i][j];
    for (int k = 0; k < K; ++k)
      for (int j = 0; j < 8; ++j) row[j] += a[i][k] * b[k][j];
    for (int j = 0; j < 8; ++j) d[i][j] = row[j];
  }
}

// Lane l holds, with r = l / 4 and c = l % 4, of D rows r and r + 8, columns 2c and 2c + 1. words 6..9.
void gather_d(const Thread* lanes, float (&d)[16][8]) {
  for (int l = 0; l < kWarpLanes; ++l) {
    std::memcpy(&d[l / 4][l % 4 * 2], &lanes[l].words[6], 8);
    std::memcpy(&d[l / 4 + 8][l % 4 * 2], &lanes[l].words[8], 8);
  }
}
void scatter_d(Thread* lanes, const float (&d)[16][8]) {
  for (int l = 0; l < kWarpLanes; ++l) {
    std::memcpy(&lanes[l].words[6], &d[l / 4][l % 4 * 2], 8);
    std::memcpy(&lanes[l].words[8], &d[l / 4 + 8][l % 4 * 2], 8);
  }
}

// A: word 0 row r, columns 2c, 2c+1 (low half first); word 1 row r+8; words 2, 3 the same 8 columns on. B: word 0 rows
// 2c, 2c+1 of column r; word 1 the same 8 rows on.
template <float (*Convert)(uint16_t)>
void exchange_mma_k16(Thread* lanes, uint32_t) {
  float a[16][16], b[16][8], d[16][8];
  gather_d(lanes, d);
  for (int l = 0; l < kWarpLanes; ++l) {
    const auto& w = lanes[l].words;
    const int r = l / 4, c = l % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      const auto value = [&](int word) {
        return Convert(static_cast<uint16_t>(w[static_cast<size_t>(word)] >> 16 * half));
      };
      a[r][c + half] = value(0);
      a[r + 8][c + half] = value(1);
      a[r][c + 8 + half] = value(2);
      a[r + 8][c + 8 + half] = value(3);
      b[c + half][r] = value(4);
      b[c + 8 + half][r] = value(5);
    }
  }
  multiply_add<16>(d, a, b);
  scatter_d(lanes, d);
}

// A: word 0 row r column c; word 1 row r+8; words 2, 3 the same 4 columns on. B: word 0 row c of column r; word 1 the
// same 4 rows on. The hardware reads the upper 19 bits of each register.
void exchange_mma_k8_tf32(Thread* lanes, uint32_t) {
  float a[16][8], b[8][8], d[16][8];
  gather_d(lanes, d);
  for (int l = 0; l < kWarpLanes; ++l) {
    const auto value = [&](size_t word) { return bit_cast<float>(lanes[l].words[word] & 0xffffe000u); };
    const int r = l / 4, c = l % 4;
    a[r][c] = value(0);
    a[r + 8][c] = value(1);
    a[r][c + 4] = value(2);
    a[r + 8][c + 4] = value(3);
    b[c][r] = value(4);
    b[c + 4][r] = value(5);
  }
  multiply_add<8>(d, a, b);
  scatter_d(lanes, d);
}

constexpr Collective kMmaBf16{"mma.m16n8k16 bf16", exchange_mma_k16<bf16_to_float>};
constexpr Collective kMmaF16{"mma.m16n8k16 f16", exchange_mma_k16<f16_to_float>};
constexpr Collective kMmaTf32{"mma.m16n8k8 tf32", exchange_mma_k8_tf32};

void mma(const Collective& collective, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  need_capability(80, collective.name);
  auto& words = self().current().words;
  std::memcpy(&words[0], a, 16);
  std::memcpy(&words[4], b, 8);
  std::memcpy(&words[6], d, 16);
  self().meet(~0u, collective, site);
  std::memcpy(d, &words[6], 16);
}

// ---- ldmatrix -----------------------------------------------------------------------------------

// words 0, 1: address of one row of 8 halves; lanes 8m .. 8m+7 give the rows of matrix m. Lane l takes, of every
// matrix, elements 2c and 2c + 1 of row r, or transposed, of rows 2c and 2c + 1 element r.
template <int Matrices, bool Transposed>
void exchange_ldmatrix(Thread* lanes, uint32_t) {
  uint16_t matrix[Matrices][8][8];
  const char* rows[Matrices * 8];
  for (int row = 0; row < Matrices * 8; ++row) {
    std::memcpy(&rows[row], lanes[row].words.data(), sizeof rows[row]);
    std::memcpy(matrix[row / 8][row % 8], rows[row], 16);
  }
  for (int l = 0; l < kWarpLanes; ++l) {
    for (int m = 0; m < Matrices; ++m) {
      const int r = l / 4, c = l % 4 * 2;
      if (race_checking()) {  // a lane reads what it takes, whoever gave the address
        if (Transposed) {
          self().check_access(lanes[l], rows[m * 8 + c] + 2 * r, 2, RaceChecker::Access::read);
          self().check_access(lanes[l], rows[m * 8 + c + 1] + 2 * r, 2, RaceChecker::Access::read);
        } else {
          self().check_access(lanes[l], rows[m * 8 + r] + 2 * c, 4, RaceChecker::Access::read);
        }
      }
      const uint32_t low = Transposed ? matrix[m][c][r] : matrix[m][r][c],
                     high = Transposed ? matrix[m][c + 1][r] : matrix[m][r][c + 1];
      lanes[l].words[static_cast<size_t>(m)] = low | high << 16;
    }
  }
}
constexpr Collective kLdmatrix[2][3] = {{{"ldmatrix.x1", exchange_ldmatrix<1, false>},
                                         {"ldmatrix.x2", exchange_ldmatrix<2, false>},
                                         {"ldmatrix.x4", exchange_ldmatrix<4, false>}},
                                        {{"ldmatrix.x1.trans", exchange_ldmatrix<1, true>},
                                         {"ldmatrix.x2.trans", exchange_ldmatrix<2, true>},
                                         {"ldmatrix.x4.trans", exchange_ldmatrix<4, true>}}};

void ldmatrix(uint32_t* registers, int matrices, bool transposed, const void* row, Site site) {
  const Collective& collective = kLdmatrix[transposed][matrices == 4 ? 2 : matrices - 1];
  need_capability(75, collective.name);
  Thread& thread = self().current();
  if (thread.lane < matrices * 8) {  // the other lanes' addresses are not used
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
      self().fail(cudaErrorMisalignedAddress, std::string(collective.name) + ": row address not 16-byte aligned");
    }
    if (!self().owns_shared(row, 16))
      self().fail(cudaErrorIllegalAddress, std::string(collective.name) + ": row outside shared memory");
  }
  std::memcpy(thread.words.data(), &row, sizeof row);
  self().meet(~0u, collective, site);
  std::memcpy(registers, thread.words.data(), static_cast<size_t>(matrices) * 4);
}

// ---- cp.async -----------------------------------------------------------------------------------

void land(const AsyncCopy& copy) {
  std::memcpy(copy.shared, copy.global, static_cast<size_t>(copy.source_bytes));
  std::memset(static_cast<char*>(copy.shared) + copy.source_bytes, 0,
              static_cast<size_t>(copy.bytes - copy.source_bytes));
}

void land_first(Thread& thread, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const AsyncCopy& copy = thread.copies[i];
    if (!copy.has_landed) land(copy);
    if (race_checking()) self().races().landed(thread, copy.shared, static_cast<size_t>(copy.bytes));
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(count));
}

}  // namespace

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line) {
  mma(kMmaBf16, d, a, b, {file, line});
}
void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line) {
  mma(kMmaF16, d, a, b, {file, line});
}
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line) {
  mma(kMmaTf32, d, a, b, {file, line});
}

#define RFN_LDMATRIX(n)                                                                      \
  void ldmatrix_x##n(uint32_t(&r)[n], const void* row, const char* file, int line) {         \
    ldmatrix(r, n, false, row, {file, line});                                                \
  }                                                                                          \
  void ldmatrix_x##n##_trans(uint32_t(&r)[n], const void* row, const char* file, int line) { \
    ldmatrix(r, n, true, row, {file, line});                                                 \
  }
RFN_LDMATRIX(1)
RFN_LDMATRIX(2)
RFN_LDMATRIX(4)
#undef RFN_LDMATRIX

void cp_async_bytes(void* shared, const void* global, int bytes, int source_bytes, const char* file, int line) {
  const auto fail = [&](cudaError_t error, const char* what) {
    self().fail(error, std::string("cp.async at ") + file + ":" + std::to_string(line) + ": " + what);
  };
  if (reinterpret_cast<uintptr_t>(shared) % static_cast<unsigned>(bytes) != 0)
    fail(cudaErrorMisalignedAddress, "misaligned destination");
  if (reinterpret_cast<uintptr_t>(global) % static_cast<unsigned>(bytes) != 0)
    fail(cudaErrorMisalignedAddress, "misaligned source");
  if (!self().owns_shared(shared, static_cast<size_t>(bytes)))
    fail(cudaErrorIllegalAddress, "destination outside shared memory");
  if (source_bytes < 0 || source_bytes > bytes) fail(cudaErrorIllegalAddress, "more source bytes than bytes");
  ++self().statistics().copies;
  const bool plain = self().settings().capability < 80;  // a plain copy there
  Thread& thread = self().current();
  if (race_checking()) {
    self().check_access(thread, global, static_cast<size_t>(source_bytes), RaceChecker::Access::read);
    self().check_access(thread, shared, static_cast<size_t>(bytes),
                        plain ? RaceChecker::Access::write : RaceChecker::Access::async_write);
  }
  const AsyncCopy copy{shared, global, bytes, source_bytes, plain || self().coin()};
  if (!plain) thread.copies.push_back(copy);
  if (copy.has_landed) {
    land(copy);
  } else if (source_bytes > 0) {
    // The source is read when the copy lands, but a bad address should be reported here, with this call.
    static_cast<void>(*static_cast<const volatile char*>(global));
    static_cast<void>(*(static_cast<const volatile char*>(global) + source_bytes - 1));
  }
}

void cp_async_commit() {
  Thread& thread = self().current();
  thread.copy_groups.push_back(thread.copies.size());
}

void cp_async_wait_groups(int in_flight) {
  Thread& thread = self().current();
  auto& groups = thread.copy_groups;
  if (groups.size() <= static_cast<size_t>(in_flight)) return;
  const size_t complete = groups.size() - static_cast<size_t>(in_flight), landed = groups[complete - 1];
  land_first(thread, landed);
  groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(complete));
  for (size_t& end : groups) end -= landed;
}

void cp_async_wait_all() {
  Thread& thread = self().current();
  land_first(thread, thread.copies.size());
  thread.copy_groups.clear();
}

void named_barrier_sync(int barrier, int threads, const char* file, int line) {
  self().named_barrier(barrier, threads, true, {file, line});
}
void named_barrier_arrive(int barrier, int threads, const char* file, int line) {
  self().named_barrier(barrier, threads, false, {file, line});
}

// ---- narrow formats -----------------------------------------------------------------------------

uint32_t round_to_tf32(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return (bits & 0x007fffffu) == 0 ? bits : 0x7fffffffu & 0xffffe000u;
  return (bits + 0x1000u) & 0xffffe000u;  // half of the dropped 13 bits, added to the magnitude
}

uint16_t float_to_bf16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float bf16_to_float(uint16_t x) { return bit_cast<float>(static_cast<uint32_t>(x) << 16); }

uint16_t float_to_f16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: counted in units of 2^-24, rounded by float addition at 2^-1
    const float units = bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bit_cast<uint32_t>(units) - bit_cast<uint32_t>(0.5f)));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

float f16_to_float(uint16_t x) {
  const uint32_t sign = (x & 0x8000u) << 16, magnitude = x & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  const float value = bit_cast<float>(magnitude << 13) * 0x1p112f;  // exponent bias 15 to 127; subnormals too
  return bit_cast<float>(sign | bit_cast<uint32_t>(value));
}

}  // namespace rfn::cuda
