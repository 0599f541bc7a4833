// CUDA threads as fibers of one OS thread. A thread runs until it must wait for others (a barrier, a
// shuffle), then the next one of its warp continues, and after the last the scheduler begins another pass
// over the warp, or goes to the next warp. Blocks run one after the other, and so do launches, whatever
// thread makes them.

#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "fibers.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {
namespace {

// The lanes of one mask, in one warp. Two rounds alternate: a lane may begin the next while others still read
// this.
struct Group {
  uint32_t mask = 0, arrived = 0;
  uint64_t generation = 0;
  Meeting meeting = Meeting::sync;  // of those who have arrived
  Round rounds[2];
};

enum class State { ready, at_barrier, in_group, done };

struct Thread {
  Context context;
  State state = State::ready;
  uint3 index{};
  Group* group = nullptr;  // while in_group
};

struct Warp {
  std::vector<std::unique_ptr<Group>> groups;
  Group* latest = nullptr;    // the last that met
  Thread* threads = nullptr;  // the first of its lanes
  int size = 0;               // how many lanes there are
  uint32_t live = 0;

  Group& group_of(uint32_t mask) {
    for (auto& group : groups) {
      if (group->mask == mask) return *group;
    }
    groups.push_back(std::make_unique<Group>());
    groups.back()->mask = mask;
    return *groups.back();
  }
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int live = 0, at_barrier = 0, votes = 0, result = 0;
  bool has_reduce = false;
  Reduce reduce = Reduce::none;
  const std::function<void()>* kernel = nullptr;
  std::exception_ptr error;
  void* shared = nullptr;
  size_t shared_bytes = 0;
};

struct Emulator {
  std::vector<Stack> stacks;
  Context scheduler;
  Block* block = nullptr;
  Warp* warp = nullptr;    // that runs
  std::vector<int> order;  // of its lanes in this pass
  size_t turn = 0;         // how many of them had theirs
  int lane = -1;           // that runs
  bool shuffled = false;
  uint64_t random = 1;

  uint64_t draw() {  // xorshift
    random ^= random << 13;
    random ^= random >> 7;
    return random ^= random << 17;
  }
  // Numbers 0, 1, ... in the order of the next turn.
  template <class Number>
  void reorder(std::vector<Number>& order) {
    if (!shuffled) return;
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[(draw() >> 32) * i >> 32]);
  }
  Thread& thread() { return warp->threads[lane]; }
  // The next lane of the pass that can run, made the one that does; null after the last.
  Thread* next() {
    while (turn < order.size()) {
      lane = order[turn++];
      if (lane >= warp->size || thread().state != State::ready) continue;
      threadIdx = thread().index;
      return &thread();
    }
    return nullptr;
  }
  void leave(Context& from, bool for_good = false) {
    Thread* const following = next();
    switch_to(from, following ? following->context : scheduler, for_good);
  }
  void wait(State state) {
    thread().state = state;
    leave(thread().context);
  }
};

thread_local Emulator emulator_of_this_thread;
std::mutex one_launch;
Emulator* emulator = nullptr;  // of the launch

}  // namespace

void broken(const std::string& message) {
  const auto text = [](uint3 i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
  };
  throw std::runtime_error("emulated CUDA: " + message + ", in thread " + text(threadIdx) + " of block " +
                           text(blockIdx));
}

namespace {

void release_barrier(Block& block) {
  if (block.at_barrier == 0 || block.at_barrier < block.live) return;
  block.result = block.reduce == Reduce::all   ? block.votes == block.live
                 : block.reduce == Reduce::any ? block.votes > 0
                                               : block.votes;
  block.at_barrier = block.votes = 0;
  block.has_reduce = false;
  for (Thread& thread : block.threads) {
    if (thread.state == State::at_barrier) thread.state = State::ready;
  }
}

void release_group(Warp& warp, Group& group) {
  if (group.arrived == 0 || (group.arrived & warp.live) != (group.mask & warp.live)) return;
  group.rounds[group.generation % 2].present = group.arrived;
  for (uint32_t lanes = group.arrived; lanes; lanes &= lanes - 1) {
    Thread& thread = warp.threads[__builtin_ctz(lanes)];
    if (thread.state == State::in_group && thread.group == &group) thread.state = State::ready;
  }
  group.arrived = 0;
  ++group.generation;
}

// The first function on every fiber's stack.
void thread_main() {
  Emulator& e = *emulator;
#if defined(__SANITIZE_ADDRESS__)
  // The first fiber of all comes from the scheduler, and finds out where its stack is.
  const bool first = !e.scheduler.stack_low;
  __sanitizer_finish_switch_fiber(nullptr, first ? &e.scheduler.stack_low : nullptr,
                                  first ? &e.scheduler.stack_bytes : nullptr);
#endif
  try {
    (*e.block->kernel)();
  } catch (...) {
    e.block->error = std::current_exception();
    e.turn = e.order.size();  // no thread continues
  }
  Block& block = *e.block;
  Thread& thread = e.thread();
  thread.state = State::done;
  Warp& warp = *e.warp;
  warp.live &= ~(1u << e.lane);
  --block.live;
  // As on the device, those who wait do not wait for a thread that has returned.
  release_barrier(block);
  for (auto& group : warp.groups) release_group(warp, *group);
  e.leave(thread.context, true);
}

std::string who_waits(const Block& block) {
  int barrier = 0, group = 0;
  for (const Thread& thread : block.threads) {
    barrier += thread.state == State::at_barrier;
    group += thread.state == State::in_group;
  }
  return "deadlock: " + std::to_string(barrier) + " threads wait at a barrier of the block and " +
         std::to_string(group) + " for lanes of their warp";
}

// Until all its lanes wait; in a drawn schedule perhaps not so long. Returns whether any could run.
bool run_warp(Block& block, Warp& warp) {
  Emulator& e = *emulator;
  e.warp = &warp;
  bool progress = false;
  while (!(progress && e.shuffled && e.draw() % 8 == 0)) {
    e.reorder(e.order);
    e.turn = 0;
    Thread* const first = e.next();
    if (!first) break;
    progress = true;
    switch_to(e.scheduler, first->context);
    if (block.error) std::rethrow_exception(std::exchange(block.error, nullptr));
  }
  return progress;
}

void run_block(Block& block) {
  Emulator& e = *emulator;
  e.block = &block;
  const int count = static_cast<int>(block.threads.size());
  block.live = count;
  block.warps = std::vector<Warp>((count + 31) / 32);
  for (int i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    Warp& warp = block.warps[i / 32];
    thread.state = State::ready;
    begin_at(thread.context, e.stacks[i], thread_main);
    if (i % 32 == 0) {
      warp.threads = &thread;
    }
    ++warp.size;
    warp.live |= 1u << i % 32;
  }
  std::vector<int> warps(block.warps.size());
  std::iota(warps.begin(), warps.end(), 0);
  e.order.resize(32);
  std::iota(e.order.begin(), e.order.end(), 0);
  while (block.live > 0) {
    bool progress = false;
    e.reorder(warps);
    for (int warp : warps) progress |= run_warp(block, block.warps[warp]);
    if (!progress) broken(who_waits(block));
  }
}

}  // namespace

void launch(dim3 grid, dim3 size, size_t shared, const std::function<void()>& kernel) {
  const std::lock_guard lock(one_launch);
  emulator = &emulator_of_this_thread;
  Emulator& e = *emulator;
  const int count = static_cast<int>(size.x * size.y * size.z);
  const int64_t blocks = int64_t{grid.x} * grid.y * grid.z;
  if (count < 1 || count > 1024 || blocks < 1)
    throw std::runtime_error("emulated CUDA: bad launch configuration");
  if (shared > 227 << 10) throw std::runtime_error("emulated CUDA: too much dynamic shared memory");
  while (static_cast<int>(e.stacks.size()) < count) e.stacks.emplace_back(e.stacks.size());

  constexpr std::align_val_t kAlignment{128};
  const auto free_shared = [](void* memory) { operator delete(memory, kAlignment); };
  const std::unique_ptr<void, decltype(free_shared)> memory(operator new(shared, kAlignment), free_shared);
  Block block;
  block.kernel = &kernel;
  block.shared = memory.get();
  block.shared_bytes = shared;
  block.threads.resize(count);
  for (int i = 0; i < count; ++i) {
    block.threads[i].index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
  }
  std::vector<int64_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  e.reorder(order);
  gridDim = grid;
  blockDim = size;
  for (const int64_t b : order) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    std::memset(memory.get(), 0xff, shared);
    run_block(block);
  }
}

void* dynamic_shared() { return emulator->block->shared; }

bool in_dynamic_shared(const void* address) {
  const Block& block = *emulator->block;
  const auto offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(block.shared);
  return offset < block.shared_bytes;  // unsigned: a lower address is far beyond
}

void check_four(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16) broken("four floats to add to are not aligned to 16 bytes");
  if (in_dynamic_shared(address)) broken("four floats can be added to at once in global memory only");
}

void check_assumption(bool holds, const char* condition) {
  if (!holds) broken(std::string("the compiler may assume what is not true: ") + condition);
}

void set_schedule(uint64_t seed) {
  emulator_of_this_thread.shuffled = seed != 0;
  emulator_of_this_thread.random = seed * 0x9e3779b97f4a7c15u | 1;
}

void give_way() {
  Emulator& e = *emulator;
  if (e.shuffled && e.draw() % 8 == 0) e.wait(State::ready);
}

int lane() { return emulator->lane; }

const Round& exchange(Meeting at, uint32_t mask, uint64_t value, const void* wide, size_t bytes) {
  Emulator& e = *emulator;
  Warp& warp = *e.warp;
  const int self = e.lane;
  if (warp.size < 32) mask &= (1u << warp.size) - 1;  // the last warp of a block may be short
  if (!(mask >> self & 1)) broken("a thread is not in the mask of its own warp operation");
  if (!warp.latest || warp.latest->mask != mask) warp.latest = &warp.group_of(mask);
  Group& group = *warp.latest;
  if (group.arrived && group.meeting != at) broken("lanes of a warp meet at different warp operations");
  group.meeting = at;
  Round& round = group.rounds[group.generation % 2];
  round.values[self] = value;
  if (bytes) std::memcpy(round.wide[self], wide, bytes);
  group.arrived |= 1u << self;
  const uint64_t generation = group.generation;
  release_group(warp, group);
  if (group.generation == generation) {
    e.thread().group = &group;
    e.wait(State::in_group);
  }
  return round;
}

int barrier(Reduce how, bool predicate) {
  Emulator& e = *emulator;
  Block& block = *e.block;
  if (block.has_reduce && block.reduce != how)
    broken("threads of a block meet at different kinds of barriers");
  block.has_reduce = true;
  block.reduce = how;
  block.votes += predicate;
  ++block.at_barrier;
  e.thread().state = State::at_barrier;
  release_barrier(block);
  if (e.thread().state == State::at_barrier) e.wait(State::at_barrier);
  return block.result;
}

}  // namespace emulation

void emulation_trap() { emulation::broken("a device assertion failed"); }

extern "C" __attribute__((visibility("default"))) void emulation_set_schedule(uint64_t seed) {
  emulation::set_schedule(seed);
}
