// Fibers: stacks, and the switch from one to another within an OS thread.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
// EMULATION_UCONTEXT chooses the portable way where the other is there too, to test it.
#if defined(__x86_64__) && defined(__ELF__) && !defined(EMULATION_UCONTEXT)
#define EMULATION_ASSEMBLY 1
#else
#include <ucontext.h>
#endif

namespace emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;  // frames of unoptimised, instrumented code are large
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

// A stack with a page below it that must not be touched.
class Stack {
 public:
  // Tops at the same place of their pages would compete for the same lines of the cache.
  explicit Stack(size_t index) : unused_(index % 16 * 256) {
    void* map =
        mmap(nullptr, guard() + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(map);
    mprotect(base_, guard(), PROT_NONE);
  }
  ~Stack() {
    if (!base_) return;
    forget_frames();
    munmap(base_, guard() + kStackBytes);
  }
  Stack(Stack&& other) noexcept : base_(std::exchange(other.base_, nullptr)), unused_(other.unused_) {}
  char* low() const { return base_ + guard(); }
  char* high() const { return low() + kStackBytes - unused_; }
  // AddressSanitizer keeps the frames of an abandoned thread after the memory has another use.
  void forget_frames() const {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(low(), kStackBytes);
#endif
  }

 private:
  static size_t guard() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
  char* base_;
  size_t unused_;
};

// Where execution continues. Every change of stacks is reported to AddressSanitizer.
struct Context {
#if defined(EMULATION_ASSEMBLY)
  void* stack_pointer = nullptr;
#else
  ucontext_t machine{};
#endif
  const void* stack_low = nullptr;
  size_t stack_bytes = 0;
  void* sanitizer = nullptr;
};

#if defined(EMULATION_ASSEMBLY)
// Continues where `to` was saved. ucontext needs a system call for that. Inline, and with a jump in place of
// a return: the processor would predict that a return goes back to where the call came from.
__attribute__((always_inline)) inline void switch_stack(void** from, void* to) {
  asm volatile(
      "leaq -128(%%rsp), %%rsp\n\t"  // functions may use as much below the stack pointer
      "pushq %%rbp\n\t"
      "pushq %%rbx\n\t"
      "leaq 1f(%%rip), %%rax\n\t"
      "pushq %%rax\n\t"
      "movq %%rsp, (%0)\n\t"
      "movq %1, %%rsp\n\t"
      "popq %%rax\n\t"
      "jmp *%%rax\n"
      "1:\n\t"
      "popq %%rbx\n\t"
      "popq %%rbp\n\t"
      "leaq 128(%%rsp), %%rsp"
      : "+D"(from), "+S"(to)
      :
      : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2",
        "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
        "xmm15", "cc", "memory");
}
#endif

void begin_at(Context& context, const Stack& stack, void (*entry)()) {
  context.stack_low = stack.low();
  context.stack_bytes = kStackBytes;
  stack.forget_frames();
#if defined(EMULATION_ASSEMBLY)
  void** top = reinterpret_cast<void**>(stack.high()) - 2;  // so that the stack is aligned as after a call
  *top = reinterpret_cast<void*>(entry);
  context.stack_pointer = top;
#else
  getcontext(&context.machine);
  context.machine.uc_stack.ss_sp = stack.low();
  context.machine.uc_stack.ss_size = kStackBytes;
  context.machine.uc_link = nullptr;
  makecontext(&context.machine, entry, 0);
#endif
}

// `leaving_for_good`: the stack of `from` will not be resumed.
inline void switch_to(Context& from, Context& to, bool leaving_for_good = false) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(leaving_for_good ? nullptr : &from.sanitizer, to.stack_low, to.stack_bytes);
#else
  (void)leaving_for_good;
#endif
#if defined(EMULATION_ASSEMBLY)
  switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.machine, &to.machine);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
#endif
}

}  // namespace
}  // namespace emulation
