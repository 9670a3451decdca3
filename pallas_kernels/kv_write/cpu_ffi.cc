// The binding of the native write to XLA.
#include <algorithm>

#include "kv_write/cpu.h"
#include "native/ffi.h"

namespace fastgen {
namespace {

namespace ffi = xla::ffi;

using Int32Vector = ffi::Buffer<ffi::S32, 1>;
using Int32Scalar = ffi::Buffer<ffi::S32, 0>;

// Optional arguments, in this order: cos, sin, k_scales, v_scales; all float32. The results are the
// pages themselves.
ffi::Error write_kv_ffi(ffi::AnyBuffer k_pages, ffi::AnyBuffer v_pages, ffi::AnyBuffer k,
                        ffi::AnyBuffer v, Int32Vector page_ids, Int32Vector slots,
                        Int32Scalar num_tokens, Int32Scalar layer, ffi::RemainingArgs extras,
                        ffi::Result<ffi::AnyBuffer> k_out, ffi::Result<ffi::AnyBuffer> v_out,
                        int64_t pages_per_layer, bool has_rotation, bool has_scales) {
  if (k_out->untyped_data() != k_pages.untyped_data() ||
      v_out->untyped_data() != v_pages.untyped_data()) {
    return invalid("write_kv: the results must be the pages' own memory");
  }
  KvWriteArgs args = {};
  auto kv_dtype = dtype_of(k_pages);
  if (!kv_dtype) return kv_dtype.error();
  auto dtype = dtype_of(k);
  if (!dtype) return dtype.error();
  args.k_pages = k_out->untyped_data();
  args.v_pages = v_out->untyped_data();
  args.kv_dtype = *kv_dtype;
  args.num_kv_heads = k_pages.dimensions()[1];
  args.page_size = k_pages.dimensions()[2];
  args.head_dim = k_pages.dimensions()[3];
  args.k = k.untyped_data();
  args.v = v.untyped_data();
  args.dtype = *dtype;
  args.num_tokens = std::min<int64_t>(*num_tokens.typed_data(), k.dimensions()[0]);
  args.page_ids = page_ids.typed_data();
  args.first_page = *layer.typed_data() * pages_per_layer;
  args.slots = slots.typed_data();

  if (extras.size() != (has_rotation ? 2u : 0u) + (has_scales ? 2u : 0u)) {
    return invalid("write_kv: wrong number of optional arguments");
  }
  size_t next = 0;
  auto take = [&] {
    return static_cast<const float*>(extras.get<ffi::AnyBuffer>(next++)->untyped_data());
  };
  if (has_rotation) {
    args.rotary_half = extras.get<ffi::AnyBuffer>(next)->dimensions()[1];
    args.cos = take();
    args.sin = take();
  }
  if (has_scales) {
    args.k_scales = take();
    args.v_scales = take();
  }
  write_kv(args);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace fastgen

XLA_FFI_DEFINE_HANDLER_SYMBOL(fastgen_kv_write, fastgen::write_kv_ffi,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<fastgen::Int32Vector>()
                                  .Arg<fastgen::Int32Vector>()
                                  .Arg<fastgen::Int32Scalar>()
                                  .Arg<fastgen::Int32Scalar>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("pages_per_layer")
                                  .Attr<bool>("has_rotation")
                                  .Attr<bool>("has_scales"));
