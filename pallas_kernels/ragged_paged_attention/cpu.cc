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

// So many items for each thread leave none of them idle for long at the end.
constexpr int64_t kItemsPerThread = 4;
// Heads whose keys of a block are more than this gain nothing from being read in a row.
constexpr int64_t kRunBytes = 64 << 10;

// How many kv heads of a split go together: they lie side by side in a page, and a long run is read
// faster than several short ones.
int64_t heads_together(const AttentionArgs& args, int64_t num_splits, int64_t num_threads) {
  const int64_t head_bytes = kBlockKeys * args.head_dim * bytes_of(args.kv_dtype);
  int64_t best = 1;
  for (int64_t heads = 2; heads <= args.num_kv_heads; ++heads) {
    const bool divides = args.num_kv_heads % heads == 0;
    const int64_t num_items = num_splits * args.num_kv_heads / heads;
    if (divides && heads * head_bytes <= kRunBytes &&
        (num_threads == 1 || num_items >= kItemsPerThread * num_threads)) {
      best = heads;
    }
  }
  return best;
}

class Attention {
 public:
  Attention(const AttentionArgs& args, const Plan& plan, float* partials, int64_t split_heads)
      : args_(args),
        plan_(plan),
        partials_(partials),
        split_heads_(split_heads),
        num_tiles_(args.num_kv_heads * static_cast<int64_t>(plan.tiles.size())),
        items_(num_items(args, plan, split_heads)),
        merges_(args.num_kv_heads * static_cast<int64_t>(plan.merges.size())) {}

  static int64_t num_items(const AttentionArgs& args, const Plan& plan, int64_t split_heads) {
    return args.num_kv_heads * static_cast<int64_t>(plan.tiles.size()) +
           args.num_kv_heads / split_heads * static_cast<int64_t>(plan.splits.size());
  }

  void run(Team& team) {
    thread_local WorkerScratch scratch;
    for (int64_t item, end; items_.next(&item, &end);) {
      if (item < num_tiles_) {
        attend_tile_item(item, scratch);
      } else {
        attend_split_item(item - num_tiles_, scratch);
      }
    }
    if (plan_.merges.empty()) return;
    team.barrier();
    for (int64_t item, end; merges_.next(&item, &end);) {
      const MergeItem& merge = plan_.merges[item / args_.num_kv_heads];
      const int64_t head = item % args_.num_kv_heads;
      merge_splits(Keys{args_, merge.row, head}, partial(merge.partial, head), merge.num_splits,
                   args_.num_kv_heads * Partial::size(args_));
    }
  }

 private:
  Partial at(float* memory) const { return {memory, group_of(args_), padded_dim(args_)}; }

  Partial partial(int64_t number, int64_t head) const {
    return at(partials_ + (number * args_.num_kv_heads + head) * Partial::size(args_));
  }

  void attend_tile_item(int64_t item, WorkerScratch& scratch) {
    const TileItem& tile = plan_.tiles[item / args_.num_kv_heads];
    const Keys keys = {args_, tile.row, item % args_.num_kv_heads};
    attend_tile(Tile{keys, tile.first_query, tile.num_queries}, scratch.tile);
  }

  void attend_split_item(int64_t item, WorkerScratch& scratch) {
    const int64_t num_runs = args_.num_kv_heads / split_heads_;
    const SplitItem& found = plan_.splits[item / num_runs];
    const int64_t head = item % num_runs * split_heads_;
    const Split split = {args_, found.row, found.first, found.last, head, split_heads_};
    const bool is_whole = found.partial < 0;
    const Partial to = is_whole
                           ? at(scratch.partial.floats(split_heads_ * Partial::size(args_)))
                           : partial(found.partial, head);
    attend_split(split, to, scratch.decode);
    if (!is_whole) return;
    for (int64_t i = 0; i < split_heads_; ++i) merge_splits(split.keys(i), to.next(i), 1, 0);
  }

  const AttentionArgs& args_;
  const Plan& plan_;
  float* partials_;
  int64_t split_heads_, num_tiles_;
  WorkQueue items_, merges_;
};

}  // namespace
}  // namespace paged

void attention(const AttentionArgs& args) {
  using namespace paged;
  thread_local Plan plan;
  thread_local Scratch partials;
  const int64_t num_partials = make_plan(args, &plan) * args.num_kv_heads;
  float* memory = partials.floats(num_partials * Partial::size(args));
  ThreadPool& threads = ThreadPool::instance();
  const int64_t split_heads =
      heads_together(args, static_cast<int64_t>(plan.splits.size()), threads.size());
  const int64_t num_items = Attention::num_items(args, plan, split_heads);
  if (num_items == 0) return;
  Attention run(args, plan, memory, split_heads);
  const int limit = static_cast<int>(std::min<int64_t>(num_items, 1024));
  threads.run(limit, [&](int, Team& team) { run.run(team); });
}

}  // namespace fastgen
