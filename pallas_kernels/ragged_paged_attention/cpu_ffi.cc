// The binding of the native attention to XLA.
#include "ragged_paged_attention/cpu.h"

#include <algorithm>

#include "native/ffi.h"

namespace fastgen {
namespace {

namespace ffi = xla::ffi;

using Int32Vector = ffi::Buffer<ffi::S32, 1>;
using Int32Matrix = ffi::Buffer<ffi::S32, 2>;
using Int32Scalar = ffi::Buffer<ffi::S32, 0>;

// Optional arguments, in this order: sinks, k_scales, v_scales, cos, sin; all float32.
ffi::Error attention_ffi(ffi::AnyBuffer q, ffi::AnyBuffer k_pages, ffi::AnyBuffer v_pages,
                         Int32Vector query_start, Int32Vector query_len, Int32Vector kv_len,
                         Int32Matrix block_tables, Int32Scalar num_rows,
                         Int32Scalar layer, Int32Scalar window, ffi::RemainingArgs extras,
                         ffi::Result<ffi::AnyBuffer> out, int64_t pages_per_layer, float scale,
                         float softcap, bool has_sinks, bool has_scales, bool has_rotation) {
  AttentionArgs args = {};
  auto q_dtype = dtype_of(q);
  if (!q_dtype) return q_dtype.error();
  auto kv_dtype = dtype_of(k_pages);
  if (!kv_dtype) return kv_dtype.error();
  args.q = q.untyped_data();
  args.out = out->untyped_data();
  args.q_dtype = *q_dtype;
  args.num_heads = q.dimensions()[1];
  args.head_dim = q.dimensions()[2];
  args.k_pages = k_pages.untyped_data();
  args.v_pages = v_pages.untyped_data();
  args.kv_dtype = *kv_dtype;
  args.num_kv_heads = k_pages.dimensions()[1];
  args.page_size = k_pages.dimensions()[2];
  args.query_start = query_start.typed_data();
  args.query_len = query_len.typed_data();
  args.kv_len = kv_len.typed_data();
  args.block_tables = block_tables.typed_data();
  args.pages_per_row = block_tables.dimensions()[1];
  args.num_rows =
      std::min<int64_t>(*num_rows.typed_data(), static_cast<int64_t>(kv_len.element_count()));
  args.first_page = *layer.typed_data() * pages_per_layer;
  args.scale = scale;
  args.window = *window.typed_data();
  args.softcap = softcap;

  const size_t expected =
      (has_sinks ? 1 : 0) + (has_scales ? 2 : 0) + (has_rotation ? 2 : 0);
  if (extras.size() != expected) return invalid("attention: wrong number of optional arguments");
  size_t next = 0;
  auto take = [&] {
    return static_cast<const float*>(extras.get<ffi::AnyBuffer>(next++)->untyped_data());
  };
  if (has_sinks) args.sinks = take();
  if (has_scales) {
    args.k_scales = take();
    args.v_scales = take();
  }
  if (has_rotation) {
    args.rotary_half = extras.get<ffi::AnyBuffer>(next)->dimensions()[1];
    args.cos = take();
    args.sin = take();
  }
  attention(args);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace fastgen

XLA_FFI_DEFINE_HANDLER_SYMBOL(fastgen_attention, fastgen::attention_ffi,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<fastgen::Int32Vector>()
                                  .Arg<fastgen::Int32Vector>()
                                  .Arg<fastgen::Int32Vector>()
                                  .Arg<fastgen::Int32Matrix>()
                                  .Arg<fastgen::Int32Scalar>()
                                  .Arg<fastgen::Int32Scalar>()
                                  .Arg<fastgen::Int32Scalar>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("pages_per_layer")
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<bool>("has_sinks")
                                  .Attr<bool>("has_scales")
                                  .Attr<bool>("has_rotation"));
