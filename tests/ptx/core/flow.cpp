// Where divergent lanes meet again: the immediate post-dominator of each branch, by the iterative
// algorithm of Cooper, Harvey and Kennedy ("A Simple, Fast Dominance Algorithm") on the reversed
// control-flow graph. This is where the hardware's own compiler places its convergence barriers.
#include <algorithm>

#include "program.h"

namespace ptx {
namespace {

struct Block {
  u32 first, last;  // instructions, inclusive
  std::vector<int> next;
};

/// Basic blocks, and one more for the exit, which every returning block leads to.
std::vector<Block> blocks_of(const Kernel& kernel) {
  const u32 count = u32(kernel.code.size());
  std::vector<bool> leader(count + 1, false);
  leader[0] = true;
  auto ends_block = [&](const Inst& i) {
    return !kernel.extras[i.extra].targets.empty() || i.kind == Kind::kExit;
  };
  for (u32 i = 0; i < count; ++i)
    if (ends_block(kernel.code[i])) {
      leader[i + 1] = true;
      for (u32 target : kernel.extras[kernel.code[i].extra].targets) leader[target] = true;
    }
  std::vector<Block> blocks;
  std::vector<int> block_of(count + 1, 0);
  for (u32 i = 0; i < count; ++i) {
    if (leader[i]) blocks.push_back({i, i, {}});
    blocks.back().last = i;
    block_of[i] = int(blocks.size()) - 1;
  }
  const int exit = int(blocks.size());
  block_of[count] = exit;
  for (Block& b : blocks) {
    const Inst& last = kernel.code[b.last];
    for (u32 target : kernel.extras[last.extra].targets) b.next.push_back(block_of[target]);
    bool always = ends_block(last) && last.guard == 0;
    if (last.kind == Kind::kExit) b.next.push_back(exit);
    if (!always) b.next.push_back(block_of[b.last + 1]);
  }
  blocks.push_back({count, count, {}});
  return blocks;
}

}  // namespace

void find_reconvergence(Kernel& kernel) {
  if (kernel.code.empty()) return;
  const std::vector<Block> blocks = blocks_of(kernel);
  const int count = int(blocks.size()), exit = count - 1;
  std::vector<std::vector<int>> previous(blocks.size());
  for (int b = 0; b < count; ++b)
    for (int n : blocks[size_t(b)].next) previous[size_t(n)].push_back(b);

  // Post-order of the reversed graph, from the exit; blocks that never reach it stay unnumbered.
  std::vector<int> number(blocks.size(), -1), order;
  std::vector<std::pair<int, size_t>> stack{{exit, 0}};
  std::vector<bool> seen(blocks.size(), false);
  seen[size_t(exit)] = true;
  while (!stack.empty()) {
    auto& [block, child] = stack.back();
    if (child < previous[size_t(block)].size()) {
      int p = previous[size_t(block)][child++];
      if (!seen[size_t(p)]) {
        seen[size_t(p)] = true;
        stack.push_back({p, 0});
      }
    } else {
      number[size_t(block)] = int(order.size());
      order.push_back(block);
      stack.pop_back();
    }
  }

  std::vector<int> dominator(blocks.size(), -1);
  dominator[size_t(exit)] = exit;
  auto meet = [&](int a, int b) {
    while (a != b) {
      while (number[size_t(a)] < number[size_t(b)]) a = dominator[size_t(a)];
      while (number[size_t(b)] < number[size_t(a)]) b = dominator[size_t(b)];
    }
    return a;
  };
  for (bool changed = true; changed;) {
    changed = false;
    for (auto block = order.rbegin(); block != order.rend(); ++block) {
      if (*block == exit) continue;
      int best = -1;
      for (int n : blocks[size_t(*block)].next)
        if (dominator[size_t(n)] >= 0) best = best < 0 ? n : meet(best, n);
      if (best != dominator[size_t(*block)]) {
        dominator[size_t(*block)] = best;
        changed = true;
      }
    }
  }
  for (int b = 0; b < exit; ++b) {
    const Inst& last = kernel.code[blocks[size_t(b)].last];
    const int meeting = dominator[size_t(b)];
    if (last.extra == 0 || kernel.extras[last.extra].targets.empty() || meeting < 0 || meeting == exit)
      continue;
    const u32 first = blocks[size_t(meeting)].first;
    if (kernel.code[first].kind == Kind::kExit)  // `if (…) return;`: those lanes wait for nobody
      continue;
    kernel.extras[last.extra].reconvergence = first;
    kernel.code[first].meeting = true;
  }
}

}  // namespace ptx
