// The binding of the native product to XLA.
#include <algorithm>

#include "linear/cpu.h"
#include "native/ffi.h"

namespace fastgen {
namespace {

namespace ffi = xla::ffi;

// The part of a stack of layers that belongs to one of them.
const void* layer_of(ffi::AnyBuffer stack, int64_t layer) {
  const int64_t layers = stack.dimensions()[0];
  const int64_t stride = static_cast<int64_t>(stack.size_bytes()) / layers;
  return static_cast<const char*>(stack.untyped_data()) + layer * stride;
}

bool has_scales(WeightFormat format) {
  return format != WeightFormat::kFloat32 && format != WeightFormat::kBfloat16;
}

// Arguments: x, layer, number of rows, [norm weights], [residual], then codes, [scales], [mins] of
// each matrix.
ffi::Error linear_ffi(ffi::RemainingArgs arguments, ffi::RemainingRets results,
                      ffi::Span<const int64_t> formats, ffi::Span<const int64_t> out_features,
                      bool has_norm, float norm_epsilon, bool has_residual, bool gated,
                      bool rounds_rows) {
  LinearArgs args = {};
  size_t next = 0;
  auto take = [&] { return arguments.get<ffi::AnyBuffer>(next++); };

  auto x = take();
  auto layer_buffer = take();
  auto rows_buffer = take();
  if (!x || !layer_buffer || !rows_buffer) return invalid("linear: too few arguments");
  auto x_dtype = dtype_of(*x);
  if (!x_dtype) return x_dtype.error();
  const int64_t layer = scalar<int32_t>(*layer_buffer);
  args.x = x->untyped_data();
  args.x_dtype = *x_dtype;
  args.in_features = x->dimensions()[1];
  args.num_rows = std::min<int64_t>(scalar<int32_t>(*rows_buffer), x->dimensions()[0]);

  if (has_norm) {
    auto norm = take();
    if (!norm) return invalid("linear: the norm's weights are missing");
    auto dtype = dtype_of(*norm);
    if (!dtype) return dtype.error();
    args.norm_weight = layer_of(*norm, layer);
    args.norm_dtype = *dtype;
    args.norm_epsilon = norm_epsilon;
  }
  if (has_residual) {
    auto residual = take();
    if (!residual) return invalid("linear: the residual is missing");
    args.residual = residual->untyped_data();
  }

  args.gated = gated;
  args.rounds_rows = rounds_rows;
  args.num_matrices = static_cast<int>(formats.size());
  if (args.num_matrices > kMaxMatrices) return invalid("linear: too many matrices");
  for (int i = 0; i < args.num_matrices; ++i) {
    Matrix& matrix = args.matrices[i];
    matrix.format = static_cast<WeightFormat>(formats[i]);
    matrix.in_features = args.in_features;
    matrix.out_features = out_features[i];
    auto codes = take();
    if (!codes) return invalid("linear: a matrix is missing");
    matrix.codes = layer_of(*codes, layer);
    if (has_scales(matrix.format)) {
      auto scales = take();
      if (!scales) return invalid("linear: scales are missing");
      matrix.scales = layer_of(*scales, layer);
    }
    if (matrix.format == WeightFormat::kQ4_1) {
      auto mins = take();
      if (!mins) return invalid("linear: minima are missing");
      matrix.mins = layer_of(*mins, layer);
    }
  }
  for (size_t i = 0; i < results.size(); ++i) {
    auto result = results.get<ffi::AnyBuffer>(i);
    if (!result) return invalid("linear: a result is missing");
    auto dtype = dtype_of(**result);
    if (!dtype) return dtype.error();
    args.out_dtype = *dtype;
    args.outs[i] = (*result)->untyped_data();
  }
  linear(args);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace fastgen

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    fastgen_linear, fastgen::linear_ffi,
    xla::ffi::Ffi::Bind()
        .RemainingArgs()
        .RemainingRets()
        .Attr<xla::ffi::Span<const int64_t>>("formats")
        .Attr<xla::ffi::Span<const int64_t>>("out_features")
        .Attr<bool>("has_norm")
        .Attr<float>("norm_epsilon")
        .Attr<bool>("has_residual")
        .Attr<bool>("gated")
        .Attr<bool>("rounds_rows"));
