// Geometry of one bilinear sample, shared by every native kernel.
//
// Templates over the number type: a CUDA thread passes float, the CPU kernel passes vectors with one sample
// per lane. Comparisons of vectors give lane masks, which `?:`, `&` and `|` accept as well.
#pragma once

#include "../common/number.h"

namespace dino_kernels {

// The four pixels around a point, in the order upper left, upper right, lower left, lower right.
template <class Real>
struct Corners {
  using Int = typename Number<Real>::Int;
  using Mask = typename Number<Real>::Mask;
  Int row[4];       // index into the level's H * W pixels; only meaningful where valid
  Mask valid[4];    // inside the level (for vectors: all bits); the others count as zero padding
  Real weight[4];   // bilinear, sum 1
  Real fraction_x;  // of the way from left to right, [0, 1)
  Real fraction_y;  // of the way from top to bottom, [0, 1)
};

// A point at (x, y), in pixels, pixel centres at integers, of a level of width x height.
//
// A point below -1, at or beyond the size, or at NaN has no valid corner. It is moved to (-2, -2) before any
// conversion to an integer, so that infinities and NaN are harmless.
template <class Real>
DINO_HOST_DEVICE Corners<Real> bilinear_corners(Real x, Real y, typename Number<Real>::Int width,
                                                typename Number<Real>::Int height) {
  using Element = typename Number<Real>::Element;
  using Int = typename Number<Real>::Int;
  const auto inside = (x >= Element(-1)) & (x < Number<Real>::from(width)) & (y >= Element(-1)) &
                      (y < Number<Real>::from(height));
  const Real outside = Real{} - Element(2);
  x = inside ? x : outside;
  y = inside ? y : outside;
  const Int x0 = Number<Real>::floor(x), y0 = Number<Real>::floor(y);
  Corners<Real> corners;
  corners.fraction_x = x - Number<Real>::from(x0);
  corners.fraction_y = y - Number<Real>::from(y0);
  const Real right = corners.fraction_x, left = Element(1) - right;
  const Real below = corners.fraction_y, above = Element(1) - below;
  // Checks only the sides that `inside` leaves open: -2 <= x0 < width.
  const auto left_valid = x0 >= 0;
  const auto right_valid = (x0 >= -1) & (x0 + 1 < width);
  const auto above_valid = y0 >= 0;
  const auto below_valid = (y0 >= -1) & (y0 + 1 < height);
  const Int upper_left = y0 * width + x0;
  corners.row[0] = upper_left;
  corners.row[1] = upper_left + 1;
  corners.row[2] = upper_left + width;
  corners.row[3] = upper_left + width + 1;
  corners.valid[0] = above_valid & left_valid;
  corners.valid[1] = above_valid & right_valid;
  corners.valid[2] = below_valid & left_valid;
  corners.valid[3] = below_valid & right_valid;
  corners.weight[0] = above * left;
  corners.weight[1] = above * right;
  corners.weight[2] = below * left;
  corners.weight[3] = below * right;
  return corners;
}

}  // namespace dino_kernels
