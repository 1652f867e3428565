#include "cpu/similarity_triangle.h"

#include <atomic>

#include "cpu/new_tensor.h"
#include "cpu/similarity_tiles.h"

namespace fastssl::similarity {
namespace {

// The blocks of a triangle are even in number, unless there is only one, so that a batch of pairs is cut in its middle, where the
// ids start again. A tile on the diagonal is computed whole, which costs 1 / count of the work: hence 16 blocks of at least kLeast.
Blocks triangle_blocks(int64_t rows) {
  Blocks blocks = blocks_of(rows, std::max<int64_t>(16, enough_tasks()));
  blocks.count += blocks.count % 2 && blocks.count > 1;
  return blocks;
}

// Calls pack(b) for each block, and visit(tile, number of its block of rows, number of its block of columns) for the upper triangle
// of tiles, each after its two blocks were packed.
template <class E, class Pack, class Visit>
void in_triangle(const Problem<E>& p, const Blocks& blocks, const Pack& pack, const Visit& visit) {
  const IdRange ids(p.x.id, blocks);
  in_order(tournament(blocks.count), blocks.count, pack, [&](int64_t I, int64_t J) {
    visit(Tile{blocks.start(I), blocks.length(I), blocks.start(J), blocks.length(J), ids.meets(I, ids, J)}, I, J);
  });
}

std::atomic<int64_t> limit{64 << 20};  // of the bytes that are kept; as many as CLIP's sweep keeps in float32

}  // namespace

std::pair<int64_t, int64_t> most_kept() {
  const int64_t most = limit;
  int64_t rows = 0;
  while (KeptTriangle<float>{nullptr, triangle_blocks(rows + 1)}.elements() * int64_t(sizeof(float)) <= most) rows++;
  return {most, rows};
}

void keep_at_most(int64_t bytes) { limit = bytes; }

Tensor new_kept(int64_t rows, ScalarType dtype) {
  const KeptTriangle<char> shape{nullptr, triangle_blocks(rows)};
  const bool keep = shape.elements() * (dtype == ScalarType::Double ? 8 : 4) <= limit;
  return new_tensor({keep ? shape.blocks.count : 0, shape.elements() / shape.blocks.count}, dtype);
}

template <class T>
KeptTriangle<T> kept_in(const Tensor& kept, int64_t rows) {
  if (kept.numel() == 0) return {};
  return {const_cast<T*>(kept.const_data_ptr<T>()), {rows, kept.size(0)}};
}

template <class E>
void forward_triangle(const Problem<E>& p, const State<Sum<E>>& state, Sum<E>* lse, const KeptTriangle<Sum<E>>& kept) {
  const Blocks blocks = kept.data ? kept.blocks : triangle_blocks(p.x.rows());
  Panels<E> columns(p.x.stored, p.D, Form::kColumns, blocks);
  state.clear(p, p.x.rows());
  Workspace<E> work(kStrip, blocks.longest());
  const auto pack = [&](int64_t b) { columns.fill(b, blocks); };
  in_triangle(p, blocks, pack, [&](const Tile& t, int64_t I, int64_t J) {
    sum_tile<E>(p, t, columns.of(J), kept.of(t, I, J), {}, state, I != J ? &state : nullptr, work);
  });
  state.to_lse(p.x.rows(), lse);
}

template <class E>
void backward_triangle(const Problem<E>& p, const State<Sum<E>>& state, const Sum<E>* g, Sum<E> factor, bool clear, Sum<E>* dx,
                       const KeptTriangle<Sum<E>>& kept) {
  const RowTerms<Sum<E>> terms(p.x.rows(), state, g);
  const Blocks blocks = kept.data ? kept.blocks : triangle_blocks(p.x.rows());
  Panels<E> columns, x_rows(p.x.stored, p.D, Form::kRows, blocks);
  if (!kept.data) columns = Panels<E>(p.x.stored, p.D, Form::kColumns, blocks);
  Workspace<E> work(blocks.longest(), blocks.longest());
  const auto pack = [&](int64_t b) {
    columns.fill(b, blocks), x_rows.fill(b, blocks);
    if (clear) std::fill(dx + blocks.start(b) * p.D, dx + blocks.start(b + 1) * p.D, Sum<E>(0));
  };
  in_triangle(p, blocks, pack, [&](const Tile& t, int64_t I, int64_t J) {
    weigh_tile<E>(p, t, kept.data ? nullptr : columns.of(J), kept.of(t, I, J), terms, &terms, work);
    add_products(p, work, t, x_rows.of(J), x_rows.of(I), factor, dx, I != J ? dx : nullptr);
  });
}

#define FASTSSL_FOR(E)                                                                                           \
  template void forward_triangle(const Problem<E>&, const State<Sum<E>>&, Sum<E>*, const KeptTriangle<Sum<E>>&); \
  template void backward_triangle(const Problem<E>&, const State<Sum<E>>&, const Sum<E>*, Sum<E>, bool, Sum<E>*, \
                                  const KeptTriangle<Sum<E>>&);
FASTSSL_FOR(float)
FASTSSL_FOR(double)
FASTSSL_FOR(BFloat16)

template KeptTriangle<float> kept_in(const Tensor&, int64_t);
template KeptTriangle<double> kept_in(const Tensor&, int64_t);

}  // namespace fastssl::similarity
