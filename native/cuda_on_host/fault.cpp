// Faults of a running CUDA thread become a failure of its block: the signal handler does not return to the faulting
// instruction but to a function on a spare stack (the thread's own may be full), which leaves the block.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <memory>
#include <new>

#include "cuda_on_host/executor.h"

namespace rfn::cuda_on_host {
namespace {

constexpr size_t kSpareBytes = 256 << 10;
constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};

// Half of it is the signal stack, half the stack of the landing.
struct Spare {
  char* memory = nullptr;
  Spare() {
    void* mapped = mmap(nullptr, kSpareBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    memory = static_cast<char*>(mapped);
  }
  ~Spare() {
    stack_t off{};
    off.ss_flags = SS_DISABLE;
    sigaltstack(&off, nullptr);
    munmap(memory, kSpareBytes);
  }
};
thread_local std::unique_ptr<Spare> spare;

__thread Fault fault;
__thread char* landing_stack;

// Not instrumented: a sanitizer knows nothing of this stack.
__attribute__((no_sanitize("address"))) void land() { running_executor->leave_after_fault(fault); }

void on_fault(int signal, siginfo_t* info, void* context) {
  if (running_executor == nullptr || !running_executor->running()) {  // not a kernel's: die of it as usual
    ::signal(signal, SIG_DFL);
    return;
  }
  auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
  char* top = landing_stack;
#if defined(__x86_64__)
  fault = {signal, info->si_code == SI_KERNEL ? nullptr : info->si_addr, (machine.gregs[REG_ERR] & 2) != 0};
  machine.gregs[REG_RIP] = reinterpret_cast<greg_t>(&land);
  machine.gregs[REG_RSP] = reinterpret_cast<greg_t>(top) - 8;  // as after a call: 8 below a multiple of 16
#elif defined(__aarch64__)
  fault = {signal, info->si_addr, false};
  machine.pc = reinterpret_cast<uintptr_t>(&land);
  machine.sp = reinterpret_cast<uintptr_t>(top);
#else
#error "the fault handler knows x86-64 and aarch64"
#endif
}

}  // namespace

void install_fault_handler() {
  if (spare == nullptr) spare = std::make_unique<Spare>();
  landing_stack = spare->memory + kSpareBytes;
  stack_t stack{};
  stack.ss_sp = spare->memory;
  stack.ss_size = kSpareBytes / 2;
  stack_t present{};
  sigaltstack(nullptr, &present);
  if (present.ss_sp != stack.ss_sp) sigaltstack(&stack, nullptr);
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (const int signal : kSignals) {
    struct sigaction now {};
    sigaction(signal, nullptr, &now);
    if (now.sa_sigaction != on_fault) sigaction(signal, &action, nullptr);
  }
}

}  // namespace rfn::cuda_on_host
