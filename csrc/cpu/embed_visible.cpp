// The visible patches of images as rows of a matrix, their gradient back to the pixels, and the rows that the product is added to.
//   A[n, P + k] = patch ids[n, k] of image n in the order (c, p, q), A[n, i < P] = 0
//   O[n, P + k] = bias + pos[P + ids[n, k]],  O[n, i < P] = prefix[i] + pos[i]
// N K C p q elements are read and written; runs of q pixels are neighbours in an image.
#include "cpu/tokens.h"

namespace fastssl::embed_visible {
namespace {

Tensor visible_patches_fwd(const Tensor& images_given, const Tensor& ids_given, int64_t height, int64_t width, int64_t prefix,
                           ScalarType dtype) {
  expect_images("embed_visible", images_given.sizes(), height, width);
  expect_ids("embed_visible", ids_given, images_given.size(0));
  FASTSSL_CHECK(prefix >= 0, "embed_visible: bad prefix");
  const Tensor images = images_given.stride(3) == 1 ? images_given : as_contiguous(images_given), ids = as_contiguous(ids_given);
  const int64_t N = images.size(0), C = images.size(1), across = images.size(3) / width, K = ids.size(1);
  check_range("embed_visible", ids, images.size(2) / height * across);
  const int64_t entries = C * height * width, tokens = prefix + K;
  Tensor out = new_tensor({N, tokens, entries}, dtype);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  const Array from = array_of(images), to = array_of(out);
  const PatchShape shape{C, height, width, images.stride(1), images.stride(2), false};
  with_accumulator(dtype, [&]<class T>(T) {
    const TokenRows<T>& rows = token_rows<T>();
    const bool narrow = bytes_of(to.dtype) < int(sizeof(T));
    parallel_for(N * tokens, entries, [&](int64_t begin, int64_t end) {
      std::vector<T> wide(narrow ? entries : 0);
      for (int64_t i = begin; i < end; i++) {
        const int64_t n = i / tokens, k = i % tokens - prefix;
        if (k < 0) {
          clear(to, i * entries, entries);
          continue;
        }
        const int64_t l = id[n * K + k];
        const int64_t corner = n * images.stride(0) + l / across * height * shape.row + l % across * width;
        rows.patch(from, corner, shape, narrow ? wide.data() : static_cast<T*>(to.data) + i * entries);
        if (narrow) rows.copy({wide.data(), kFloat32}, 0, to, i * entries, entries);
      }
    });
  });
  return out;
}

Tensor visible_patches_bwd(const Tensor& dpatches_given, const Tensor& ids_given, IntArrayRef shape, int64_t height, int64_t width,
                           int64_t prefix) {
  expect_images("embed_visible", shape, height, width);
  expect_ids("embed_visible", ids_given, shape[0]);
  FASTSSL_CHECK(prefix >= 0, "embed_visible: bad prefix");
  expect_shape("embed_visible", dpatches_given, {shape[0], prefix + ids_given.size(1), shape[1] * height * width});
  const Tensor dpatches = as_contiguous(dpatches_given), ids = as_contiguous(ids_given);
  const int64_t N = shape[0], C = shape[1], H = shape[2], W = shape[3], across = W / width, length = H / height * across;
  const int64_t entries = C * height * width, tokens = dpatches.size(1);
  check_range("embed_visible", ids, length);
  Tensor out = new_tensor(shape, dpatches.scalar_type());
  const Matches matches(ids, length);
  const Array from = array_of(dpatches), to = array_of(out);
  with_accumulator(dpatches.scalar_type(), [&]<class T>(T) {
    parallel_for(N * length, entries, [&](int64_t begin, int64_t end) {
      std::vector<T> buffer;
      for (int64_t i = begin; i < end; i++) {
        const int64_t n = i / length, l = i % length;
        const int64_t corner = n * C * H * W + l / across * height * W + l % across * width;
        for (int64_t c = 0; c < C; c++)
          for (int64_t p = 0; p < height; p++)
            write_matches(matches, n, l, from, (n * tokens + prefix) * entries + (c * height + p) * width, entries, Plain<T>{to},
                          corner + c * H * W + p * W, width, buffer);
      }
    });
  });
  return out;
}

Tensor visible_positions(const Tensor& ids_given, const OptionalTensor& bias, const OptionalTensor& pos,
                         const OptionalTensor& prefix, int64_t width, ScalarType dtype) {
  FASTSSL_CHECK(ids_given.dim() == 2 && (!pos || pos->dim() == 2) && (!prefix || prefix->dim() == 2), "embed_visible: bad shapes");
  const Tensor ids = as_contiguous(ids_given);
  const int64_t N = ids.size(0), K = ids.size(1), before = prefix ? prefix->size(0) : 0, tokens = before + K;
  if (bias) expect_dense("embed_visible", *bias, {width});
  if (pos) expect_dense("embed_visible", *pos, {std::max(pos->size(0), before), width});
  if (prefix) expect_dense("embed_visible", *prefix, {before, width});
  if (pos) check_range("embed_visible", ids, pos->size(0) - before);
  Tensor out = new_tensor({N, tokens, width}, dtype);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  const Array to = array_of(out), none{nullptr, kNothing};
  const Array shift = bias ? array_of(*bias) : none, position = pos ? array_of(*pos) : none;
  const Array front = prefix ? array_of(*prefix) : none;
  with_accumulator(dtype, [&]<class T>(T) {
    const TokenRows<T>& rows = token_rows<T>();
    parallel_for(N * tokens, width, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t t = i % tokens, place = t < before ? t : before + id[i / tokens * K + t - before];
        const Array added = t < before ? front : shift;
        const int64_t start = t < before ? t * width : 0;
        if (pos && added.dtype != kNothing) rows.add(added, start, position, place * width, to, i * width, width);
        else if (pos) rows.copy(position, place * width, to, i * width, width);
        else if (added.dtype != kNothing) rows.copy(added, start, to, i * width, width);
        else clear(to, i * width, width);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace fastssl::embed_visible

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("visible_patches_fwd", TORCH_BOX(&fastssl::embed_visible::visible_patches_fwd));
  m.impl("visible_patches_bwd", TORCH_BOX(&fastssl::embed_visible::visible_patches_bwd));
  m.impl("visible_positions", TORCH_BOX(&fastssl::embed_visible::visible_positions));
}
