#include "ragged_paged_attention/cpu.h"

#include <algorithm>
#include <vector>

#include "native/thread_pool.h"
#include "ragged_paged_attention/cpu_decode.h"
#include "ragged_paged_attention/cpu_tile.h"

namespace fastgen {
namespace paged {
namespace {

struct TileItem {
  int64_t row, first_query, num_queries, keys;
};

struct SplitItem {
  int64_t row, first, last, partial;
};

struct MergeItem {
  int64_t row, partial, num_splits;
};

// What there is to do for one kv head; every other has the same.
struct Plan {
  std::vector<TileItem> tiles;    // the longest first
  std::vector<SplitItem> splits;  // whole ones first
  std::vector<MergeItem> merges;  // of rows with several splits
};

void plan_decode(const AttentionArgs& args, int64_t row, int64_t* num_partials, Plan* plan,
                 std::vector<SplitItem>* short_splits) {
  const int64_t end = args.kv_len[row];
  const int64_t start = first_seen(args, end - 1);
  const int64_t num_splits = (end - start + kSplitKeys - 1) / kSplitKeys;
  for (int64_t split = 0; split < num_splits; ++split) {
    const int64_t first = start + split * kSplitKeys, last = std::min(end, first + kSplitKeys);
    const SplitItem item = {row, first, last, num_splits == 1 ? -1 : *num_partials + split};
    (last - first == kSplitKeys ? plan->splits : *short_splits).push_back(item);
  }
  if (num_splits == 1) return;
  plan->merges.push_back({row, *num_partials, num_splits});
  *num_partials += num_splits;
}

void plan_chunk(const AttentionArgs& args, int64_t row, Plan* plan) {
  const int64_t size = tile_queries(args.num_heads / args.num_kv_heads);
  const int64_t queries = args.query_len[row], position = args.kv_len[row] - queries;
  for (int64_t first = 0; first < queries; first += size) {
    const int64_t count = std::min(size, queries - first);
    const int64_t keys = position + first + count - first_seen(args, position + first);
    plan->tiles.push_back({row, first, count, keys});
  }
}

// Returns the number of partial results for each kv head.
int64_t make_plan(const AttentionArgs& args, Plan* plan) {
  int64_t num_partials = 0;
  std::vector<SplitItem> short_splits;
  plan->tiles.clear();
  plan->splits.clear();
  plan->merges.clear();
  for (int64_t row = 0; row < args.num_rows; ++row) {
    if (args.query_len[row] < 1 || args.kv_len[row] < args.query_len[row]) continue;
    if (args.query_len[row] == 1) {
      plan_decode(args, row, &num_partials, plan, &short_splits);
    } else {
      plan_chunk(args, row, plan);
    }
  }
  plan->splits.insert(plan->splits.end(), short_splits.begin(), short_splits.end());
  std::stable_sort(plan->tiles.begin(), plan->tiles.end(),
                   [](const TileItem& a, const TileItem& b) {
                     return a.keys * a.num_queries > b.keys * b.num_queries;
                   });
  return num_partials;
}

struct WorkerScratch {
  DecodeScratch decode;
  TileScratch tile;
  Scratch partial;
};

class Attention {
 public:
  Attention(const AttentionArgs& args, const Plan& plan, float* partials)
      : args_(args),
        plan_(plan),
        partials_(partials),
        items_(args.num_kv_heads * static_cast<int64_t>(plan.tiles.size() + plan.splits.size())),
        merges_(args.num_kv_heads * static_cast<int64_t>(plan.merges.size())) {}

  static int64_t partial_size(const AttentionArgs& args) {
    return args.num_heads / args.num_kv_heads * Partial::size(padded_dim(args));
  }

  void run(Team& team) {
    thread_local WorkerScratch scratch;
    for (int64_t item, end; items_.next(&item, &end);) attend(item, scratch);
    if (plan_.merges.empty()) return;
    team.barrier();
    for (int64_t item, end; merges_.next(&item, &end);) {
      const MergeItem& merge = plan_.merges[item / args_.num_kv_heads];
      const int64_t head = item % args_.num_kv_heads;
      merge_splits(Keys{args_, merge.row, head}, partial(merge.partial, head), merge.num_splits,
                   args_.num_kv_heads * partial_size(args_));
    }
  }

 private:
  float* partial(int64_t number, int64_t head) {
    return partials_ + (number * args_.num_kv_heads + head) * partial_size(args_);
  }

  void attend(int64_t item, WorkerScratch& scratch) {
    const int64_t number = item / args_.num_kv_heads, head = item % args_.num_kv_heads;
    const int64_t num_tiles = static_cast<int64_t>(plan_.tiles.size());
    if (number < num_tiles) {
      const TileItem& tile = plan_.tiles[number];
      const Keys keys = {args_, tile.row, head};
      attend_tile(Tile{keys, tile.first_query, tile.num_queries}, scratch.tile);
      return;
    }
    const SplitItem& split = plan_.splits[number - num_tiles];
    const Keys keys = {args_, split.row, head};
    const bool is_whole = split.partial < 0;
    float* memory =
        is_whole ? scratch.partial.floats(partial_size(args_)) : partial(split.partial, head);
    attend_split(keys, split.first, split.last, Partial{memory, padded_dim(args_)},
                 scratch.decode);
    if (is_whole) merge_splits(keys, memory, 1, 0);
  }

  const AttentionArgs& args_;
  const Plan& plan_;
  float* partials_;
  WorkQueue items_, merges_;
};

}  // namespace
}  // namespace paged

void attention(const AttentionArgs& args) {
  using namespace paged;
  thread_local Plan plan;
  thread_local Scratch partials;
  const int64_t num_partials = make_plan(args, &plan) * args.num_kv_heads;
  float* memory = partials.floats(num_partials * Attention::partial_size(args));
  const int64_t num_items =
      args.num_kv_heads * static_cast<int64_t>(plan.tiles.size() + plan.splits.size());
  if (num_items == 0) return;
  Attention run(args, plan, memory);
  const int limit = static_cast<int>(std::min<int64_t>(num_items, 1024));
  ThreadPool::instance().run(limit, [&](int, Team& team) { run.run(team); });
}

}  // namespace fastgen
